#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""peers_linear.py FILE.json: cuBLASLt's fp8 product (torch._scaled_mm, tensor-wide scales, fast accumulation) at the shapes of
linear.cc."""
import sys

import torch

import timing

SHAPES = [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)]
ROWS = [1, 16, 32, 64, 128, 256, 1024, 4096]


def product_seconds(n, k, rows, sustained):
    m = max(rows, 16)  # the library takes multiples of 16
    copies = timing.cold_copies(n * k)
    w = [torch.randn(n, k, device="cuda").to(torch.float8_e4m3fn) for _ in range(copies)]
    x = torch.randn(m, k, device="cuda").to(torch.float8_e4m3fn)
    one = torch.ones((), device="cuda")
    run = lambda i: torch._scaled_mm(x, w[i % copies].t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True)
    launches = max(6 if rows >= 1024 else 24, copies)
    burst = timing.seconds(run, launches)
    return timing.seconds(run, launches, int(2 / (burst * launches)) + 1) if sustained else burst


def main():
    results = []
    for n, k in SHAPES:
        for rows in ROWS:
            for op in ["cublaslt fp8"] + ["cublaslt fp8 sustained"] * (rows in (64, 4096)):
                s = product_seconds(n, k, rows, op.endswith("sustained"))
                results.append({"op": op, "shape": f"{n}x{k} rows {rows}", "seconds": s})
                print(f"{op} {n}x{k} rows {rows}: {s * 1e6:.2f} us, {2e-12 * rows * n * k / s:.0f} TFLOP/s", flush=True)
    timing.write(sys.argv[1], results)


main()
