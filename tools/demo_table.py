#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""demo_table.py FOLDER NAME...: the table of tools/demo.sh, from the JSON that the program printed for each NAME."""
import json
import pathlib
import sys

HEAD = ["", "size on disk", "KV bits", "perplexity", "KLD", "same top", "tokens/s"]


def row(folder, name):
    def read(command):
        return json.loads((folder / f"{name}.{command}.json").read_text(encoding="utf-8"))

    inspect, evaluation, generation = read("inspect"), read("eval"), read("generate")
    compared = "kld_mean" in evaluation
    return [
        name,
        f"{inspect['total_bytes'] / 1e6:.1f} MB",
        f"{evaluation['kv_bits_per_value']:.2f}",
        f"{evaluation['perplexity']:.2f}",
        f"{evaluation['kld_mean']:.4f}" if compared else "-",
        f"{100 * evaluation['same_top']:.1f}%" if compared else "-",
        f"{generation['tokens_per_second']:.0f}",
    ]


def main():
    folder, names = pathlib.Path(sys.argv[1]), sys.argv[2:]
    rows = [HEAD] + [row(folder, name) for name in names]
    width = [max(len(r[i]) for r in rows) for i in range(len(HEAD))]
    rows.insert(1, ["-" * w for w in width])
    for r in rows:
        print("  " + r[0].ljust(width[0]) + "".join("  " + c.rjust(w) for c, w in zip(r[1:], width[1:])))


if __name__ == "__main__":
    main()
