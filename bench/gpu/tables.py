#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tables.py: makes docs/results/h200.md from bench/results/h200_*.json."""
import json
import pathlib
import statistics

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"
INT8_RATE, BF16_RATE = 1.9e15, 9e14

HEAD = """# CUDA kernels on an H200

Made by `bench/gpu/tables.py` from `bench/results/h200_*.json`: medians of CUDA-graph replays over buffers that exceed the L2, random
normal data, bursts. Floors count the bytes that must be read at 4.64 TB/s. Figures of one table are of one machine and one call; ratios
carry over, microseconds less so. Every kernel is compared with `kernels/ref` first: `nibble_gpu check`.
"""


def load(name):
    data = json.loads((RESULTS / name).read_text())
    for row in data["rows"]:
        if isinstance(row["seconds"], list):
            row["seconds"] = statistics.median(row["seconds"])
    return data


def table(columns, rows):
    lines = ["| " + " | ".join(columns) + " |", "|" + "|".join([" :-- "] + [" --: "] * (len(columns) - 1)) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def prefill_rows():
    rows = load("h200_prefill.json")["rows"] + load("h200_prefill_peers.json")["rows"]
    return {(r["op"], r["shape"]): r for r in rows}


def rate(row):
    return row["operations"] / row["seconds"] * 1e-12


def prefill():
    at, rows = prefill_rows(), []
    for shape in (shape for op, shape in at if op == "sage2-8b kernel"):
        kernel, both, cudnn, flash = (at[op, shape] for op in ("sage2-8b kernel", "sage2-8b end to end", "cuDNN", "flash"))
        rows.append([shape] + [f"{rate(x):.0f}" for x in (kernel, both, cudnn, flash)] +
                    [f"{cudnn['seconds'] / both['seconds']:.2f}", f"{1e14 * rate(kernel) / INT8_RATE:.0f}%"])
    return f"""
## Prefill attention: SageAttention2 (INT8 Q K^T, E4M3 P V)

TOP/s. "End to end" starts from bf16 Q, K and V and includes the quantizing pass; PyTorch's cuDNN and flash attention are bf16. Cosine
against exact attention on normal data: 0.99925.

{table(["batch x length", "kernel", "end to end", "cuDNN", "flash", "end to end against cuDNN", "kernel of 1,900"], rows)}
Persistent blocks take units in turn, every other round backwards: with a causal mask and sequences of 1k, blocks that always went
forwards had up to a third more work than the mean.

Figures up to 951 TOP/s for 1x16384 were published before, from data that repeated every 1,024 rows; these are from data that does not. How
much of the difference is the data has not been separated. The consumer as one struct with a method a step, instead of one long function,
was slower (862 TOP/s for 897).

What made the kernel fast, in order: sums that start at 1.5 * 2^23 (integers become floats for nothing), weights added up by a column of
ones in the second product, row maxima rounded up to integers, scores of the next tile always under way, and turns between the two
warpgroups at the exponentials (ptxas moves arithmetic across barriers, so the barrier's number hangs on the weights). What did not
help: turns at the matrix products, a polynomial for part of the exponentials (issue slots are as scarce as their pipe), handing out
tiles by a counter; for the quantizing pass, which runs at two thirds of its floor and costs short sequences the lead, turning V by way
of shared memory so that whole rows are read, and a programmatic launch of the attention behind it: neither gained anything. Head size
64 has half the products of 128 for the same number of exponentials.
"""


def exact():
    at, rows = prefill_rows(), []
    for shape in (shape for op, shape in at if op == "exact bf16"):
        ours, cudnn, flash = (at[op, shape] for op in ("exact bf16", "cuDNN", "flash"))
        rows.append([shape] + [f"{rate(x):.0f}" for x in (ours, cudnn, flash)] +
                    [f"{cudnn['seconds'] / ours['seconds']:.2f}", f"{1e14 * rate(ours) / BF16_RATE:.0f}%"])
    return f"""
## Prefill attention, exact in bf16

TFLOP/s, from packed rows. Two consumer warpgroups of 64 queries; a warpgroup issues Q K^T of the next tile and then P V of this one, and
computes the next softmax while the second runs. With scores under way across the end of the loop's body ptxas made all products wait for
each other; the loop is turned so that scores are issued and used in one pass.

{table(["batch x length", "ours", "cuDNN", "flash", "against cuDNN", "of 900"], rows)}"""


def sparq():
    rows = load("h200_sparq.json")["rows"]
    dense = {r["shape"]: r["seconds"] for r in rows if r["op"] == "dense f16"}
    lines = [[r["shape"], r["op"].removeprefix("sparq "), f"{r['seconds'] * 1e6:.1f}",
              f"{100 * r['floor_seconds'] / r['seconds']:.0f}%", f"{dense[r['shape']] / r['seconds']:.1f}"] for r in rows]
    return f"""
## SparQ decode

Beside our dense decode of the same f16 pages in the same call. One launch: a cluster of 16 blocks for each row and KV head ranks the
tokens on the d-major copy of K, finds the k-th greatest score and attends. The floor counts r rows of the copy and k rows of K and V.
int8 and int4 copies hold random bits here, whose logits are far apart.

The wanted factor is 4; this is 1 for one sequence of 32k and 1.5 for 16. A block takes 30 to 40 us however few its tokens, and 14
clusters of 16 blocks run at once. By `ncu` (one sequence, f16 copy: 43 us, 5,000 instructions a warp) samples spread over ranking 14%,
levels of the heads 14%, the wait for the slowest block 9%, and a dozen stages of 2 to 7% between barriers: latency, not bytes. Reading
all blocks' counts at once in the search for the k-th score and rolling up loops gained 3 to 13% together with 16 blocks, and lost up to
half with 8 (before: 40, 92, 244 and 156 us in the four shapes, f16 copy). A programmatic launch gained nothing, here and in dense decode.

{table(["batch x context, heads/KV heads, head size", "copy of K, blocks a cluster", "us", "of the floor", "dense / this"], lines)}"""


def decode():
    rows = load("h200_decode.json")["rows"]
    at = {(r["op"], r["shape"]): r for r in rows}
    peer = next(r["op"] for r in rows if r["op"].startswith("PyTorch"))
    names = ["int4-token", "flashq4", "flashq2", "int8-token", "f16"]
    lines = []
    for shape in dict.fromkeys(r["shape"] for r in rows if r["op"] == peer):
        torch = at[peer, shape]["seconds"]
        line = [shape]
        for name in names:
            r = at.get(("decode " + name, shape))
            if r is None:
                line.append("")
                continue
            t = r["seconds"]
            line.append(f"{t * 1e6:.1f} / {100 * r['floor_seconds'] / t:.0f}% / {torch / t:.1f}x")
        lines.append(line + [f"{torch * 1e6:.0f}"])
    return f"""
## Decode attention straight from the cache pages

Microseconds / share of the bandwidth floor / times faster than PyTorch's flash attention on an f16 cache.

{table(["batch x context, heads/KV heads, head size"] + names + ["PyTorch f16, us"], lines)}"""


def linear():
    ours, peers = {}, {}
    for r in load("h200_linear.json")["rows"]:
        shape = r["shape"].split(" tile")[0]
        if r["op"] == "cublaslt fp8":
            peers[shape] = r["seconds"]
        else:
            ours[r["op"].removeprefix("linear/"), shape] = r
    text = ""
    for name in ("w4a8-g128", "w4a8-chn", "w8a8"):
        lines = []
        for (op, shape), r in ours.items():
            if op != name or shape not in peers:
                continue
            plain = ours.get((name + " no early start", shape), r)["seconds"]
            lines.append([shape, f"{r['seconds'] * 1e6:.1f}", f"{plain * 1e6:.1f}",
                          f"{100 * r['floor_seconds'] / r['seconds']:.0f}%", f"{peers[shape] * 1e6:.1f}",
                          f"{peers[shape] / r['seconds']:.2f}", f"{peers[shape] / plain:.2f}"])
        text += f"\n### {name}\n\n" + table(["N x K, rows", "us", "us, plain launch", "of the floor", "cuBLASLt fp8, us",
                                            "times faster", "times faster, plain"], lines)
    return f"""
## Integer matmuls

u8 x s8 matrix instructions on codes that one multiply-add dequantizes (W4A8), or s8 x s8 (W8A8). "us" uses programmatic launch, which
reads weights before the kernel before it ends; cuBLASLt (`torch._scaled_mm`, fp8 with tensor-wide scales) ran without it, so
compare the plain launch when in doubt.
{text}"""


(ROOT / "docs" / "results" / "h200.md").write_text(HEAD + prefill() + exact() + decode() + sparq() + linear())
