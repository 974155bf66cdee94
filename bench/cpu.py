#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures the CPU path on this machine, and makes the page of results.

  bench/cpu.py run NAME [--threads 2] [--only ops,peer,depth,threads]   writes bench/results/cpu_NAME_{ops,peer,depth,threads}.json
  bench/cpu.py page                                             makes docs/results/cpu.md and its plot from all of them

NAME says what was measured, e.g. avx2. NIBBLE_CPU forces an instruction set as everywhere. The machine should do nothing else.
"""
import argparse
import json
import math
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "peers"))
import llama_cpp as peer  # bench/peers/llama_cpp.py

ROOT = peer.ROOT
RESULTS, PAGE = ROOT / "bench" / "results", ROOT / "docs" / "results" / "cpu.md"
RELEASE = ROOT / "out" / "release"
DEPTHS = [0, 4096, 16384, 32768]
RECIPES = ["kv16", "kv8", "qserve", "flashq4", "qserve+sparq:r=32,k=128,copy=int4"]


# ---- measuring ----

def commit():
    return subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()


def write(name, kind, data):
    path = RESULTS / f"cpu_{name}_{kind}.json"
    path.write_text(json.dumps({"machine": peer.machine(), "commit": commit(), **data}, indent=1) + "\n")
    print(f"wrote {path.relative_to(ROOT)}")


def run_ops(name, threads):
    out = ROOT / "out" / "ops.json"
    subprocess.run([RELEASE / "bench" / "ops_bench", "-t", str(threads), "--json", out], check=True)
    write(name, "ops", json.loads(out.read_text()))


def run_peer(name, threads):
    subprocess.run([sys.executable, peer.__file__, "--threads", str(threads), "--json", RESULTS / f"cpu_{name}_peer.json"],
                   check=True)


def run_depth(name, threads):
    rows = []
    for recipe in RECIPES:
        out = subprocess.run([RELEASE / "nibble", "bench", "--shape", "1b", "-t", str(threads), "--recipe", recipe, "-p", "0",
                              "-n", "8", "-r", "3", "-d", ",".join(map(str, DEPTHS)), "-o", "json"],
                             check=True, capture_output=True, text=True).stdout
        for row in json.loads(out):
            rows.append({"recipe": recipe, "depth": row["n_depth"], "tokens_per_second": row["median_ts"],
                         "kv_bytes": row["kv_bytes"], "weight_bytes": row["weight_bytes"]})
            print(f"{recipe:24} d{row['n_depth']:<6} {row['median_ts']:8.2f} tokens/s", flush=True)
    write(name, "depth", {"device": json.loads(out)[0]["device"], "weights": "w4a8-g128", "shape": "1b", "rows": rows})


def run_threads(name, threads):
    """One thread, `threads`, and four times as many as that: more than there are processors must do no harm."""
    rows = []
    for count in (1, threads, 4 * threads):
        out = subprocess.run([RELEASE / "nibble", "bench", "--shape", "1b", "-t", str(count), "--recipe", "kv16", "-p", "512",
                              "-n", "32", "-r", "5", "-o", "json"], check=True, capture_output=True, text=True).stdout
        for row in json.loads(out):
            rows.append({"threads": count, "test": row["test"], "tokens_per_second": row["median_ts"],
                         "samples": row["samples_ts"]})
            print(f"{count} threads {row['test']:8} {row['median_ts']:8.2f} tokens/s", flush=True)
    write(name, "threads", {"device": json.loads(out)[0]["device"], "weights": "w4a8-g128", "shape": "1b", "rows": rows})


# ---- the page ----

HEAD = """# CPU

Made by `bench/cpu.py page` from `bench/results/cpu_*.json`; `bench/cpu.py run NAME` measures. Random weights in the shape of a Llama with
1.1 billion parameters (16 layers of 2048, MLP 8192, 32 and 8 heads of 64, vocabulary 32000), W4A8-g128 with embedding and head in 8
bits. *Floor*: what the same program measured just before: the rate of a register-only loop of the dot product instruction, and the
bandwidth of reading half a GiB, all threads together. Ratios carry over to other machines, tokens per second less so.
"""


FINDINGS = (pathlib.Path(__file__).resolve().parent / "cpu_findings.txt").read_text()


def table(columns, rows):
    lines = ["| " + " | ".join(columns) + " |", "|" + " :-- |" + " --: |" * (len(columns) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def load(kind):
    files = sorted(RESULTS.glob(f"cpu_*_{kind}.json"))
    return {f.name[len("cpu_"):-len(f"_{kind}.json")]: json.loads(f.read_text()) for f in files}


def where(data):
    return f"{data['machine']}, {data['device'].removeprefix('cpu ')}, commit {data['commit']}"


def shape_of(name):
    """What is to be said of a shape that is not the page's."""
    layers, hidden, _, heads, kv_heads, head_dim = peer.SHAPES[name]
    return "" if name == "1b" else f", {layers} layers of {hidden}, {heads} and {kv_heads} heads of {head_dim} (`{name}`)"


