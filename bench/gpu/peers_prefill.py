# SPDX-License-Identifier: Apache-2.0
"""peers_prefill.py FILE.json: prefill attention of PyTorch (cuDNN and flash, bf16), timed as nibble_gpu times its own."""
import json
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

HEADS, TOKENS, DIM = 32, 16384, 128


def seconds(work, launches=3, replays=15):
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(launches):
            work()
    times = []
    graph.replay()
    for _ in range(replays):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e-3 / launches)
    return sorted(times)[len(times) // 2]


def main():
    rows = []
    for causal in (False, True):
        for length in (1024, 2048, 4096, 8192, 16384):
            batch = TOKENS // length
            q, k, v = (torch.randn(batch, HEADS, length, DIM, device="cuda", dtype=torch.bfloat16) for _ in range(3))
            for name, backend in (("cuDNN", SDPBackend.CUDNN_ATTENTION), ("flash", SDPBackend.FLASH_ATTENTION)):
                with sdpa_kernel(backend):
                    t = seconds(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal))
                operations = 4.0 * TOKENS * length * HEADS * DIM / (2 if causal else 1)
                shape = f"{batch}x{length} 32/32 heads {'causal' if causal else 'full'}"
                print(f"{name:28} {shape:34} {t * 1e6:9.2f} us  {operations / t * 1e-12:6.0f} TOP/s", flush=True)
                rows.append({"op": name, "shape": shape, "seconds": t, "operations": operations})
    with open(sys.argv[1], "w") as file:
        json.dump({"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": rows}, file, indent=1)


main()
