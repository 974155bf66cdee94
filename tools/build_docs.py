#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""build_docs.py OUT: renders the repository's Markdown to HTML with cmark-gfm; a link to a file that is not there fails."""
import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)#\s]+)")
PAGE = """<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ max-width: 50em; margin: 2em auto; padding: 0 1em; font: 16px/1.5 sans-serif }} pre, code {{ background: #f6f8fa }}
pre {{ padding: 0.8em; overflow-x: auto }} table {{ border-collapse: collapse }} td, th {{ border: 1px solid #ccc; padding: 0.2em 0.6em }}
img {{ max-width: 100% }}</style></head><body>
{body}</body></html>
"""


def sources():
    skipped = {"out", ".git", ".venv"}
    return sorted(p for p in ROOT.rglob("*.md") if not skipped & set(p.relative_to(ROOT).parts))


def main():
    out = pathlib.Path(sys.argv[1])
    broken = 0
    for source in sources():
        target = out / source.relative_to(ROOT).with_suffix(".html")
        target.parent.mkdir(parents=True, exist_ok=True)

        def check(match):
            nonlocal broken
            link = match[2]
            if re.match(r"[a-z]+:", link):
                return match[0]
            linked = source.parent / link
            if not linked.exists():
                print(f"{source.relative_to(ROOT)}: link to {link}, which is not there")
                broken += 1
            elif linked.suffix in (".svg", ".html"):
                copy = target.parent / link
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(linked, copy)
            return match[1] + re.sub(r"\.md$", ".html", link)

        text = LINK.sub(check, source.read_text())
        html = subprocess.run(["cmark-gfm", "-e", "table"], input=text, capture_output=True, text=True, check=True).stdout
        target.write_text(PAGE.format(title=source.stem, body=html))
    print(f"{len(sources())} pages in {os.path.relpath(out)}, {broken} broken links")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
