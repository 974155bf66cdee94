# SPDX-License-Identifier: Apache-2.0
"""peers_linear.py [FILE.json]: cuBLASLt's fp8 product (torch._scaled_mm, tensor-wide scales, fast accumulation) at the shapes of
bench/gpu/linear.cc, timed the same way: CUDA-graph replay over rotating weights that exceed the L2 three times, medians."""
import json
import statistics
import sys

import torch

SHAPES = [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)]
ROWS = [1, 16, 32, 64, 128, 256, 1024, 4096]


def seconds(n, k, rows):
    m = max(rows, 16)  # the library takes multiples of 16
    copies = max(2, min(64, 180_000_000 // (n * k) + 1))
    w = [torch.randn(n, k, device="cuda").to(torch.float8_e4m3fn) for _ in range(copies)]
    x = torch.randn(m, k, device="cuda").to(torch.float8_e4m3fn)
    one = torch.ones((), device="cuda")
    launches = max(6 if rows >= 1024 else 24, copies)

    def run():
        for i in range(launches):
            torch._scaled_mm(x, w[i % copies].t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True)

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    times = []
    for _ in range(15):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e-3 / launches)
    return statistics.median(times)


rows_out = []
for n, k in SHAPES:
    for rows in ROWS:
        s = seconds(n, k, rows)
        rows_out.append({"op": "cublaslt fp8", "shape": f"{n}x{k} rows {rows}", "seconds": s})
        print(f"cublaslt fp8 {n}x{k} rows {rows}: {s * 1e6:.2f} us, {2e-12 * rows * n * k / s:.0f} TFLOP/s")
if len(sys.argv) > 1:
    with open(sys.argv[1], "w") as file:
        json.dump({"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": rows_out}, file, indent=1)
