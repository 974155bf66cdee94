#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""results_tables.py FOLDER: writes the tables of FOLDER/README.md from the data in the pages beside it.

For each model a table of its recipes, one of what outliers and plans do, and one of weights in 4 bits, as far as there are pages
(tools/results.sh names them). They replace what stands between the lines `<!-- tables -->` and `<!-- end of tables -->`; the words
around them are left alone.
"""
import json
import pathlib
import re
import sys

BEGIN, END = "<!-- tables -->", "<!-- end of tables -->"
SUFFIXES = ["-outliers", "-w4a8-rtn", "-w4a8", "-outliers-w4a8"]


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


def kld(figures):
    return "-" if figures is None else f"{figures['kld_mean']:.5f}"


def by_name(page):
    return {r["recipe"]: r for r in page["recipes"]} if page else {}


def lines(head, rows):
    rule = [":--"] + ["--:"] * (len(head) - 1)
    return ["| " + " | ".join(cells) + " |" for cells in [head, rule] + rows] + [""]


def recipes_table(page):
    exact = page["recipes"][0]
    head = ["recipe", "KV bits", "read a step", "KLD", "KLD p99", "same top", "perplexity"]
    head += [f"pass key at {page['context']}", "repetition of exact", "worst layer"]
    rows = []
    for r in page["recipes"]:
        rows.append([
            f"`{r['recipe']}`" + (" **(recommended)**" if r["recipe"] == page["recommended"] else ""),
            f"{r['kv_bits_per_value']:.2f}",
            size(r["bytes_per_step"]),
            kld(r),
            f"{r['kld_p99']:.4f}",
            percent(r["same_top"]),
            f"{r['perplexity']:.3f}",
            percent(r["passkey"][-1]["score"]),
            percent(mean(r["repetition"]) / mean(exact["repetition"])),
            percent(max(e["relative_l1"] for e in r["layers"]["isolated"])),
        ])
    return lines(head, rows)


def outliers_table(plain, outliers):
    without = by_name(plain)
    rows = [[f"`{r['recipe']}`", kld(without.get(r["recipe"])), kld(r), kld(r.get("planned"))] for r in outliers["recipes"][1:]]
    return lines(["recipe", "KLD", "KLD with outliers", "with outliers and a plan"], rows)


def weights_table(pages, name):
    rows = []
    for suffix, method in (("-w4a8-rtn", "rounded to nearest"), ("-w4a8", "QoQ, all passes")):
        plain, outliers = by_name(pages.get(name + suffix)), by_name(pages.get(name + "-outliers" + suffix))
        rows += [[method, f"`{recipe}`", kld(r), kld(outliers.get(recipe))] for recipe, r in plain.items()]
    return lines(["weights", "recipe", "KLD", "KLD with outliers"], rows)


def chapter(name, pages):
    plain = pages[name]
    links = [name] + [name + s for s in SUFFIXES if name + s in pages]
    text = [f"### {name}", "", plain["headline"], ""]
    text += [f"{plain['tokens']} tokens of {plain['text']} in windows of {plain['window']}. Pages: " +
             ", ".join(f"[{link}]({link}.html)" for link in links) + ".", ""]
    text += recipes_table(plain)
    if plain["refused"]:
        text += ["Refused: " + "; ".join(f"`{r['recipe']}` ({r['reason']})" for r in plain["refused"]) + ".", ""]
    if name + "-outliers" in pages:
        outliers = pages[name + "-outliers"]
        text += [f"*Outlier channels* in keys, values, MLP and norms, and plans calibrated on {outliers['calibration']}:", ""]
        text += outliers_table(plain, outliers)
    if name + "-w4a8" in pages:
        text += ["*Weights in 4 bits* (w4a8-g128), against the float model:", ""] + weights_table(pages, name)
    return text


def main():
    folder = pathlib.Path(sys.argv[1])
    pages = {p.stem: read(p) for p in sorted(folder.glob("*.html"))}
    text = [BEGIN, ""]
    for name in pages:
        if not name.endswith(tuple(SUFFIXES)):
            text += chapter(name, pages)
    page = folder / "README.md"
    words = page.read_text(encoding="utf-8")
    if words.count(BEGIN) != 1 or words.count(END) != 1:
        sys.exit(f"{page}: wants one line {BEGIN} and one line {END}")
    before, after = words.split(BEGIN)[0], words.split(END)[1]
    page.write_text(before + "\n".join(text) + END + after, encoding="utf-8")
    print(f"{page}: tables of {len(pages)} pages")


if __name__ == "__main__":
    main()
