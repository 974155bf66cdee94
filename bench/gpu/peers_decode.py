#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""peers_decode.py FILE.json: decode attention of PyTorch on the shapes of decode_time.cc: flash attention in f16 with grouped
heads, one query row a sequence, on contiguous K and V that rotate through more than the L2."""
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

import timing

SHAPES = [(64, 4096, 32, 8, 128), (16, 16384, 32, 8, 128), (1, 32768, 32, 8, 128), (64, 1024, 32, 8, 128),
          (16, 4096, 32, 8, 128), (1, 4096, 32, 8, 128), (16, 4096, 32, 32, 128), (64, 4096, 32, 8, 64),
          (64, 4096, 64, 4, 128)]


def main():
    rows = []
    for batch, length, heads, kv_heads, dim in SHAPES:
        size = 4 * batch * length * kv_heads * dim
        copies = timing.cold_copies(size)
        new = lambda n, h: torch.randn(batch, h, n, dim, device="cuda", dtype=torch.float16)
        q, k, v = new(1, heads), [new(length, kv_heads) for _ in range(copies)], [new(length, kv_heads) for _ in range(copies)]
        run = lambda i: scaled_dot_product_attention(q, k[i % copies], v[i % copies], enable_gqa=heads != kv_heads)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            t = timing.seconds(run, max(20, copies))
        floor, shape = size / 4.64e12, f"{batch} x {length} {heads}/{kv_heads} d{dim}"
        print(f"PyTorch {torch.__version__} flash f16   {shape}   {t * 1e6:9.2f} us  {100 * floor / t:5.1f}% of the floor", flush=True)
        rows.append({"op": "PyTorch flash f16", "shape": shape, "seconds": t, "floor_seconds": floor, "floor": "4.64 TB/s"})
    timing.write(sys.argv[1], rows)


main()
