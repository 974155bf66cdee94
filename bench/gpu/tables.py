#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tables.py: makes docs/results/h200.md from bench/results/h200_*.json."""
import json
import pathlib
import re
import statistics

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"
INT8_RATE, BF16_RATE = 1.9e15, 9e14

HEAD = """# CUDA kernels on an H200

Made by `bench/gpu/tables.py` from `bench/results/h200_*.json`: medians of CUDA-graph replays over buffers that exceed the L2, random
normal data, bursts. Floors count the bytes that must be read at 4.64 TB/s. Figures of one table are of one machine and one call; ratios
carry over, microseconds less so. Every kernel is compared with `kernels/ref` first: `nibble_gpu check`.
"""


GOALS = (pathlib.Path(__file__).resolve().parent / "goals.txt").read_text()


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
against exact attention on normal data: 0.99925. Where four channels of K stand at 30 (`nibble_gpu check "prefill sage2-8b"`, 1,500 tokens) it is 0.99923 at
head size 128 and 0.99921 at 64; exact attention whose Q and K are in E4M3 with a scale a row has 0.99478 and 0.99621 there.

{table(["batch x length", "kernel", "end to end", "cuDNN", "flash", "end to end against cuDNN", "kernel of 1,900"], rows)}
Persistent blocks take units in turn, every other round backwards: with a causal mask and sequences of 1k, blocks that always went
forwards had up to a third more work than the mean.

Figures up to 951 TOP/s for 1x16384 were published before, from data that repeated every 1,024 rows; these are from data that does not. How
much of the difference is the data has not been separated. The consumer as one struct with a method a step, instead of one long function,
was slower (862 TOP/s for 897), and so was one of free inlined functions: 1x16384 full 852 for 872, at head size 64 506 for 526, in turns in one
call.

