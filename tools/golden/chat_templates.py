#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Records what Jinja renders in the environment that transformers 5 builds for chat templates.

    python3 -m venv out/golden && out/golden/bin/pip install jinja2==3.1.6
    out/golden/bin/python tools/golden/chat_templates.py

Reads tests/golden/chat/*.jinja (templates in the manner of well-known families) and conversations.json there, and writes
  rendered.json     each template with each conversation, with and without a generation prompt
  expressions.json  some thousands of generated templates: expressions, filters, methods, whitespace, statements
A text is what Jinja renders; {"error": true} stands for any exception. The clock of strftime_now stands still.
"""
import copy
import datetime
import json
import pathlib
import random
import re
import warnings

import jinja2
import jinja2.ext
import jinja2.sandbox

GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "tests/golden/chat"
NOW = datetime.datetime(2024, 7, 26, 13, 5, 9)  # local time; the test sets TZ to UTC
MOST_INTEGER = 1 << 63
REASONING = ("reasoning_content", "thinking", "reasoning")


# ---- the environment, as transformers/utils/chat_template_utils.py (5.24) makes it -----------------------------------
class Generation(jinja2.ext.Extension):
    """The tag that marks what the assistant says; rendering only shows its body."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller):
        return caller()


class Namespace(jinja2.utils.Namespace):
    def __init__(*args, **kwargs):
        self, args = args[0], args[1:]
        values = dict(*args, **kwargs)
        for name in values:
            Namespace.check(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name, value):
        Namespace.check(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)

    @staticmethod
    def check(name):
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(name)


class Dict:
    def __call__(self, *args, **kwargs):
        return dict(*args, **kwargs)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment(**options):
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, **options,
                                                       extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals.update(raise_exception=raise_exception, strftime_now=NOW.strftime, dict=Dict(), namespace=Namespace)
    return env


warnings.simplefilter("ignore", SyntaxWarning)  # of the Python that Jinja makes of generated nonsense
ENV, PLAIN = environment(), environment(optimized=False)


def normalized(message):
    """What apply_chat_template does to a message: no entries that are None, reasoning under every name."""
    message = {key: value for key, value in message.items() if value is not None}
    reasoning = next((message[key] for key in REASONING if message.get(key) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def render(template, variables, env=ENV):
    try:  # a copy: the filter indent changes a list that it is given
        text = env.from_string(template).render(**copy.deepcopy(variables))
        text.encode()  # half a surrogate pair is no text
        return text
    except Exception:  # any: the test asks only whether there is one
        return {"error": True}


# ---- families x conversations ------------------------------------------------------------------------------------
def write_rendered():
    conversations = json.loads((GOLDEN / "conversations.json").read_text())
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    rows = {}
    for path in sorted(GOLDEN.glob("*.jinja")):
        outputs = []
        for c in conversations:
            messages = [normalized(m) for m in c["messages"]]
            for prompt in (False, True):
                variables = {**tokens, **c.get("extra", {}), "messages": messages, "tools": c.get("tools"),
                             "documents": c.get("documents"), "add_generation_prompt": prompt}
                outputs.append(render(path.read_text(), variables))
        rows[path.stem] = outputs
    texts = sum(isinstance(o, str) for row in rows.values() for o in row)
    print(f"{len(rows)} templates x {len(conversations)} conversations x 2: {texts} texts, "
          f"{sum(map(len, rows.values())) - texts} errors")
    lines = ",\n".join(f'{json.dumps(name)}: [\n' + ",\n".join(json.dumps(o, ensure_ascii=False) for o in row) + "]"
                       for name, row in rows.items())
    tokens_text = json.dumps(tokens)
    (GOLDEN / "rendered.json").write_text(
        f'{{"now": {int(NOW.replace(tzinfo=datetime.timezone.utc).timestamp())}, "tokens": {tokens_text},\n'
        f'"rendered": {{\n{lines}\n}}}}\n')


# ---- generated templates -----------------------------------------------------------------------------------------
CONTEXT = {
    "n": 7, "z": 0, "neg": -3, "f": 2.5, "g": -0.1, "t": True, "no": None,
    "s": "Hello World", "e": "", "u": "naïve Straße 漢字 🙂", "ws": "  two\n lines\t", "q": "it's \"quoted\" \\ <b>&",
    "li": [3, 1, 2], "ls": ["b", "A", "c", "a"], "mixed": [1, "x", None, 2.0, [True]], "empty": [],
    "d": {"b": 1, "a": "two", "items": [1, 2], "C": None}, "nest": {"k": {"x": [10, {"y": "deep"}]}},
    "people": [{"name": "Ann", "age": 31, "tags": ["x"]}, {"name": "bob", "age": 25, "tags": []}, {"name": "Cy"}],
}
NUMBERS = ["n", "z", "neg", "f", "g", "t", "0", "1", "2", "5", "-4", "1.5", "3e2", "0.1", "10", "true"]
STRINGS = ["s", "e", "u", "ws", "q", "'a'", "'b,c,d'", "\"x\\ty\"", "'ab' 'cd'", "'Äß'", "'%'", "'{}'"]
LISTS = ["li", "ls", "mixed", "empty", "[]", "[1, 2, 3]", "['x', 'y']", "(1, 2)", "range(4)", "people", "[[1, 2], [3]]"]
DICTS = ["d", "nest", "{}", "{'k': 1, 2: 'v'}", "people[0]", "dict(a=1)"]
OTHERS = ["no", "missing", "none", "d.nothing", "people[9]", "missing.x", "loop"]
BINARY = ["+", "-", "*", "/", "//", "%", "**", "~", "==", "!=", "<", "<=", ">", ">=", "in", "not in", "and", "or"]
METHODS = ["strip()", "lstrip()", "rstrip('d')", "strip('Hd')", "upper()", "lower()", "title()", "capitalize()",
           "split()", "split(' ')", "split('l', 1)", "rsplit('l', 1)", "split(maxsplit=1)", "rsplit()", "splitlines()",
           "startswith('H')", "endswith(('d', 'x'))", "replace('l', 'LL')", "replace('l', '', 1)", "find('o')",
           "rfind('o')", "count('l')", "join(['a', 'b'])", "join(ls)", "index('zz')", "isdigit()", "isalpha()",
           "isalnum()", "isspace()", "isupper()", "islower()", "zfill(14)", "ljust(14, '.')", "rjust(14)", "center(15, '*')",
           "partition(' ')", "rpartition('o')", "removeprefix('He')", "removesuffix('ld')", "swapcase()", "find('o', 5)",
           "startswith('W', 6)", "format(1, 2)", "append(1)", "nothing()", "split('')", "__len__()", "replace('', '-')"]
FILTERS = ["upper", "lower", "title", "capitalize", "trim", "trim('H')", "length", "count", "first", "last", "list", "join",
           "join('-')", "join(', ', attribute='name')", "default('D')", "d('D', true)", "default", "int", "int(5)", "float",
           "string", "abs", "round", "round(1)", "round(1, 'floor')", "round(0, 'ceil')", "sort", "sort(reverse=true)",
           "sort(case_sensitive=true)", "sort(attribute='name')", "sort(attribute='age,name')", "unique|list", "reverse|list",
           "reverse", "sum", "sum(attribute='age')", "min", "max", "max(attribute='age')", "tojson", "tojson(indent=2)",
           "tojson(ensure_ascii=true)", "tojson(sort_keys=true)", "tojson(separators=(',', ':'))", "tojson(indent='>')",
           "items|list", "dictsort", "dictsort(by='value')", "dictsort(reverse=true)", "map('upper')|list",
           "map(attribute='name')|list", "map(attribute='age', default=0)|list", "map('int')|list", "map('default', 'x')|list",
           "select|list", "select('odd')|list", "select('string')|list", "select('gt', 1)|list", "reject('none')|list",
           "reject|list", "selectattr('age')|list", "selectattr('age', 'defined')|map(attribute='name')|join(',')",
           "selectattr('name', 'equalto', 'bob')|list", "rejectattr('tags')|list", "replace('o', '0')", "replace('l', 'L', 1)",
           "replace(1, 2)", "indent", "indent(2, true)", "indent('..', blank=true)", "safe", "escape", "e", "format(1)",
           "format('a', 2)", "batch(2)|list", "batch(2, 0)|list", "slice(2)|list", "groupby('name')|list",
           "attr('upper')", "nofilter", "join(1)", "tojson|length", "list|tojson", "string|length", "first|default('none')",
           "groupby('tags', default=1)|list", "float(1)|round(2)", "int(base=16)", "map('length')|list", "map|list"]
TESTS = ["defined", "undefined", "none", "string", "number", "integer", "float", "mapping", "sequence", "iterable", "boolean",
         "true", "false", "odd", "even", "divisibleby(3)", "divisibleby 2", "equalto(1)", "eq 7", "ne none", "in [1, 7, 'a']",
         "lower", "upper", "callable", "gt 1", "lt(2)", "ge 0", "le 0", "sameas none", "filter", "test", "==(1)", "notest"]
SLICES = ["[1:]", "[:2]", "[::-1]", "[1:3]", "[::2]", "[-2:]", "[5:1:-2]", "[:none]", "[::0]", "[-99:2]", "[3:99]", "[n:]", "[:s]"]
SUBSCRIPTS = ["[0]", "[-1]", "[99]", "['a']", "['b']", ".a", ".k.x[1].y",
              ".k", ".name", "[none]", "[1.0]", "[true]", ".0", "['k']['x'][0]", ".items", ".keys()|list", ".values()|list",
              ".items()", ".get('a')", ".get('zz', 5)", ".get('zz')", "['items']", ".nothing", "['__class__']", ".__class__", "[0].name",
              ".__class__.__mro__", ".count(1)", ".index(2)", ".pop()", ".update({})", ".copy()"]


def subscript(r, of):
    """Jinja folds a slice of a literal that has none into nothing instead of an error, so those are left out."""
    literal_without = of[0] in "{(-0123456789tn" and of not in ("n", "t", "nest", "no", "none")
    return of + r.choice(SUBSCRIPTS if literal_without or of == "none" or r.randrange(3) else SLICES)

CALLS = ["strftime_now('%Y-%m-%d')", "strftime_now('%d %b %Y %H:%M')", "raise_exception('no')", "dict(li)", "dict([(1, 2)], a=3)",
         "namespace(a=1).a", "namespace(d).b", "namespace(_a=1)", "range(100001)|length", "range(1, 2, 0)", "range(1.0)", "n()",
         "d.items(1)", "range()", "range(0)|list", "strftime_now(1)", "dict(a=1, b=2)", "dict(d, a=2)|length", "namespace(1)"]


def value(r, depth=0):
    kind = r.randrange(11 if depth < 2 else 5)
    if kind < 5:
        return r.choice([NUMBERS, STRINGS, LISTS, DICTS, OTHERS][kind if kind < 4 or r.randrange(3) == 0 else r.randrange(4)])
    inner = value(r, depth + 1)
    if kind == 5:
        return f"({inner} {r.choice(BINARY)} {value(r, depth + 1)})"
    if kind == 6:
        return f"({inner}|{r.choice(FILTERS)})"
    if kind == 7:
        return subscript(r, inner)
    if kind == 8:
        return f"({inner} is {r.choice(['', 'not '])}{r.choice(TESTS)})"
    if kind == 9:
        return f"({inner} if {value(r, depth + 1)}{r.choice([' else ' + value(r, depth + 1), ''])})"
    return r.choice([f"(not {inner})", f"(-{inner})", f"[{inner}, {inner}]", f"{{'k': {inner}}}", f"({inner} ~ '|')", f"({inner},)"])


def expression(r):
    kind = r.randrange(8)
    if kind == 0:
        return "{{ " + f"{r.choice(NUMBERS)} {r.choice(BINARY)} {r.choice(NUMBERS)} {r.choice(BINARY)} {r.choice(NUMBERS)}" + " }}"
    if kind == 1:
        return "{{ " + f"{r.choice(STRINGS)}.{r.choice(METHODS)}" + " }}"
    if kind == 2:
        of = r.choice([NUMBERS, STRINGS, LISTS, LISTS, DICTS, OTHERS])
        return "{{ " + f"{r.choice(of)}|{r.choice(FILTERS)}" + " }}"
    if kind == 3:
        of = r.choice([NUMBERS, STRINGS, LISTS, DICTS, OTHERS])
        return "{{ " + f"{r.choice(of)} is {r.choice(TESTS)}" + " }}"
    if kind == 4:
        return "{{ " + subscript(r, r.choice(r.choice([STRINGS, LISTS, DICTS, DICTS]))) + " }}"
    if kind == 5:
        chain = r.choice(["1 < n < 9", "n == 7 != 8", "z < 1 > neg", "'a' in s in [s]", "1 < n < 3 < x", "not n in li"])
        return "{{ " + f"{chain} {r.choice(['and', 'or'])} {value(r, 1)}" + " }}"
    return "{{ " + value(r) + " }}"


def whitespace(r):
    parts = []
    for _ in range(r.randrange(2, 7)):
        parts.append(r.choice(["", " ", "\n", "\n\n", "  \n  ", "\t", "a", "b ", " c\n", "\n d", "{", "}", "\r\n", "{ {", "% }"]))
        sign, end = r.choice(["", "-", "+", ""]), r.choice(["", "-", "", ""])
        block_end = r.choice(["", "-", "+", ""])
        parts.append(r.choice([
            "{{" + sign + " n " + end + "}}", "{%" + sign + " if t " + block_end + "%}  y\n {%" + sign + " endif " + block_end + "%}",
            "{#" + sign + " note " + block_end + "#}", "{%" + sign + " set x = 1 " + block_end + "%}",
            "{%" + sign + " for i in li " + block_end + "%}\n {{ i }} \n  {%" + sign + " endfor " + block_end + "%}",
            "{%" + sign + " raw " + end + "%}\n {{ x }} {% y %}\n{%" + sign + " endraw " + block_end + "%}",
            "{{ '%}' }}", "{{'}}'}}", "{{ {'a': {'b': 1}}['a'] }}", "{%- if e %}x{% else %}z{% endif -%}", "{#}#}"]))
    return "".join(parts) + r.choice(["", "\n", "\n\n", "  ", "x"])


def statements(r):
    name = r.choice(["x", "n", "s", "missing"])
    a, b = value(r, 1), value(r, 1)
    iterable = r.choice(LISTS + DICTS + ["d.items()", "people", "s", "missing", "li|reverse", "people|map(attribute='name')", "5"])
    body = r.choice(["{{ i }}", "{{ loop.index }}:{{ i }}", "{{ loop.first }}{{ loop.last }}", "{{ loop.previtem }}<{{ loop.nextitem }}",
                     "{{ loop.length }}-{{ loop.revindex0 }}", "{% if loop.index == 2 %}{% continue %}{% endif %}{{ i }}",
                     "{% if loop.index0 == 1 %}{% break %}{% endif %}{{ i }}", "{% set x = i %}{{ x }}", "{{ loop.cycle('a', 'b') }}",
                     "{% set ns.v = ns.v ~ i %}", "{{ loop.changed(i) }}", "{% for j in li %}{{ loop.index }}{{ i }}{% endfor %}",
                     "{% if i is string %}{% break %}{% endif %}", "{{ x }}"])
    return r.choice([
        f"{{% set {name} = {a} %}}{{{{ {name} }}}}",
        f"{{% if {a} %}}A{{% elif {b} %}}B{{% else %}}C{{% endif %}}",
        f"{{% set ns = namespace(v='') %}}{{% for i in {iterable} %}}{body},{{% else %}}none{{% endfor %}}{{{{ ns.v }}}}{{{{ x }}}}",
        f"{{% set ns = namespace(v='') %}}{{% for i in {iterable} if i %}}{body};{{% endfor %}}{{{{ ns }}}}",
        f"{{% for k, v in {r.choice(['d.items()', 'd|dictsort', 'nest|items', '[(1, 2), (3, 4)]', 'people', 'ls'])} %}}{{{{ k }}}}={{{{ v }}}} {{% endfor %}}",
        f"{{% macro m(p, q={a}) %}}[{{{{ p }}}}|{{{{ q }}}}|{{{{ kwargs }}}}{{{{ varargs }}}}]{{% endmacro %}}{{{{ m({b}) }}}}{{{{ m(1, q=2, r=3) }}}}{{{{ m(1, 2, 3) }}}}",
        f"{{% macro m(p, q={a}) %}}({{{{ p }}}}{{{{ n }}}}{{{{ x }}}}){{% endmacro %}}{{% set x = 1 %}}{{{{ m() }}}}{{{{ m(q=1) }}}}{{{{ m(1, 2, 3) if e else m }}}}",
        f"{{% set {name} %}}<{{{{ {a} }}}}>{{% endset %}}{{{{ {name}|length }}}}{{{{ {name} }}}}",
        f"{{% set {name} | upper | replace('E', '3') %}}<{{{{ {a} }}}}>{{% endset %}}{{{{ {name} }}}}",
        f"{{% filter {r.choice(['upper', 'trim', 'length', 'indent(2)', 'list', 'nofilter'])} %}} a {{{{ {a} }}}} {{% endfilter %}}",
        f"{{% with x = {a}, y = n %}}{{{{ x }}}}{{{{ y }}}}{{% set n = 1 %}}{{% endwith %}}{{{{ n }}}}{{{{ x }}}}",
        f"{{% macro w() %}}<{{{{ caller({a}) }}}}>{{% endmacro %}}{{% call(z) w() %}}{{{{ z }}}}{{{{ n }}}}{{% endcall %}}",
        f"{{% if t %}}{{% set {name} = 5 %}}{{% endif %}}{{{{ {name} }}}}{{% for i in li %}}{{% set {name} = i %}}{{{{ {name} }}}}{{% endfor %}}{{{{ {name} }}}}",
        f"{{% for i in li %}}{{{{ {name} }}}}{{% endfor %}}{{% set {name} = 5 %}}{{% for i in li %}}{{{{ {name} }}}}{{% if i > 1 %}}{{% set {name} = i %}}{{% endif %}}{{{{ {name} }}}}{{% endfor %}}",
        f"{{% generation %}}{{{{ {a} }}}}{{% set x = 3 %}}{{% endgeneration %}}{{{{ x }}}}",
        f"{{{{ {r.choice(['range(5)', 'range(2, 9, 3)', 'range(5, 0, -2)', 'range(3)[1:]'])}{r.choice(['|list', '', '|length', '|sum', '|join', '|last'])} }}}}",
        f"{{{{ '{r.choice(['%s', '%d|%5d', '%-5s|', '%05.1f', '%x %o', '%r', '%%', '%s %s', '%e', '%(a)s', '%+d', '%c', '%g', '%.2s', '%q'])}' % {r.choice(['n', 's', '(1, 2)', '(s, n)', 'd', 'f', 'neg', '[1]', 'li', 'none'])} }}}}",
        f"{{{{ '{r.choice(['{}', '{0}{0}', '{a}', '{:>5}|', '{:05d}', '{:.1f}', '{!r}', '{a[0]}', '{:,}', '{:x}', '{:^7}', '{:+.2e}', '{', '{0.name}', '{:%}', '{:*<6}'])}'.format({r.choice(['n', 's', 'f', '1234567', 'a=li', 'd', 'true', 'none', 'n, s'])}) }}}}",
        "{{ " + r.choice(CALLS) + " }}",
    ])


def fixed():
    """What is easily got wrong, written by hand."""
    return [
        "{{ 1e16 }} {{ 1e15 }} {{ 1.0 }} {{ 1e-5 }} {{ 0.0001 }} {{ 123456789.123456789 }} {{ -0.0 }} {{ 1e300 * 1e10 }}",
        "{{ 7 // -2 }} {{ -7 // 2 }} {{ 7 % -3 }} {{ -7 % 3 }} {{ 7.5 // -2 }} {{ -7.5 % 2 }} {{ 2 ** -1 }} {{ 2 ** 3 ** 2 }} {{ -2 ** 2 }}",
        "{{ 0.5|round }} {{ 1.5|round }} {{ 2.5|round }} {{ 2.675|round(2) }} {{ 5|round }} {{ 1234.5|round(-2) }} {{ 2.5|round|int }}",
        "{{ '3.7'|int }} {{ ' 42 '|int }} {{ '0x1F'|int(base=16) }} {{ '1_000'|int }} {{ 'x'|int(9) }} {{ none|int }} {{ '1e3'|float }} {{ 'inf'|float }} {{ 'nan'|int }}",
        "{{ [1, 'a\\n', none, true, 1.5, {'k': (1,)}, ()] }}", "{{ \"it's\" }} {{ [\"it's\", 'say \"x\"', \"both ' and \\\"\"] }} {{ ['\\x00\\x7f\\u200b\\u00a0é\\U0001F600'] }}",
        "{{ {'a': 1}.items() }} {{ {'a': 1}.keys() }} {{ {'a': 1}.values() }}", "{{ true + true }} {{ true == 1 }} {{ {1: 'x'}[true] }} {{ 1 in [true] }} {{ 'x' * true }}",
        "{{ 'ß'.upper() }} {{ 'ŉ'.upper() }} {{ 'ﬁn'.title() }} {{ 'ὈΔΥΣΣΕΎΣ'.lower() }} {{ 'İ'.lower()|length }} {{ 'ǆ'.title() }} {{ 'o\\'neil x'.title() }} {{ 'o\\'neil-x (y'|title }}",
        "{{ 'a\\u2028b\\x1cc\\r\\nd\\x85e'.splitlines() }} {{ '\\u3000x\\u00a0'|trim }} {{ ' a  b '.split() }} {{ ' a  b '.split(' ') }} {{ 'a b c'.split(none, 1) }} {{ '  a b  '.rsplit(none, 1) }}",
        "{{ 'aXbXc'.rsplit('X', 1) }} {{ 'abc'[-10:2] }} {{ 'abc'[5:] }} {{ '漢字'[1] }} {{ '漢字'|reverse }} {{ '漢字'|list }} {{ 'é漢'.find('漢') }}",
        "{{ {'b': [1, {}], 'a': [], '\\u2028': 'é</script>'}|tojson }} {{ {'b': [1, {}], 'a': []}|tojson(indent=4) }} {{ '\\x01\\t\\b\\x7f'|tojson }} {{ '🙂é'|tojson(ensure_ascii=true) }}",
        "{{ {1: 1, none: 2, true: 3, 1.5: 4}|tojson }} {{ [1.0, 1e100, 'nan'|float, 'inf'|float]|tojson }} {{ (1, 2)|tojson }} {{ [[], [[]]]|tojson(indent=1) }}",
        "{{ missing|tojson }}", "{{ [missing]|tojson }}", "{{ [missing] }} {{ missing ~ 'x' }} {{ missing|length }} {{ missing == missing }} {{ missing in [1] }} {{ missing or 'x' }} {{ 1 in missing }}",
        "{{ missing + 1 }}", "{{ missing.x }}", "{{ missing() }}", "{{ -missing }}", "{{ missing < 1 }}", "{{ missing|int }}", "{{ d.x.y }}",
        "{{ (1).x is defined }} {{ d.items is defined }} {{ d['items'] }} {{ d.get is callable }} {{ s.upper is callable }}",
        "{% for x in [1, 2] %}{% else %}E{% endfor %}{% for x in [] %}{% else %}E{% endfor %}{% for x in [1] %}{% continue %}{% else %}E{% endfor %}{% for x in [1] %}{% break %}{% else %}E{% endfor %}",
        "{% set ns = namespace(n=0) %}{% for i in range(6) if ns.n < 2 %}{% set ns.n = ns.n + 1 %}{{ i }}{{ loop.last }}{% endfor %}{{ ns.n }}",
        "{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}", "{% for a, b in [(1, 2, 3)] %}{{ a }}{% endfor %}", "{% set a, b = 'xy' %}{{ a }}{{ b }}",
        "{% for i in [1, 2, 3] %}{% for j in [1, 2] %}{{ loop.index }}{% endfor %}{{ loop.index }}{% endfor %}", "{% for i in [1] %}{% set loop = 1 %}{% endfor %}",
        "{% for m in people if m.age is defined %}{{ loop.length }}{{ loop.last }}{{ m.name }}{% endfor %}", "{% for c in 'a🙂' %}{{ c }}.{% endfor %}",
        "{% macro a(x) %}{% if x > 0 %}{{ x }}{{ a(x - 1) }}{% endif %}{% endmacro %}{{ a(5) }}", "{% macro r() %}{{ r() }}{% endmacro %}{{ r() }}",
        "{% macro a(x=n, y=x) %}{{ x }}{{ y }}{% endmacro %}{{ a() }}{{ a(1) }}{{ a(y=2) }}", "{% macro a(x) %}{{ x is defined }}{% endmacro %}{{ a() }}{{ a(none) }}", "{% macro a() %}{{ caller is defined }}{% endmacro %}{{ a() }}",
        "{% macro a(x) %}{{ x }}{% endmacro %}{{ a(1, 2) }}", "{% macro a(x) %}{{ x }}{% endmacro %}{{ a(z=2) }}", "{% macro a() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ a(1, b=2) }}{{ a(*[1, 2], **{'c': 3}) }}",
        "{{ x }}{% set x = 1 %}{{ x }}", "{% for i in [1] %}{{ n }}{% endfor %}{% set n = 2 %}{{ n }}", "{% macro a() %}{{ n }}{% endmacro %}{{ a() }}{% set n = 2 %}{{ a() }}",
        "{% if false %}{% set n = 2 %}{% endif %}{{ n }}", "{% if false %}{{ 1|nofilter }}{% endif %}ok", "{% for i in [] %}{{ 1|nofilter }}{% endfor %}ok", "{{ (1|nofilter) if false else 'ok' }}", "{% if false %}{% for i in [] %}{{ 1 is notest }}{% endfor %}{% endif %}ok",
        "{% set ns = namespace() %}{% set ns.x = 1 %}{{ ns.x }}{{ ns.y }}{{ ns['x'] }}{{ ns }}", "{% set d.x = 1 %}", "{% set ns = namespace() %}{% set ns._x = 1 %}", "{% set ns = namespace(a=[]) %}{{ ns.a.append(1) }}",
        "{% set x = li|map('string') %}{{ x|list }}{{ x|list }}{{ x is iterable }}{{ x is sequence }}", "{{ li|map('string')|length }}", "{{ li|map('string') }}", "{{ (li|map('string')) and 1 }}", "{{ li|select('odd')|first }}", "{{ li|map('string')|last }}",
        "{{ '%s' }}{{ '{{' }}{{ \"{%\" }}{{ '#}' }}{# {{ #}{# '#}", "{{ 'a' 'b' \"c\" }}{{ 'a\\\nb' }}{{ '\\q\\x41\\101\\u00e9' }}", "{{ '\\ud800' }}", "{{ 'x\\", "{{ 'x", "{{", "{%", "{#", "{{ }}", "{% %}", "{{ 1 + }}", "{% if %}{% endif %}", "{% endif %}", "{% if 1 %}", "{% for %}", "{% foo %}",
        "{{ [1, 2 }}", "{{ (1 }}", "{{ 1) }}", "{{ {1: } }}", "{{ 1 ! 2 }}", "{{ a..b }}", "{{ 1.5.5 }}", "{{ 012 }}", "{{ 0x1f + 0b11 + 0o7 + 1_000 }}", "{{ 1__0 }}", "{{ true.x }}", "{{ not not 1 }}", "{{ 1 if 0 }}", "{{ (1 if 0) is defined }}", "{{ 1 if 0 else 2 if 0 else 3 }}",
        "{{ 1 is odd is even }}", "{{ 3 is odd and 2 is even }}", "{{ 3 is not even }}", "{{ 5 is divisibleby 5 + 1 }}", "{{ 'a' is in 'abc' }}", "{{ [] is sequence }}{{ {} is mapping }}{{ 'x' is sequence }}{{ 1 is number }}{{ true is integer }}{{ 1.0 is integer }}",
        "{{ -1|abs }} {{ (-1)|abs }} {{ -n|string }} {{ 2 ** n|int }} {{ 'a' ~ 1 + 2 }} {{ 1 ~ 2 * 3 }} {{ 'a'|upper ~ 'b'|upper }} {{ not n|string == '7' }}", "{{ 10 - 2 - 3 }} {{ 2 * 3 % 4 }} {{ 8 / 4 / 2 }} {{ 1 < 2 == true }}",
        "{{ li[0], li[1] }} {{ (1) }} {{ (1,) }} {{ () }}", "{{ d['b'] }}{{ d.b }}{{ d[missing] }}", "{{ li['a'] }}", "{{ 'abc'.0 }}", "{{ li.1 }}", "{{ d[[1]] }}", "{{ [1] in d }}", "{{ {[1]: 2} }}",
        "{% break %}", "{% for i in [1] %}{% macro m() %}{% break %}{% endmacro %}{% endfor %}", "{% for i in [1, 2] %}{% set x %}{% break %}{% endset %}{% endfor %}ok", "{% for i in [1,2] %}{% generation %}{% break %}{% endgeneration %}{% endfor %}",
        "{% include 'x' %}", "{% import 'x' as y %}", "{% extends 'x' %}", "{% do x %}", "{% from 'x' import y %}", "{% set true = 1 %}", "{% set 1 = 1 %}", "{% set x.y.z = 1 %}", "{% for true in [1] %}{% endfor %}",
        "{% set x = 1 if n else 2 %}{{ x }}{% set x = 1, 2 %}{{ x }}{% set x = [1, 2,] %}{{ x }}{% set (a, b) = (1, 2) %}{{ a }}{% set x = %}", "{{ \"a\" if t }}{{ 'b' if not t }}", "{% if n is defined and n > 5 and n in li or n == 7 %}y{% endif %}",
        "{{ ''.join(['a', 1]) }}", "{{ 'a'.join('xyz') }}", "{{ ','.join(d) }}", "{{ 'x'.format }}", "{{ namespace }}", "{{ 'a' < 1 }}", "{{ none < 1 }}", "{{ [1] < [1, 2] }} {{ (1, 2) < (1, 3) }} {{ 'a' < 'b' < 'c' }} {{ 'Z' < 'a' }}", "{{ 1 == 1.0 }} {{ '1' == 1 }} {{ none == false }} {{ [1] == (1,) }}",
        "{{ 'a'|replace('', 'x') }} {{ 'aaa'|replace('a', 'b', 2) }} {{ 'abc'|replace('b', none) }}", "{{ 'x\ny\n\nz'|indent }}|{{ 'x\ny'|indent(2, first=true) }}|{{ 'x\n\ny'|indent(2, blank=true) }}|{{ 'x\n'|indent }}", "{{ 5|indent }}",
        "{{ people|groupby('age', default=0)|list }}", "{% for g in people|groupby('age', default=0) %}{{ g[0] }}{{ g[1]|length }};{% endfor %}", "{{ people|sort(attribute='name')|map(attribute='name')|list }}", "{{ people|map(attribute='tags.0')|list }}", "{{ [1, 'a']|sort }}", "{{ [[2, 1], [1]]|sort }}",
        "{{ ls|sort }} {{ ls|unique|list }} {{ ['a', 'A']|unique|list }} {{ ls|max }} {{ ls|min }} {{ []|max }} {{ []|first }} {{ [[]]|sum(start=[]) }} {{ ['a']|sum }}", "{{ li|batch(2)|map('list')|list }} {{ range(10)|slice(3)|list }}",
        "A{% if t -%}  \n B {%- endif %} \n C", "A  {%- if t %}\nB\n{%+ endif %}\nC", "A\n  {%+ if t +%}\nB\n  {% endif %}\nC", "  {{ n }}  \n  {# c #}  \n  {% set x = 1 %}  \nD\n", "{% if t %}\n\n\nX{% endif %}\n\n", "\n\n{% if t %}a{% endif %}\n", "{{ n }}\n", "{{ n -}}  \n  x", "x\n  {{- n }}", "a {#- x -#} b", "  {#+ x #}\nb", "a\r\n  {% if t %}\r\nb{% endif %}\r", "x{% raw -%}  {{ a }}  {%- endraw %}y\n", "{% raw %}{% endraw %}\nx", "{%raw%}{%x%}{%endraw%}", "{% raw %}",
        "{{ ('a', 'b')|join('/') }} {{ 'abc'|join('-') }} {{ 5|join }}", "{{ d|length }} {{ d|list }} {{ d|first }} {{ d|join }} {{ d|sort }} {{ d|items|list }} {{ d|dictsort }}", "{{ d|last }}", "{{ d|reverse|list }}", "{{ 5|items }}", "{{ missing|items|list }}", "{{ missing|dictsort }}", "{{ none|items|list }}",
        "{{ 1|default(2) }} {{ none|default(2) }} {{ none|default(2, true) }} {{ ''|d('x', boolean=true) }} {{ missing|default }} {{ missing.x|default(1) }}", "{{ '%5.1f|%-6s|%+d|%03d|%x' % (3.14159, 'ab', 5, 7, 255) }}", "{{ '%s' % li }} {{ '%s' % (li,) }} {{ '%s %s' % (1,) }}", "{{ 'abc' % 1 }}", "{{ 'abc' % {} }}",
        "{% call m() %}x{% endcall %}", "{% macro m() %}{{ caller() }}{% endmacro %}{% call m() %}x{{ n }}{% endcall %}", "{% macro m(x) %}{{ x }}{% endmacro %}{% call m(1) %}x{% endcall %}", "{% with %}{% set n = 1 %}{{ n }}{% endwith %}{{ n }}", "{% filter upper %}a{{ s }}{% endfilter %}",
        "{{ loop }}", "{{ loop.index }}", "{% for i in [1] %}{{ loop }}{% endfor %}", "{% for i in li %}{% if not loop.last %}{{ loop.nextitem > i }}{% endif %}{% endfor %}", "{% for i in li recursive %}{{ i }}{% endfor %}", "{% set x = {'a': [1, {'b': 2}]} %}{{ x.a[1].b }}{{ x['a'][0] }}{{ x.a.1.b }}",
    ]


SKIP = ("{% for i in li recursive %}", "{% for i in [1] %}{{ loop }}{% endfor %}")  # refused here, by intent

COMPLEX = re.compile(r"\b(g|neg|4|0\.1)\)* \*\*")  # powers of negative numbers may be complex ones


def comparable(template, out):
    """Not: what shows a memory address, and what Jinja answers otherwise without its constant folding, which turns some
    errors into nothing and reads -4 ** x as -(4 ** x)."""
    if any(s in template for s in SKIP) or COMPLEX.search(template) or render(template, CONTEXT, PLAIN) != out:
        return False
    return not (isinstance(out, str) and (" at 0x" in out or "<built-in" in out or "<class" in out or "function" in out or
                                         "Markup(" in out))


def write_expressions():
    r = random.Random(20240726)
    templates = fixed()
    seen = set(templates)
    for make, count in ((expression, 2600), (whitespace, 500), (statements, 1100)):
        made = 0
        while made < count:
            template = make(r)
            if template not in seen:
                seen.add(template)
                templates.append(template)
                made += 1
    cases = []
    for template in templates:
        out = render(template, CONTEXT)
        if comparable(template, out) and len(json.dumps(out)) < 600:
            cases.append([template, out])
    errors = sum(not isinstance(out, str) for _, out in cases)
    print(f"{len(cases)} generated templates: {len(cases) - errors} texts, {errors} errors")
    lines = ",\n".join(json.dumps(c, ensure_ascii=False) for c in cases)
    (GOLDEN / "expressions.json").write_text(
        f'{{"context": {json.dumps(CONTEXT, ensure_ascii=False)},\n"cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    write_rendered() if (GOLDEN / "conversations.json").exists() else None
    write_expressions()