def peer_section():
    if not load("peer"):
        return ""
    text = "\n## Beside llama.cpp\n\n`bench/peers/llama_cpp.py`: tokens a second, medians of alternating pairs of runs.\n"
    for data in load("peer").values():
        rows = [[r["test"], f"{r['nibble']:.1f}", f"{r['llama_cpp']:.1f}", f"{r['ratio']:.2f}", str(len(r["pairs"]))]
                for r in data["rows"]]
        text += (f"\n{where(data)}; llama-cpp-python {data['llama_cpp']}, Q4_0 with a Q6_K head, {data['llama_cache']} cache, "
                 f"flash attention{', built ' + data['peer_build'] if 'peer_build' in data else ''}; `{data['recipe']}`"
                 f"{shape_of(data['shape'])}."
                 f"{' ' + data['note'] + '.' if 'note' in data else ''}\n\n")
        text += table(["test", "nibble", "llama.cpp", "ratio", "pairs"], rows)
    return text


def ops_section():
    if not load("ops"):
        return ""
    text = ("\n## Matmuls\n\n`ops_bench`: the op with the quantization of its input, weights that no cache holds. Above 100%: the "
            "kernel reads faster than the loop that measured the floor did.\n")
    for data in load("ops").values():
        f = data["floors"]
        text += (f"\n{where(data)}. Floors: {f['read_bytes'] * 1e-9:.0f} GB/s; GOP/s {f['u4_dot'] * 1e-9:.0f} u4 x s8, "
                 f"{f['s8_dot'] * 1e-9:.0f} s8 x s8, {f['bf16'] * 1e-9:.0f} bf16, {f['f32'] * 1e-9:.0f} f32; "
                 f"{f['barrier_seconds'] * 1e6:.1f} us to hand out work.\n\n")
        rows = []
        for r in data["rows"]:
            if not r["op"].startswith("linear "):
                continue
            s = r["seconds"]
            rows.append([f"{r['op'].removeprefix('linear ')}, {r['shape']}", str(r["rows"]), f"{s * 1e6:.0f}",
                         f"{r['bytes'] / s * 1e-9:.1f}", f"{r['operations'] / s * 1e-9:.0f}",
                         f"{100 * r['floor_seconds'] / s:.0f}%"])
        text += table(["weights, outputs x inputs", "rows", "us", "GB/s", "GOP/s", "of floor"], rows)
    return text


def attention_section():
    text = ""
    for data in load("ops").values():
        rows = [[r["op"].split(" ", 1)[0], f"`{r['op'].split(' ', 1)[1]}`", r["shape"], str(r["rows"]), f"{r['seconds'] * 1e6:.0f}",
                 f"{r['bytes'] / r['seconds'] * 1e-9:.1f}", f"{r['operations'] / r['seconds'] * 1e-9:.0f}",
                 f"{100 * r['floor_seconds'] / r['seconds']:.0f}%"]
                for r in data["rows"] if r["op"].startswith(("decode ", "prefill "))]
        if rows:
            text += f"\n{where(data)}.\n\n"
            text += table(["op", "recipe", "query/KV heads x size @ depth", "rows", "us", "GB/s", "GOP/s", "of floor"], rows)
    if not text:
        return ""
    return ("\n## Attention\n\n`ops_bench`: one layer's op; decode rotates among layers that no cache holds. Floor of decode: the "
            "bandwidth of reading, for the bytes of the pages; of prefill: the rate of f32 multiply-adds, which integers may "
            "beat.\n" + text)


