#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What is valid under JSON schemas, as PyPI's `jsonschema` says, and what regular expressions match, as Python's `re` says.

  json_schema.py        writes tests/golden/json_schema.json and tests/golden/regex.json (pip install jsonschema)

Instances are written as docs/formats/grammar.md says, properties in the order of the schema, once with a space behind , and : and once
without. Objects with `properties` and without `additionalProperties` have no other properties under a grammar, so the oracle gets
`unevaluatedProperties: false` there.
"""
import itertools
import json
import pathlib
import random
import re
import sys

sys.path.pop(0)  # this folder: the script has the name of the library it needs
import jsonschema

GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden"

# Values that every schema is tried on.
POOL = [None, True, False, 0, 1, -1, 2, 5, 7, 10, 99, 100, 101, 0.5, -0.5, 1.5, 3.75, 99.5, 1e-7, 12345678901234567890, "", "a", "b",
        "ab", "abc", "abcd", "red", "1", "x1", 'q"\\/\n\t\x01', "\u00e9", "\u20ac5", "\U0001f600", "2024-02-29", [], [1], [1, 2],
        ["a"], ["a", 1], [1, "a"], [[1], []], [None], {}, {"a": 1}, {"b": 2}, {"a": "x"}, {"a": 1, "b": 2}, {"a": 1, "b": "x"},
        {"name": "Al"}, {"z": 0}, {"a": 1, "z": 0}, {"a": {}}, {"a": None}, {"kind": "circle", "r": 1}]

OBJECT = {"type": "object"}
TREE = {"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {
    "v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
    "required": ["v", "next"], "additionalProperties": False}}}
PERSON = {"title": "Person", "type": "object", "properties": {
    "name": {"type": "string", "minLength": 1, "description": "full name"}, "age": {"type": "integer", "minimum": 0, "maximum": 130},
    "email": {"type": ["string", "null"]}, "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 3}},
    "required": ["name", "age"]}

# (schema, further instances)
CASES = [
    (True, [{"a": [1, {"b": [None]}]}]),
    ({}, [[[[[]]]]]),
    ({"type": "null"}, []),
    ({"type": "boolean"}, []),
    ({"type": "string"}, ["\x7f", "\u2028", "a" * 100]),
    ({"type": "number"}, [1e300, -1e-300, -0.25]),
    ({"type": "integer"}, [-(10 ** 25)]),
    ({"type": "array"}, []),
    (OBJECT, [{"": {"": {}}}]),
    ({"type": ["integer", "null", "string"]}, []),
    ({"type": ["number", "integer"]}, []),
    ({"enum": ["red", "green", "re", 1, 2.5, None, True, [1, 2], {"a": 1, "b": 2}]}, ["green", "re", "r", 2.5]),
    ({"enum": ["a", "ab", "abc", "b", ""]}, ["ac", "abcd"]),
    ({"type": "string", "enum": ["a", 1, "b"]}, []),
    ({"const": {"a": [1, {"b": None}]}}, [{"a": [1, {"b": None}]}, {"a": [1, {"b": 1}]}]),
    ({"const": "q\"\\/\n\t\x01"}, []),
    ({"type": "integer", "minimum": 5}, [4, 5, 6, 49, 50, 1234]),
    ({"type": "integer", "maximum": 100}, [-12345, 1000]),
    ({"type": "integer", "minimum": -105, "maximum": 99}, list(range(-120, 130, 3)) + [-105, -106, -104, 99, 98]),
    ({"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 10}, list(range(-2, 13))),
    ({"type": "integer", "minimum": 0.5, "maximum": 9.5}, list(range(-2, 13))),
    ({"type": "integer", "minimum": -9.5, "exclusiveMaximum": -1}, list(range(-12, 3))),
    ({"type": "integer", "minimum": 950, "maximum": 12049}, [949, 950, 999, 1000, 9999, 10000, 11999, 12000, 12049, 12050, 20000]),
    ({"type": "integer", "exclusiveMaximum": 0}, list(range(-12, 3))),
    ({"type": "integer", "minimum": 2 ** 53, "maximum": 2 ** 63 - 1}, [2 ** 53 - 1, 2 ** 53, 2 ** 63 - 1, 2 ** 63]),
    ({"type": "number", "minimum": 0, "maximum": 1}, [0.25, 1, 1.0001, 0.0001, -0.0001]),
    ({"type": "number", "exclusiveMinimum": 0}, [0.001, 0.0625, -0.001, 1000.5]),
    ({"type": "number", "exclusiveMinimum": -1.25, "exclusiveMaximum": 2.75},
     [-1.25, -1.2499, -1.3, -1.2, -1, -0.001, 2.75, 2.749, 2.7, 2.751, 2.8, 2]),
    ({"type": "number", "minimum": 12.345, "maximum": 12.3456}, [12.345, 12.3456, 12.34567, 12.3455, 12.344, 12.35, 12, 13]),
    ({"type": "number", "maximum": -0.5}, [-0.5, -0.499, -0.51, -100.25, -1]),
    ({"type": "string", "minLength": 2}, ["\u00e9\u00e9", "\U0001f600", "\U0001f600\n"]),
    ({"type": "string", "maxLength": 2}, ["\u00e9\u00e9", "\U0001f600\U0001f600\U0001f600", "\\\\"]),
    ({"type": "string", "minLength": 1, "maxLength": 3}, ["\n\n\n", "\n\n\n\n"]),
    ({"type": "string", "pattern": "^[a-z]{2,3}$"}, ["aB"]),
    ({"type": "string", "pattern": "b"}, ["xxbxx", "xx", "\nb\n", "b\"b"]),
    ({"type": "string", "pattern": "^a|c$"}, ["ax", "xc", "xa", "c", "cx"]),
    ({"type": "string", "pattern": "^(\\d{1,3}|[^0-9\"]+)$"}, ["12", "1234", "\\", "\"", "1a", "\u00e9\u20ac"]),
    ({"type": "string", "format": "date"}, ["2023-02-29", "2000-02-29", "1900-02-29", "2024-13-01", "2024-04-31", "2024-12-31",
                                           "0001-01-01", "24-01-01", "2024-1-1"]),
    ({"type": "string", "format": "ipv4"}, ["1.2.3.4", "255.255.255.255", "256.1.1.1", "1.2.3", "1.2.3.4.5", "0.0.0.0"]),
    ({"type": "string", "format": "uuid"}, ["123e4567-e89b-12d3-a456-426614174000", "123e4567e89b12d3a456426614174000",
                                           "123E4567-E89B-12D3-A456-42661417400G"]),
    ({"type": "array", "items": {"type": "integer"}}, [[1, 2, 3, "a"]]),
    ({"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3}, [[1, 2, 3], [1, 2, 3, 4]]),
    ({"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False}, [[1, "a", 2]]),
    ({"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": {"type": "null"}, "minItems": 1},
     [[1, "a", None], [1, "a", 1], [1, "a", None, None]]),
    ({"type": "array", "prefixItems": [{"type": "integer"}], "minItems": 3, "maxItems": 4}, [[1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4, 5]]),
    ({"type": "array", "items": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}, "maxItems": 2},
     [[[True], [False, True]], [[True, True, True]]]),
    ({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}, "required": ["a", "b"]},
     [{"a": 1, "b": "x"}, {"a": 1, "b": "x", "c": 1}]),
    ({"type": "object", "properties": {"a": {"type": "integer"}, "b": {}, "c": {"type": "null"}}}, [
        dict(pairs) for n in range(4) for pairs in itertools.combinations([("a", 1), ("b", []), ("c", None)], n)]),
    ({"type": "object", "properties": {"a": {}, "b": {}, "c": {}, "d": {}}, "required": ["c"], "additionalProperties": False}, [
        dict(pairs) for n in range(5) for pairs in itertools.combinations([("a", 1), ("b", 2), ("c", 3), ("d", 4)], n)]),
    ({"type": "object", "properties": {"a": {"type": "integer"}, "ab": {}}, "additionalProperties": {"type": "string"}},
     [{"b": "x"}, {"b": 1}, {"a": 1, "c": "x"}, {"a": 1, "abc": "x", "": "y"}, {"a": "x"}, {"aa": "x"}, {"\n": "x"}]),
    ({"type": "object", "additionalProperties": {"type": "integer"}}, [{"x": 1, "y": 2}, {"x": 1, "y": "2"}]),
    ({"type": "object", "properties": {"q\"\n": {"type": "integer"}}, "required": ["q\"\n"]}, [{"q\"\n": 1}]),
    ({"type": "object", "required": ["a"]}, []),
    ({"properties": {"a": {"type": "integer"}}}, []),
    ({"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 1}]}, []),
    ({"anyOf": [{"type": "object", "properties": {"kind": {"const": "circle"}, "r": {"type": "number"}}, "required": ["kind", "r"]},
                {"type": "object", "properties": {"kind": {"const": "box"}, "w": {"type": "number"}}, "required": ["kind"]}]},
     [{"kind": "box"}, {"kind": "box", "w": 2}, {"kind": "circle", "w": 2}]),
    ({"oneOf": [{"type": "integer"}, {"type": "null"}]}, []),
    ({"type": "integer", "anyOf": [{"minimum": 10}, {"maximum": 2}]}, []),
    ({"allOf": [{"type": "integer"}, {"minimum": 2}, {"maximum": 9, "minimum": 1}]}, []),
    ({"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
                {"properties": {"b": {"type": ["integer", "string"]}, "a": {"minimum": 1}}}]}, [{"a": 0}, {"a": 1, "b": []}]),
    ({"$ref": "#/$defs/p", "$defs": {"p": {"type": "integer", "minimum": 3}}}, []),
    ({"type": "array", "items": {"$ref": "#"}}, [[[], [[]]]]),
    (TREE, [{"v": 1, "next": None}, {"v": 1, "next": {"v": 2, "next": None}}, {"v": 1, "next": {"v": 2}}]),
    (PERSON, [{"name": "Al", "age": 3}, {"name": "", "age": 3}, {"name": "Al", "age": 131}, {"name": "Al", "age": 3, "email": None},
              {"name": "Al", "age": 3, "email": "x", "tags": ["a", "b"]}, {"name": "Al", "age": 3, "tags": ["a", "b", "c", "d"]},
              {"name": "Al", "age": 3, "tags": []}, {"name": "Al", "email": None}]),
    ({"definitions": {"a/b": {"type": "null"}, "c~d": {"type": "boolean"}},
      "anyOf": [{"$ref": "#/definitions/a~1b"}, {"$ref": "#/definitions/c~0d"}]}, []),
]


def closed(schema, inside_all_of=False):
    """The schema as the grammar takes it: no properties but those listed."""
    if not isinstance(schema, dict):
        return schema
    out = dict(schema)
    lists_some = "properties" in schema or any("properties" in s for s in schema.get("allOf", []) if isinstance(s, dict))
    if lists_some and "additionalProperties" not in schema and not inside_all_of:
        out["unevaluatedProperties"] = False
    for key, value in schema.items():
        if key in ("properties", "$defs", "definitions"):
            out[key] = {k: closed(v) for k, v in value.items()}
        elif key in ("anyOf", "oneOf", "prefixItems"):
            out[key] = [closed(v) for v in value]
        elif key == "allOf":
            out[key] = [closed(v, True) for v in value]
        elif key in ("items", "additionalProperties"):
            out[key] = closed(value)
    return out


def spellings(value):
    spaced = json.dumps(value, ensure_ascii=False)
    tight = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return [spaced] if spaced == tight else [spaced, tight]


def bounded(schema):
    return any(k in json.dumps(schema) for k in ("inimum", "aximum"))


def schema_cases():
    cases = []
    for schema, more in CASES:
        validator = jsonschema.Draft202012Validator(closed(schema), format_checker=jsonschema.FormatChecker())
        case = {"schema": json.dumps(schema), "valid": [], "invalid": []}
        for value in POOL + more:
            if bounded(schema) and isinstance(value, float) and "e" in json.dumps(value):
                continue  # under a bound numbers have no exponent
            case["valid" if validator.is_valid(value) else "invalid"] += spellings(value)
        # Texts that are no JSON, or not in the one form.
        case["invalid"] += ["", " ", "{", "[1,", "\"", "tru", "[1 ,2]", "{\"a\" :1}", "01", "1.", "\"\\ud800\"", "\"\n\"", "[1],"]
        cases.append(case)
    return cases


PATTERNS = ["", "a", "abc", "a|b", "a|", "(a|b)*", "(a|b)*abb", "a*b+c?", "a{2}", "a{2,}", "a{1,3}", "(ab){2,3}", "[abc]", "[^abc]", "[a-c]+",
            "[^a-c]+", "[-a]", "[a-]", "[\\]a]", "[\\-a]+", ".", ".*", "a.c", "\\d+", "\\D+", "\\w+", "\\W", "\\s", "\\S+", "[\\d_]+", "[^\\d]",
            "[^\\w]+", "\\.", "\\\\", "\\(a\\)", "\\t|\\n", "\\x61", "\\u0061b", "\\u{1F600}", "\\uD83D\\uDE00", "(?:ab|a)c", "(?P<n>a)b", "a??b*?",
            "((a)(b(c)?)?)?", "(a?){3}", "(a*)*b", "(a|ab)(c|bc)", "\u00e9+", "[\u00e0-\u00ff]", "[^\u00e9]", "\\$\\^", "]", "}", "a}",
            "[a-z]+@[a-z]+\\.com", "(0|[1-9]\\d*)(\\.\\d+)?", "#[0-9a-fA-F]{6}", "(\\d{3}-){2}\\d{4}", "([01]\\d|2[0-3]):[0-5]\\d", "^abc$", "^a|b$"]

SPACE = "\\t-\\r \\u00a0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000\\ufeff"


def to_python(pattern):
    """ECMA-262's meaning in Python's notation."""
    sets = {"d": "0-9", "w": "A-Za-z0-9_", "s": SPACE}
    out, inside, i = "", False, 0
    while i < len(pattern):
        c, two = pattern[i], pattern[i:i + 2]
        pair = re.match(r"\\u(D[89AB]..)\\u(D[C-F]..)", pattern[i:])
        braces = re.match(r"\\u\{([0-9A-F]+)\}", pattern[i:])
        if pair or braces:
            found = pair or braces
            code = (0x10000 + ((int(pair[1], 16) - 0xD800) << 10) + int(pair[2], 16) - 0xDC00) if pair else int(braces[1], 16)
            out, i = out + re.escape(chr(code)), i + found.end()
            continue
        if c == "\\":
            lower = two[1].lower()
            if lower in sets and not inside:
                out += "[" + ("^" if two[1].isupper() else "") + sets[lower] + "]"
            elif lower in sets:
                out += sets[lower]
            else:
                out += two
            i += 2
            continue
        if c == "." and not inside:
            out += "[^\\n\\r\\u2028\\u2029]"
        else:
            inside = c == "[" or (inside and c != "]")
            out += c
        i += 1
    return out


def regex_cases():
    rng = random.Random(1)
    strings = ["", "a", "b", "c", "ab", "abc", "abb", "aabb", "ac", "abcabc", "ababab", "aab", "aaa", "aaaa", "bbb", "-", "]", "}", "a}", ".", "\\", "(a)",
               "\t", "\n", " ", "\u00a0", "\u3000", "_", "1", "12", "1_", "\u0663", "\u00e9", "\u00e9\u00e9", "\u20ac", "\U0001f600", "\u2028", "$^", "A", "Z9",
               "joe@x.com", "joe@xcom", "0", "01", "10.5", "10.", "#00ffAA", "#00ffA", "123-456-7890", "123-4567890", "23:59", "24:00", "abx", "xb", "\x00",
               "\x7f", "\u00ff", "\u0100", "\uffff", "\U0010ffff"]
    strings += ["".join(rng.choice("abc1.-") for _ in range(rng.randrange(1, 7))) for _ in range(40)]
    cases = []
    for pattern in PATTERNS:
        compiled = re.compile(to_python(pattern))
        match = [bool(compiled.fullmatch(s)) for s in strings]
        cases.append({"pattern": pattern, "match": "".join("01"[m] for m in match)})
    return {"strings": strings, "cases": cases}


def write(name, value):
    path = GOLDEN / name
    path.write_text(json.dumps(value, ensure_ascii=True, separators=(",", ":")) + "\n")
    print(path, path.stat().st_size)


if __name__ == "__main__":
    cases = schema_cases()
    write("json_schema.json", cases)
    write("regex.json", regex_cases())
    print(len(cases), "schemas,", sum(len(c["valid"]) for c in cases), "valid,", sum(len(c["invalid"]) for c in cases), "invalid texts")