What made the kernel fast, in order: sums that start at 1.5 * 2^23 (integers become floats for nothing), weights added up by a column of
ones in the second product, row maxima rounded up to integers, scores of the next tile always under way, and turns between the two
warpgroups at the exponentials (ptxas moves arithmetic across barriers, so the barrier's number hangs on the weights). What did not
help: turns at the matrix products, a polynomial for part of the exponentials (issue slots are as scarce as their pipe), handing out
tiles by a counter; for the quantizing pass, which runs at 71% of its floor and costs short sequences the lead, turning V by way of
shared memory so that whole rows are read, and a programmatic launch of the attention behind it: neither gained anything. Four blocks of
that pass on a multiprocessor instead of three took 9% off it (201 to 183 us for 16x1024). At its floor of 130 us the end would be at 0.88
of cuDNN for 16x1024: the rest is the attention kernel itself, at 745 of its 887 TOP/s because a unit has eight tiles. Head size 64 has half
the products of 128 for the same number of exponentials; `ncu` sees two instructions a clock there, with two consumer warps a scheduler, and a
third consumer warpgroup would need 168 registers where 160 fit.
"""


def prefill_4b():
    at, rows = {(r["op"], r["shape"]): r for r in load("h200_prefill_4b.json")["rows"]}, []
    for shape in (shape for op, shape in at if op == "sage2-4b kernel"):
        eight, four, both, quantize = (at[op, shape] for op in ("sage2-8b kernel", "sage2-4b kernel", "sage2-4b end to end", "sage2-4b quantize"))
        rows.append([shape] + [f"{rate(x):.0f}" for x in (eight, four, both)] +
                    [f"{quantize['seconds'] * 1e6:.0f}", f"{four['seconds'] / eight['seconds']:.2f}"])
    return f"""
## Prefill attention: SageAttention2 with INT4 codes and smoothed queries (`sage2-4b`)

TOP/s. Hopper's WGMMA has no 4 bits: codes are bytes, and INT4 is there for what it means, not for speed. Cosine against exact attention on normal
data: 0.98444 at head size 128, 0.98407 at 64 (`sage2-8b`: 0.99925, 0.99918); against the definition's codes with exact P V 0.99929 and 0.99920, which is what
FP8 costs. Delta-S is set in the registers of the next sums while the values are multiplied; at head size 64, which has too few products to
hide it, before: 490 TOP/s for 463 (1x16384 full). "Codes" is the pass that quantizes with the one that makes delta-S, of which 16,384 tokens in
one sequence have 268 MB to write and to read. Both kernels in one call.

{table(["batch x length", "sage2-8b kernel", "sage2-4b kernel", "end to end", "codes, us", "kernel time, 4b / 8b"], rows)}"""


def prefill_turbo():
    at, rows = {(r["op"], r["shape"]): r for r in load("h200_prefill_turbo.json")["rows"]}, []
    for shape in (shape for op, shape in at if op == "turbo kernel"):
        kernel, both, codes = (at[op, shape] for op in ("turbo kernel", "turbo codes and kernel", "turbo codes"))
        rows.append([shape, f"{rate(kernel):.0f}", f"{rate(both):.0f}", f"{codes['seconds'] * 1e6:.0f}",
                     f"{1e14 * rate(kernel) / INT8_RATE:.0f}%"])
    return f"""
## Prefill attention: TurboAttention (INT8 Q K^T and P V, SAS) over FlashQ pages (`turbo`)

TOP/s. "Codes" is the pass that quantizes queries and lays out the codes of pages; K and V come from flashq4 pages, own pages in bf16. Rows are off from
the definition in double by 0.0025 of their length.

{table(["batch x length", "kernel", "codes and kernel", "codes, us", "kernel of 1,900"], rows)}
The kernel is bound by issue slots, not by the tensor cores: an iteration is 64 keys, as P has a scale a page, and at head size 128 takes about 620
instructions a warp: 128 to turn 64 integer sums into floats and add them, about 300 for 32 weights, the rest scales, maxima and addresses. `ncu` on the
third of the steps below (1x16384, head size 128; 655 instructions): 1,960 cycles for an iteration of both warpgroups, in 64% of which a scheduler issues; its
two consumer warps wait for pipes (I2FP, PRMT and VIMNMX share one of half rate), for results, and for SAS's coefficients. In steps, 1x16384 at head size
128: 457 TOP/s with products waited for at once; 474 with the product of a page under the scores of the next and the scores of that under its weights; 487 with sums
that start at 0 and are converted (I2FP) instead of starting at 1.5 * 2^23; 501 with SAS's table in registers instead of the parameter that ptxas fetches again
for every page; 527 with that table out of uniform registers too, descriptors moved on by their low words, and reciprocals without a case for small numbers. Before
the first, 540 had been expected. ptxas makes all products wait for each other where a branch stands around one or where two groups are under way at the end
of the loop's body, hence products with weights of 0 and scores that nobody reads. Not tried: exp2 of the special function units in place of SAS (about 100
instructions less, but another function), and three consumer warpgroups at head size 64.
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
each other; the loop is turned so that scores are issued and used in one pass. At head size 128 the warpgroups take turns at issuing: in
one call 1 to 6% faster at lengths up to 2k and with a causal mask, within 2% elsewhere; at 64 they were 1 to 2% slower and are left out.

{table(["batch x length", "ours", "cuDNN", "flash", "against cuDNN", "of 900"], rows)}"""


def sparq():
    rows = load("h200_sparq.json")["rows"]
    dense = {r["shape"]: r["seconds"] for r in rows if r["op"] == "dense f16"}
    lines = [[r["shape"], r["op"].removeprefix("sparq "), f"{r['seconds'] * 1e6:.1f}",
              f"{100 * r['floor_seconds'] / r['seconds']:.0f}%", f"{dense[r['shape']] / r['seconds']:.1f}"] for r in rows]
    return f"""
## SparQ decode

Beside our dense decode of the same f16 pages in the same call. Two launches: blocks that each rank 2,048 tokens on the d-major copy of K,
f16 copies by the tensor cores; then for each row and KV head a cluster of blocks that finds the k-th greatest score and attends. The floor
counts r rows of the copy and k rows of K and V. int8 and int4 copies hold random bits here, whose logits are far apart: nearly all scores fall
into the lowest bin, and the k-th is found digit by digit.

