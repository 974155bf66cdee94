#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Decode attention of PyTorch on the shapes of decode_time.cc: peers_decode.py [-o FILE.json]

Flash attention in f16 with grouped heads, one query row a sequence, on contiguous K and V. A CUDA graph of launches that
rotate over buffers larger than the L2, replayed: the same method as nibble_gpu.
"""
import argparse
import json

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

SHAPES = [(64, 4096, 32, 8, 128), (16, 16384, 32, 8, 128), (1, 32768, 32, 8, 128), (64, 1024, 32, 8, 128),
          (16, 4096, 32, 8, 128), (1, 4096, 32, 8, 128), (16, 4096, 32, 32, 128), (64, 4096, 32, 8, 64),
          (64, 4096, 64, 4, 128)]


def seconds(run, launches, replays=15):
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for i in range(launches):
            run(i)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for i in range(launches):
            run(i)
    graph.replay()
    times = []
    for _ in range(replays):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e-3 / launches)
    return sorted(times)[len(times) // 2]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", dest="output")
    output = parser.parse_args().output
    rows = []
    for batch, length, heads, kv_heads, dim in SHAPES:
        size = 4 * batch * length * kv_heads * dim
        copies = max(2, min(64, 180_000_000 // size + 1))
        new = lambda n, h: torch.randn(batch, h, n, dim, device="cuda", dtype=torch.float16)
        q, k, v = new(1, heads), [new(length, kv_heads) for _ in range(copies)], [new(length, kv_heads) for _ in range(copies)]
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            t = seconds(lambda i: scaled_dot_product_attention(q, k[i % copies], v[i % copies], enable_gqa=heads != kv_heads),
                        max(20, copies))
        floor = size / 4.64e12
        print(f"PyTorch {torch.__version__} flash f16   {batch} x {length} {heads}/{kv_heads} d{dim}   {t * 1e6:9.2f} us"
              f"  {100 * floor / t:5.1f}% of the floor {floor * 1e6:.2f} us", flush=True)
        rows.append({"op": "PyTorch flash f16", "shape": f"{batch} x {length} {heads}/{kv_heads} d{dim}", "seconds": t,
                     "floor_seconds": floor, "floor": "4.64 TB/s"})
    if output:
        with open(output, "w", encoding="utf-8") as file:
            json.dump({"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
