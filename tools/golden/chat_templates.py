#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Records what Jinja renders in the environment that transformers 5 builds for chat templates.

    python3 -m venv out/golden && out/golden/bin/pip install jinja2==3.1.6
    out/golden/bin/python tools/golden/chat_templates.py        all that is below
    out/golden/bin/python tools/golden/chat_templates.py DIR    rendered.json for the *.jinja of a folder, for
                                                                NIBBLE_CHAT_ORACLE=DIR chat_template_test

Reads from tests/golden/chat: *.jinja, templates in the manner of well-known families; conversations.json; handwritten.json,
small templates with what is easily got wrong. Writes there:
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
import sys
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
def write_rendered(folder):
    conversations = json.loads((GOLDEN / "conversations.json").read_text())
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    rows = {}
    for path in sorted(folder.glob("*.jinja")):
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
    (folder / "rendered.json").write_text(
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


# Words in angle brackets are filled in: <A> and <B> by expressions, the others from the lists below.
STATEMENTS = [
    "{% set <NAME> = <A> %}{{ <NAME> }}",
    "{% if <A> %}A{% elif <B> %}B{% else %}C{% endif %}",
    "{% set ns = namespace(v='') %}{% for i in <ITERABLE> %}<BODY>,{% else %}none{% endfor %}{{ ns.v }}{{ x }}",
    "{% set ns = namespace(v='') %}{% for i in <ITERABLE> if i %}<BODY>;{% endfor %}{{ ns }}",
    "{% for k, v in <PAIRS> %}{{ k }}={{ v }} {% endfor %}",
    "{% macro m(p, q=<A>) %}[{{ p }}|{{ q }}|{{ kwargs }}{{ varargs }}]{% endmacro %}{{ m(<B>) }}{{ m(1, q=2, r=3) }}{{ m(1, 2, 3) }}",
    "{% macro m(p, q=<A>) %}({{ p }}{{ n }}{{ x }}){% endmacro %}{% set x = 1 %}{{ m() }}{{ m(q=1) }}{{ m(1, 2, 3) if e else m }}",
    "{% set <NAME> %}<{{ <A> }}>{% endset %}{{ <NAME>|length }}{{ <NAME> }}",
    "{% set <NAME> | upper | replace('E', '3') %}<{{ <A> }}>{% endset %}{{ <NAME> }}",
    "{% filter <FILTER> %} a {{ <A> }} {% endfilter %}",
    "{% with x = <A>, y = n %}{{ x }}{{ y }}{% set n = 1 %}{% endwith %}{{ n }}{{ x }}",
    "{% macro w() %}<{{ caller(<A>) }}>{% endmacro %}{% call(z) w() %}{{ z }}{{ n }}{% endcall %}",
    "{% if t %}{% set <NAME> = 5 %}{% endif %}{{ <NAME> }}{% for i in li %}{% set <NAME> = i %}{{ <NAME> }}{% endfor %}{{ <NAME> }}",
    "{% for i in li %}{{ <NAME> }}{% endfor %}{% set <NAME> = 5 %}{% for i in li %}{{ <NAME> }}"
    "{% if i > 1 %}{% set <NAME> = i %}{% endif %}{{ <NAME> }}{% endfor %}",
    "{% generation %}{{ <A> }}{% set x = 3 %}{% endgeneration %}{{ x }}",
    "{{ <RANGE><OF> }}",
    "{{ '<PERCENT>' % <VALUE> }}",
    "{{ '<BRACE>'.format(<VALUES>) }}",
    "{{ <CALL> }}",
]
FILL = {
    "NAME": ["x", "n", "s", "missing"],
    "ITERABLE": LISTS + DICTS + ["d.items()", "s", "missing", "li|reverse", "people|map(attribute='name')", "5"],
    "BODY": ["{{ i }}", "{{ loop.index }}:{{ i }}", "{{ loop.first }}{{ loop.last }}", "{{ loop.previtem }}<{{ loop.nextitem }}",
             "{{ loop.length }}-{{ loop.revindex0 }}", "{% if loop.index == 2 %}{% continue %}{% endif %}{{ i }}",
             "{% if loop.index0 == 1 %}{% break %}{% endif %}{{ i }}", "{% set x = i %}{{ x }}", "{{ loop.cycle('a', 'b') }}",
             "{% set ns.v = ns.v ~ i %}", "{{ loop.changed(i) }}", "{% for j in li %}{{ loop.index }}{{ i }}{% endfor %}",
             "{% if i is string %}{% break %}{% endif %}", "{{ x }}"],
    "PAIRS": ["d.items()", "d|dictsort", "nest|items", "[(1, 2), (3, 4)]", "people", "ls"],
    "FILTER": ["upper", "trim", "length", "indent(2)", "list", "nofilter"],
    "RANGE": ["range(5)", "range(2, 9, 3)", "range(5, 0, -2)", "range(3)[1:]"],
    "OF": ["|list", "", "|length", "|sum", "|join", "|last"],
    "PERCENT": ["%s", "%d|%5d", "%-5s|", "%05.1f", "%x %o", "%r", "%%", "%s %s", "%e", "%(a)s", "%+d", "%c", "%g", "%.2s", "%q"],
    "VALUE": ["n", "s", "(1, 2)", "(s, n)", "d", "f", "neg", "[1]", "li", "none"],
    "BRACE": ["{}", "{0}{0}", "{a}", "{:>5}|", "{:05d}", "{:.1f}", "{!r}", "{a[0]}", "{:,}", "{:x}", "{:^7}", "{:+.2e}", "{", "{0.name}",
              "{:%}", "{:*<6}"],
    "VALUES": ["n", "s", "f", "1234567", "a=li", "d", "true", "none", "n, s"],
    "CALL": ["strftime_now('%Y-%m-%d')", "strftime_now('%d %b %Y %H:%M')", "raise_exception('no')", "dict(li)",
             "dict([(1, 2)], a=3)", "namespace(a=1).a", "namespace(d).b", "namespace(_a=1)", "range(100001)|length",
             "range(1, 2, 0)", "range(1.0)", "n()", "d.items(1)", "range()", "range(0)|list", "strftime_now(1)", "dict(a=1, b=2)",
             "dict(d, a=2)|length", "namespace(1)"],
}


def statements(r):
    text = r.choice(STATEMENTS).replace("<A>", value(r, 1)).replace("<B>", value(r, 1))
    for word, choices in FILL.items():
        text = text.replace(f"<{word}>", r.choice(choices))
    return text


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
    templates = json.loads((GOLDEN / "handwritten.json").read_text())
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
    write_rendered(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN)
    if len(sys.argv) == 1:
        write_expressions()