The wanted factor is 4. One launch of a cluster of 16 that did it all took 41.5, 104, 347 and 270 us in the four shapes (f16 copy). Clock
readings in one sequence (16 blocks, us): ranking 12, of which 3.0 pass before the first key is asked for (length and queries 1.2, order of the
channels 1.0, temperatures and operand 0.8) and 9 in reading and multiplying four pages a warp; then queries 1.3, levels 0.8, scores 3.7, bins
0.9, candidates 1.7, list 0.5, attention 4.2, waiting for the slowest block 1.9, outputs 1.7. By `ncu` with 16 sequences the ranking takes 129
us at 53% of the memory's rate: of each channel it reads 128 bytes a page, from random places; keeping two pages of a warp under way instead
of one changed nothing. The selection takes as long with clusters of 16, at 2,570 instructions a warp, most of which every block executes
whatever its share, and a third of its stalls at barriers; clusters of 8 are faster from four sequences on.

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

Microseconds / share of the bandwidth floor / times faster than PyTorch's flash attention on an f16 cache. Pages are 32-byte multiples apart:
FlashQ's pages of 4,368 bytes, which are odd multiples of 16, made the L2 send 1.8 times the bytes (`ncu`: 16.3 million sectors of 32 bytes
for 8.9 million), and 64 x 4096 took 115 us for 108. With the queries in shared memory four blocks of `flashq4` fit where three did: 7%
faster at 64 x 1024 and 16 x 4096, nothing at 64 x 4096. What is left by `ncu`: 1.22 times the instructions of int4-token (steps and bases by
channel for every page) at the same two a clock.

Chunks of 4 pages instead of 16 (int4-token) take 9.5 us for 13.8 at 1 x 4096 and 9.4 for 10.9 at 1 x 1024, but 118 for 87 at 64 x 4096 and
30 for 19 at 1 x 32768. The size of a chunk is part of the definition of a result's last bits and may not hang on the batch.

{table(["batch x context, heads/KV heads, head size"] + names + ["PyTorch f16, us"], lines)}
{decode_qaq()}"""


def decode_qaq():
    at, planes = {}, ["2 planes", "3 planes", "4 planes", "6 planes", "4 planes outliers"]
    data = load("h200_decode_qaq.json")
    for r in data["rows"]:
        shape, width = re.fullmatch(r"(.* d\d+) (.*)", r["shape"]).groups()
        at.setdefault(shape, {})[width] = f"{r['seconds'] * 1e6:.0f} / {100 * r['floor_seconds'] / r['seconds']:.0f}%"
    lines = [[shape] + [widths.get(p, "") for p in planes] for shape, widths in at.items()]
    before = {shape: f"{seconds * 1e6:.0f}" for shape, seconds in data["before"].items()}
    return f"""`qaq` reads pages whose widths differ (`bench/results/h200_decode_qaq.json`): all pages of one width, planes and outliers (two a token) in arenas
of their own as in a cache; int4-token {data["int4_token"]["64 x 4096"] * 1e6:.1f} and {data["int4_token"]["16 x 16384"] * 1e6:.1f} us in the same call. 277 cases of widths 0 to 8, with and without outliers, against
`kernels/ref`: relative error 1.62e-3, of which rounding to bf16 1.62e-3.

{table(["qaq, us / share of the floor"] + planes, lines)}
The kernel before this one made rows of f16 of every tile in shared memory; it takes {before["64 x 4096 2 planes"]}, {before["64 x 4096 3 planes"]}, {before["64 x 4096 4 planes"]} and {before["64 x 4096 6 planes"]} us at 64 x 4096 on the same
pages, {before["64 x 4096 4 planes outliers"]} with outliers and {before["64 x 4096 d64 4 planes"]} with 64 channels. By `ncu` what did not hang on the planes was neither memory (14% of its rate) nor waiting for headers:
281 million warp instructions at 4 planes, 62% of the issue slots, 17 for each 32 values. Now it is 56 million, 28 of them in the
loops that load planes by `ldmatrix`, turn four of them into nibbles (36 logic instructions for 32 values of a lane) and multiply.

