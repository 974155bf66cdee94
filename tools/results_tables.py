#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""results_tables.py FOLDER: writes the tables of FOLDER/README.md from the data in the pages beside it.

A table for each model, plain and with injected outliers in one, replaces what stands between the lines `<!-- tables -->` and
`<!-- end of tables -->`. The words around them are left alone.
"""
import json
import pathlib
import re
import sys

BEGIN, END = "<!-- tables -->", "<!-- end of tables -->"


def read(page):
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.S)
    if data is None:
        sys.exit(f"{page}: holds no data of nibble compare")
    return json.loads(data[1])


def percent(share):
    return f"{100 * share:.1f}%"


def mean(scores):
    return sum(s["score"] for s in scores) / len(scores)


def size(count):
    return "-" if count is None else f"{count / 1e6:.2f} MB"


def kld(recipe):
    return "-" if recipe is None else f"{recipe['kld_mean']:.5f}"


def table(name, plain, outliers):
    others = {r["recipe"]: r for r in outliers["recipes"]} if outliers else {}
    exact = plain["recipes"][0]
    head = ["recipe", "KV bits", "read a step", "KLD", "KLD with outliers", "same top", "perplexity"]
    head += [f"pass key at {plain['context']}", "repetition of exact", "worst layer"]
    rows = [head, [":--"] + ["--:"] * (len(head) - 1)]
    for r in plain["recipes"]:
        rows.append([
            f"`{r['recipe']}`" + (" **(recommended)**" if r["recipe"] == plain["recommended"] else ""),
            f"{r['kv_bits_per_value']:.2f}",
            size(r["bytes_per_step"]),
            kld(r),
            kld(others.get(r["recipe"])),
            percent(r["same_top"]),
            f"{r['perplexity']:.3f}",
            percent(r["passkey"][-1]["score"]),
            percent(mean(r["repetition"]) / mean(exact["repetition"])),
            percent(max(e["relative_l1"] for e in r["layers"]["isolated"])),
        ])
    text = [f"### {name}", "", plain["headline"], ""]
    pages = [f"[{name}]({name}.html)"] + ([f"[with outliers]({name}-outliers.html)"] if outliers else [])
    text += ["Pages: " + ", ".join(pages) + f". {plain['tokens']} tokens of {plain['text']} in windows of {plain['window']}.", ""]
    text += ["| " + " | ".join(cells) + " |" for cells in rows] + [""]
    if plain["refused"]:
        text += ["Refused: " + "; ".join(f"`{r['recipe']}` ({r['reason']})" for r in plain["refused"]) + ".", ""]
    return text


def main():
    folder = pathlib.Path(sys.argv[1])
    pages = {p.stem: read(p) for p in sorted(folder.glob("*.html"))}
    text = [BEGIN, ""]
    for name in pages:
        if not name.endswith("-outliers"):
            text += table(name, pages[name], pages.get(name + "-outliers"))
    page = folder / "README.md"
    words = page.read_text(encoding="utf-8")
    if words.count(BEGIN) != 1 or words.count(END) != 1:
        sys.exit(f"{page}: wants one line {BEGIN} and one line {END}")
    before, after = words.split(BEGIN)[0], words.split(END)[1]
    page.write_text(before + "\n".join(text) + END + after, encoding="utf-8")
    print(f"{page}: tables of {len(pages)} pages")


if __name__ == "__main__":
    main()
