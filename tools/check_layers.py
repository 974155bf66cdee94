#!/usr/bin/env python3
"""A folder may include only itself and folders on lower floors. Also: one line too long a file is a smell."""
import pathlib, re, sys
FLOORS = [["base"], ["tensor"], ["quant"], ["recipe"], ["kernels"], ["backend", "io", "text"],
          ["cache"], ["model"], ["engine"], ["apps"]]
FLOOR = {name: i for i, names in enumerate(FLOORS) for name in names}
WARN, FAIL = 450, 500
src = pathlib.Path(__file__).parent.parent / "src"
bad = 0
for f in sorted(src.rglob("*")):
    if f.suffix not in {".h", ".cc", ".cu", ".cuh", ".inl"}: continue
    me = f.relative_to(src).parts[0]
    lines = f.read_text().splitlines()
    for n, line in enumerate(lines, 1):
        m = re.match(r'\s*#\s*include\s+"([^"/]+)/', line)
        if m and m[1] in FLOOR and m[1] != me and FLOOR[m[1]] >= FLOOR[me]:
            print(f"{f}:{n}: {me} (floor {FLOOR[me]}) may not include {m[1]} (floor {FLOOR[m[1]]})"); bad = 1
    if len(lines) > WARN: print(f"{f}: {len(lines)} lines"); bad |= len(lines) > FAIL
sys.exit(bad)