What helped at 4 planes, us (prediction was 100): planes in registers 472 -> 191; copies into neighbouring places 190 -> 152, since a copy of 16
bytes to a place of its own was a request of its own, which filled two thirds of the L2's tag slots; two steps under way instead of three 152 ->
139 (fewer registers spilled; memory is not what is waited for); loops over 32 tokens instead of a page unrolled, the block's item out of
registers and copies by immediate offsets 140 -> 125 (nothing spills; instructions missing from the cache fell from 22% of stalls).
What did not: four blocks on a multiprocessor instead of three (128 registers, spills: 148), tiles of 32 tokens (147), headers and page
tables asked for earlier (0). What remains: 33% of the samples in starts and ends of blocks, and logic instructions at three
warps a scheduler; so 2 planes stay behind int4-token. Outliers cost what they did, relative to the rest: some 300 instructions for 16 tokens of a side
before each was asked for once, 274 us; 261 since. Heads of 64 channels are read as 128, half of them empty: a row of 8 bytes is half of
what `ldmatrix` loads.
"""


def linear():
    ours, peers, steady = {}, {}, {}
    for r in load("h200_linear.json")["rows"]:
        shape = r["shape"].split(" tile")[0]
        if r["op"] == "cublaslt fp8 sustained":
            steady[shape] = r["seconds"]
            continue
        if r["op"] == "cublaslt fp8":
            peers[shape] = r["seconds"]
        else:
            ours[r["op"].removeprefix("linear/"), shape] = r
    text, sustained = "", []
    for name in ("w4a8-g128", "w4a8-chn", "w8a8"):
        for (op, shape), r in ours.items():
            if op == name + " sustained":
                peer = steady[shape]
                sustained.append([name, shape, f"{ours[name, shape]['seconds'] * 1e6:.1f}", f"{r['seconds'] * 1e6:.1f}",
                                  f"{peers[shape] * 1e6:.1f}", f"{peer * 1e6:.1f}", f"{peer / r['seconds']:.2f}"])
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

u8 x s8 matrix instructions on codes that one multiply-add dequantizes (W4A8), or s8 x s8 (W8A8). Up to 8 rows (16 where a block has little
to do) W4A8 has a kernel of its own (depth in the JSON): every block has an equal share of the outputs and all of k, every warp an equal
share of that, and copies its own fragments into shared memory while the kernel ahead still runs; no cluster, no barrier until the end. In a
chain of such kernels one with hardly any weights (4096x128) takes 1.9 us. Tried in it, M = 1: on 28672x4096 and 4096x14336
two blocks that fit on a multiprocessor together take 21.7 and 11.9 us where one alone takes 16.0 and 8.9, presumably because the launch
then places two on one multiprocessor and none on another; 8 warps instead of 16 are slower throughout; 32 rows take 8.8, 10.6 and 26 us on
4096x4096, 6144x4096 and 28672x4096 (all of x must be in every block's shared memory first), which tiles beat. Tiles of 128 outputs, two
blocks a multiprocessor: 17.7 and 13.9 us for 18.7 and 15.0 at 16 rows of 28672x4096 and 4096x14336, 25.3 for 22.3 at 64 of 28672x4096,
otherwise up to 7% faster or slower; not kept. What stands in the way at 16 to 64 rows of 4096x14336: x alone is 0.9 MB at 64 rows, so that
few blocks may read all of it, k must be split, and of the clusters of 5 or 6 that it takes only 22 and 18 run at once. Results are bf16
here, those of a model f32 (decision 13: 2,048 rows of gate and up took 715 us for it while the end of a tile spilled, 414 since). "us" uses
programmatic launch, which reads weights before the kernel before it ends; cuBLASLt (`torch._scaled_mm`, fp8 with tensor-wide scales) ran
without it, so compare the plain launch when in doubt.

A consumer that keeps its ring's addresses in registers, builds descriptors in 32 bits, starts its sums at zero instead of asking whether a stage
is the first, and reads a stage's codes before the products of the stage ahead have ended takes 3 to 9% less from 16 rows on (two binaries
in turn in one call; 28672x4096 at 4,096 rows 3%). Clock readings before that (1.9 clocks a ns): the loop is bound by instructions, as a stage of 128
inputs takes 750 clocks at 16 rows, 1,000 at 64 and 1,380 at 128 whether the weights are in the L2 or not (115 instructions a warp, 95 since, 40 of them
dequantization; the tensor cores need 512 and 1,024 at 64 and 128 rows). A tile whose k is split then takes 4,300 clocks at 16 rows and 7,900 at 64 from its last
product to its end: 1,460 for the first barrier of the cluster, 4,000 for reading and storing sums, 2,270 for the last barrier; and 1,250
pass before the first load. That is 3 to 4 of the 9 to 11 us at 32 and 64 rows of the narrow shapes, beside floors of 2 to 3.
{text}
### Sustained

Medians over two seconds without a pause, us; above are bursts.

{table(["weights", "N x K, rows", "burst", "sustained", "fp8 burst", "fp8 sustained", "times faster, sustained"], sustained)}"""