def threads_section():
    text = ""
    for data in load("threads").values():
        one = {r["test"]: r["tokens_per_second"] for r in data["rows"] if r["threads"] == 1}
        rows = [[r["test"], str(r["threads"]), f"{r['tokens_per_second']:.1f}", f"{r['tokens_per_second'] / one[r['test']]:.2f}"]
                for r in sorted(data["rows"], key=lambda r: (r["test"], r["threads"]))]
        text += f"\n{where(data)}.\n\n" + table(["test", "threads", "tokens/s", "of one thread"], rows)
    return "\n## Threads\n" + text if text else ""


COLORS = ["#1b6ca8", "#c8553d", "#3c7a3c", "#8a5aa8", "#a8841b", "#555555"]


def plot(data, path):
    """Tokens a second over depth, one line a recipe; both axes logarithmic, depth 0 drawn at half the least other."""
    width, height, left, right, top, bottom = 760, 420, 60, 190, 20, 45
    depths = sorted({r["depth"] for r in data["rows"]})
    place = {d: i for i, d in enumerate(depths)}
    rates = [r["tokens_per_second"] for r in data["rows"]]
    low, high = math.log2(min(rates)) - 0.2, math.log2(max(rates)) + 0.2
    x = lambda d: left + (width - left - right) * place[d] / max(1, len(depths) - 1)
    y = lambda t: top + (height - top - bottom) * (high - math.log2(t)) / (high - low)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
           f'<rect width="{width}" height="{height}" fill="#fff"/>']
    for d in depths:
        out.append(f'<path d="M{x(d):.1f} {top}V{height - bottom}" stroke="#eee"/>'
                   f'<text x="{x(d):.1f}" y="{height - bottom + 16}" text-anchor="middle">{d}</text>')
    for tick in range(math.ceil(low), math.floor(high) + 1):
        out.append(f'<path d="M{left} {y(2**tick):.1f}H{width - right}" stroke="#eee"/>'
                   f'<text x="{left - 6}" y="{y(2**tick) + 4:.1f}" text-anchor="end">{2.0**tick:g}</text>')
    ends = []
    for i, recipe in enumerate(dict.fromkeys(r["recipe"] for r in data["rows"])):
        points = [(r["depth"], r["tokens_per_second"]) for r in data["rows"] if r["recipe"] == recipe]
        line = " ".join(f"{x(d):.1f},{y(t):.1f}" for d, t in points)
        out.append(f'<polyline points="{line}" fill="none" stroke="{COLORS[i % len(COLORS)]}" stroke-width="2"/>')
        ends.append([y(points[-1][1]), recipe, COLORS[i % len(COLORS)]])
    at = -math.inf
    for end, recipe, color in sorted(ends):  # names below one another where lines end close together
        at = max(end + 4, at + 14)
        out.append(f'<text x="{width - right + 8}" y="{at:.1f}" fill="{color}">{recipe}</text>')
    out.append(f'<text x="{(left + width - right) / 2}" y="{height - 8}" text-anchor="middle">tokens of context</text>'
               f'<text x="12" y="12">tokens/s</text></svg>')
    path.write_text("\n".join(out) + "\n")


def depth_section():
    if not load("depth"):
        return ""
    text = ("\n## Generation by depth of the context\n\n`nibble bench -d`: tokens a second; the context is random keys and "
            "values.\n")
    for name, data in load("depth").items():
        svg = PAGE.parent / f"cpu_{name}_depth.svg"
        plot(data, svg)
        depths = sorted({r["depth"] for r in data["rows"]})
        at = {(r["recipe"], r["depth"]): r["tokens_per_second"] for r in data["rows"]}
        rows = [[f"`{recipe}`"] + [f"{at[recipe, d]:.1f}" if (recipe, d) in at else "" for d in depths]
                for recipe in dict.fromkeys(r["recipe"] for r in data["rows"])]
        note = f" {data['note']}." if "note" in data else ""
        text += f"\n{where(data)}.{note}\n\n{table(['recipe'] + [str(d) for d in depths], rows)}\n![{name}]({svg.name})\n"
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "page"])
    parser.add_argument("name", nargs="?")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="ops,peer,depth,threads")
    args = parser.parse_args()
    if args.action == "page":
        PAGE.write_text(HEAD + peer_section() + depth_section() + threads_section() + FINDINGS + attention_section() + ops_section())
        return
    if not args.name:
        parser.error("run needs a NAME")
    runs = {"ops": run_ops, "peer": run_peer, "depth": run_depth, "threads": run_threads}
    for kind in args.only.split(","):
        runs[kind](args.name, args.threads)


if __name__ == "__main__":
    main()
