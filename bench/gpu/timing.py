# SPDX-License-Identifier: Apache-2.0
"""What the peers_*.py share: timing as nibble_gpu does it, and the JSON of results."""
import json
import statistics

import torch


def seconds(run, launches, replays=15):
    """Median seconds of one run(i), i = 0 .. launches - 1, from replays of a CUDA graph that holds them all."""
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
    return statistics.median(times)


def cold_copies(size):
    """How many copies of `size` bytes exceed the L2 three times."""
    return max(2, min(64, 180_000_000 // size + 1))


def write(path, rows):
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": rows}, file, indent=1)