def beside():
    prefills, decodes, linears = {}, {(r["op"], r["shape"]): r for r in load("h200_decode.json")["rows"]}, {}
    for r in load("h200_linear.json")["rows"]:
        linears[r["op"].removeprefix("linear/"), r["shape"].split(" tile")[0]] = r
    prefills, lines = prefill_rows(), []
    for r in load("h200_sage_qserve.json")["rows"]:
        if r["op"].startswith("sage"):
            ours = prefills["sage2-8b end to end", r["shape"]]
        elif r["op"].startswith("qserve kv4"):
            ours = decodes["decode int4-token", r["shape"]]
        else:
            ours = linears[r["op"].removeprefix("qserve "), r["shape"]]
        lines.append([r["op"], r["shape"], f"{ours['seconds'] * 1e6:.1f}", f"{r['seconds'] * 1e6:.1f}",
                      f"{r['seconds'] / ours['seconds']:.2f}"])
    return f"""
## Beside SageAttention and QServe

{json.loads((RESULTS / "h200_sage_qserve.json").read_text())["how"]}.

{table(["kernel", "shape", "ours, us", "theirs, us", "times faster"], lines)}"""



def serve():
    data = load("h200_serve.json")
    ms = lambda r, key: f"{r[key]:.1f}" if key in r else "-"
    lines = [[str(r["max_num_seqs"]), str(r["requests"]), f"{r['output_throughput']:,.0f}", ms(r, "median_ttft_ms"),
              ms(r, "median_tpot_ms"), ms(r, "p99_itl_ms")] for r in data["rows"]]
    return f"""
## Serving over HTTP

{data["model"]}, commit {data["commit"]}: `{data["command"]}` on the same machine, all requests at once, so that half of them wait for a
place: times to the first token hold that wait. New tokens a second count the prompts' time.

{table(["requests in flight", "requests", "new tokens/s", "median TTFT, ms", "median TPOT, ms", "p99 ITL, ms"], lines)}"""


def quality():
    data = json.loads((RESULTS / "h200_kld_29m.json").read_text())
    lines = [[f"`{recipe}`"] + [f"{r[key]:.3g}" for key in ("cpu", "cuda_f32", "cuda_bf16")] + [f"{r['same_top_bf16']:.4f}"]
             for recipe, r in data["rows"].items()]
    return f"""
## Quality of the recipes on the GPU

Mean KLD to the exact model in f32 of the same device, and how often the likeliest token is the same; {data["model"]}, {data["text"]}, commit {data["commit"]}: `{data["how"]}`.
`h200_kld.json` has more recipes on novelist-10m.

{table(["recipe", "CPU", "GPU, f32", "GPU, bf16", "same top, bf16"], lines)}"""


def memory():
    lines = []
    for r in json.loads((RESULTS / "h200_memory.json").read_text())["rows"]:
        names = {"int8-thread": "sage2-8b", "int4-token": "qserve", "qaq": "qaq", "softmax=sas": "turbo"}
        recipe = next((name for word, name in names.items() if word in r["recipe"]), "kv16")
        lines.append([recipe, r["test"], str(r["batch"]), f"{r['planned_bytes'] / 1e9:.3f}", f"{r['device_bytes'] / 1e9:.3f}",
                      f"{100 * (r['device_bytes'] / r['planned_bytes'] - 1):+.2f}%"])
    return f"""
## Memory

Llama 8B shape in w4a8-g128: what `nibble inspect` counts (weights, the rows of a step, cache, prompts) beside the most that the device's pool ever
gave out. Weights go to the device 4 MB at a time. When a matrix went as a whole, its bytes lay beside the packed ones: 525 MB for the head, packed last,
and +6.85% with one short sequence.

{table(["recipe", "test", "rows a step", "planned, GB", "taken, GB", ""], lines)}"""


(ROOT / "docs" / "results" / "h200.md").write_text(HEAD + GOALS + prefill() + prefill_4b() + prefill_turbo() + exact() + decode() + sparq() + linear() + beside() + quality() + memory() +
                                                   serve())
