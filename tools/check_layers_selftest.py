#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Shows that check_layers.py fails on each kind of seeded violation, names it, and passes a tree without one."""
import pathlib
import subprocess
import sys
import tempfile

CHECK = pathlib.Path(__file__).parent / "check_layers.py"
CLEAN = {"src/base/a.h": '#include <vector>\n', "src/quant/b.h": '#include "base/a.h"\n#include "quant/c.h"\n',
         "src/apps/cli/main.cc": '#include "apps/cli/x.h"\n#include "quant/b.h"\n'}
# what is added to the clean tree -> what the report must contain, None for a clean pass
CASES = [
    ({}, None),
    ({"src/base/up.h": '#include "quant/b.h"\n'}, "src/base/up.h:1: base (floor 0) may not include quant (floor 2)"),
    ({"src/io/side.cc": '\n#  include "text/t.h"\n'}, "src/io/side.cc:2: io (floor 5) may not include text (floor 5)"),
    ({"src/apps/server/s.cc": '#include "apps/cli/x.h"\n'}, "application server may not include application cli"),
    ({"src/attic/x.cc": "int x;\n"}, "folder 'attic' has no floor"),
    ({"src/base/long.h": "\n" * 501}, "src/base/long.h: 501 lines, at most 500"),
    ({"tests/long_test.cc": "\n" * 501}, "tests/long_test.cc: 501 lines, at most 500"),
]


def run(files):
    with tempfile.TemporaryDirectory() as root:
        for name, text in files.items():
            path = pathlib.Path(root, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return subprocess.run([sys.executable, CHECK, root], capture_output=True, text=True)


def main():
    for added, wanted in CASES:
        result = run(CLEAN | added)
        as_wanted = result.returncode == 0 and not result.stdout if wanted is None else (
            result.returncode == 1 and wanted in result.stdout)
        if not as_wanted:
            print(f"check_layers.py on {list(added)}: wanted {wanted}, got {result.returncode}\n{result.stdout}{result.stderr}")
            return 1
    print(f"{len(CASES)} trees judged as they should be")
    return 0


if __name__ == "__main__":
    sys.exit(main())
