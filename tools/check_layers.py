#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks the shape of the tree: check_layers.py [ROOT].

Errors: a file of src/ that includes a folder on the same or a higher floor, an application that includes another one (but
the command line may include the server, which is a library), a folder of src/ without a floor, and a file above 500 lines. Warnings: a file above 450 lines, a function above 60.
"""
import pathlib
import re
import sys

FLOORS = [["base"], ["tensor"], ["quant"], ["recipe"], ["kernels"], ["backend", "io", "text"],
          ["cache"], ["model"], ["engine"], ["apps"]]
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
CPP = {".h", ".cc", ".cu", ".cuh", ".inl"}
CODE = CPP | {".py", ".sh"}
FOLDERS = ["src", "tests", "bench", "tools", "python"]
WARN_LINES, MAX_LINES, MAX_FUNCTION = 450, 500, 60

INCLUDE = re.compile(r'\s*#\s*include\s+"([^"/]+)/([^"/]+)')
# With clang-format's Google style a function body at namespace scope opens at column 0 and closes with "}" there.
FUNCTION = re.compile(r"^[A-Za-z_][^;#]*\)[^;={]*\{$")
FUNCTION_END = re.compile(r"^\}")


def check_includes(path, parts, lines):
    """parts: the path below src/. Yields errors."""
    folder = parts[0]
    if folder not in FLOOR:
        yield f"{path}: folder '{folder}' has no floor; give it one in tools/check_layers.py and docs/architecture.md"
        return
    for number, line in enumerate(lines, 1):
        match = INCLUDE.match(line)
        if not match or match[1] not in FLOOR:
            continue
        target, sub = match[1], match[2]
        if target != folder and FLOOR[target] >= FLOOR[folder]:
            yield (f"{path}:{number}: {folder} (floor {FLOOR[folder]}) may not include "
                   f"{target} (floor {FLOOR[target]})")
        if target == folder == "apps" and sub != parts[1] and (parts[1], sub) != ("cli", "server"):
            yield f"{path}:{number}: application {parts[1]} may not include application {sub}"


def long_functions(path, lines):
    start = None
    for number, line in enumerate(lines, 1):
        if FUNCTION.match(line):
            start = number
        elif start and FUNCTION_END.match(line):
            if number - start + 1 > MAX_FUNCTION:
                yield f"{path}:{start}: function of {number - start + 1} lines, wanted at most {MAX_FUNCTION}"
            start = None


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent).resolve()
    errors, warnings = [], []
    for folder in FOLDERS:
        for file in sorted((root / folder).rglob("*")):
            if file.suffix not in CODE or not file.is_file():
                continue
            path = file.relative_to(root)
            lines = file.read_text().splitlines()
            if len(lines) > MAX_LINES:
                errors.append(f"{path}: {len(lines)} lines, at most {MAX_LINES}")
            elif len(lines) > WARN_LINES:
                warnings.append(f"{path}: {len(lines)} lines, close to {MAX_LINES}")
            if file.suffix in CPP:
                warnings += long_functions(path, lines)
                if folder == "src":
                    errors += check_includes(path, path.parts[1:], lines)
    for line in warnings:
        print("warning:", line)
    for line in errors:
        print("error:", line)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
