#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a server does with more than it can: overload.py NIBBLE MODEL [--loads 0.5,1,2,5] [--seconds 60] [--capacity R] ...

1,000 streams of lowest priority stay open throughout and get what the load leaves, so under overload they stand still. `nibble bench
serve` puts multiples of the capacity beside them (measured first: 400 requests at once), a process of its own asks /health/live 50
times a second, and in the end 2,000 connections come at once. Prints a line a load; exit code 1 where an admitted request was lost,
p99 of /health/live is over 50 ms, goodput at the highest load is below 90% of that at 1, or more than 48 MB are taken beside weights, pools and
work memory."""
import argparse
import asyncio
import json
import multiprocessing
import subprocess
import sys
import time

from serve_client import Connection, Server, call, completion, events, exit_code, get, post

LOWEST = 1_000_000  # priority
PROMPT_TOKENS, NEW_TOKENS = 64, 32
MIN_GOODPUT, MAX_HEALTH_MS, MAX_HEAP_MB = 0.9, 50, 48


def probe_health(port, pause, stop, times):
    """Appends the milliseconds of each GET /health/live, a connection each, to what `times` gets in the end."""
    async def run():
        found = []
        while not stop.is_set():
            began = time.monotonic()
            status, _ = await call(port, get("/health/live"))
            found.append((time.monotonic() - began) * 1e3 if status == 200 else 1e9)
            await asyncio.sleep(pause)
        times.put(found)

    asyncio.run(run())


class Probe:
    def __init__(self, port, pause=0.02):
        self.stop, self.times = multiprocessing.Event(), multiprocessing.Queue()
        self.process = multiprocessing.Process(target=probe_health, args=(port, pause, self.stop, self.times), daemon=True)
        self.process.start()

    def end(self):
        """p99, the slowest, how many."""
        self.stop.set()
        times = sorted(self.times.get())
        self.process.join()
        return round(times[int(len(times) * 0.99)], 1), round(times[-1], 1), len(times)


class Background:
    """Streams that are always open: whoever has its answer asks again."""

    def __init__(self, port, count):
        self.port, self.open, self.least, self.answers = port, 0, count, 0
        self.tasks = [asyncio.create_task(self.run(i)) for i in range(count)]

    async def run(self, index):
        prompt = [100 + (index * 7 + k) % 3000 for k in range(PROMPT_TOKENS)]
        while True:
            connection = await Connection.open(self.port)
            try:
                connection.send(post(completion(prompt, NEW_TOKENS, priority=LOWEST)))
                status, headers = await connection.head()
                if status == 200:
                    self.open += 1
                    try:
                        events(await connection.body(headers))
                        self.answers += 1
                    finally:
                        self.open -= 1
                else:
                    await connection.body(headers)
                    await asyncio.sleep(0.2)
            finally:
                connection.close()

    async def watch(self, seconds):
        """The fewest that were open."""
        least, until = self.open, time.monotonic() + seconds
        while time.monotonic() < until:
            least = min(least, self.open)
            await asyncio.sleep(0.1)
        return least

    async def end(self):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def bench(options, port, *more):
    command = [options.nibble, "bench", "serve", "--port", str(port), "--json", "--goal-ttft", str(options.goal_ttft),
               "--input-len", str(PROMPT_TOKENS), "--output-len", str(NEW_TOKENS), *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=options.seconds + 300)
    if not done.stdout:
        raise AssertionError(f"nibble bench serve: {done.stderr.strip()}")
    return json.loads(done.stdout)


async def burst(port, count):
    """{outcome: how many} of so many connections at once."""
    async def one(index):
        try:
            body = completion([200 + index % 3000] * 8, 4)
            status, answer = await call(port, post(body))
            if status == 200:
                events(answer)
            return status
        except (asyncio.IncompleteReadError, ConnectionError, AssertionError) as error:
            return type(error).__name__

    outcomes = await asyncio.gather(*[one(i) for i in range(count)])
    return {str(outcome): outcomes.count(outcome) for outcome in sorted(set(outcomes), key=str)}


async def run_load(options, server, background, load, capacity):
    rate = load * capacity
    probe, before = Probe(server.port), server.rss_mb()
    result, least = await asyncio.gather(
        asyncio.to_thread(bench, options, server.port, "--request-rate", f"{rate:.3f}", "--num-prompts",
                          str(max(1, round(rate * options.seconds))), "--seed", str(round(load * 10))),
        background.watch(options.seconds))
    line = {"load": load, "rate": round(rate, 1), "p99_health_ms": probe.end()[0], "fewest_streams_open": least,
            "rss_mb": [round(before), round(server.rss_mb())], "memory_mb": server.memory_mb()}
    line |= {key: round(result[key], 2) for key in
             ("completed", "refused_429", "failed", "request_throughput", "request_goodput", "median_ttft_ms", "p99_ttft_ms")}
    print(json.dumps(line), flush=True)
    return line


def judge(lines, outcomes):
    """What is not as it should be."""
    wrong = [f"load {l['load']}: {l['failed']} lost" for l in lines if l["failed"]]
    wrong += [f"load {l['load']}: p99 of /health/live {l['p99_health_ms']} ms" for l in lines if l["p99_health_ms"] > MAX_HEALTH_MS]
    wrong += [f"load {l['load']}: {l['memory_mb']['heap']} MB beside weights and pools" for l in lines if l["memory_mb"]["heap"] > MAX_HEAP_MB]
    goodput = {l["load"]: l["request_goodput"] for l in lines}
    if 1 in goodput and max(goodput) > 1 and goodput[max(goodput)] < MIN_GOODPUT * goodput[1]:
        wrong.append(f"goodput {goodput[max(goodput)]} at {max(goodput)}, {goodput[1]} at 1")
    if outcomes and set(outcomes) - {"200", "429", "503"}:
        wrong.append(f"connections at once: {outcomes}")
    return wrong


async def run(options):
    server = Server(options.nibble, options.model, "--max-num-seqs", "16", "--max-queued-requests", str(options.streams + 32),
                    "--recipe", options.recipe)
    capacity = options.capacity or bench(options, server.port, "--num-prompts", "400")["request_throughput"]
    print(json.dumps({"capacity": round(capacity, 2), "start_seconds": round(server.start_seconds, 3)}), flush=True)
    background = Background(server.port, options.streams)
    while background.open < options.streams * 0.99:
        await asyncio.sleep(0.1)
    lines, outcomes = [], {}
    for load in [float(load) for load in options.loads.split(",") if load]:
        lines.append(await run_load(options, server, background, load, capacity))
    if options.burst:
        probe = Probe(server.port, pause=0.002)  # it takes two seconds: at 50 a second, p99 would be the slowest of a hundred
        outcomes = await burst(server.port, options.burst)
        health, slowest, asked = probe.end()
        print(json.dumps({"connections_at_once": options.burst, "outcomes": outcomes, "p99_health_ms": health, "slowest_health_ms": slowest,
                          "asked": asked, "memory_mb": server.memory_mb()}))
    await background.end()
    print(json.dumps({"answers_of_the_lowest_priority": background.answers, "exit_code": server.stop()}))
    wrong = judge(lines, outcomes)
    if options.burst and health > MAX_HEALTH_MS:
        wrong.append(f"connections at once: p99 of /health/live {health} ms")
    return exit_code(wrong)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("nibble")
    parser.add_argument("model")
    parser.add_argument("--recipe", default="qserve")
    parser.add_argument("--loads", default="0.5,1,2,5", help="multiples of the capacity")
    parser.add_argument("--seconds", type=int, default=60, help="of each load")
    parser.add_argument("--capacity", type=float, default=0, help="requests a second; 0: measured")
    parser.add_argument("--streams", type=int, default=1000, help="of lowest priority, open throughout")
    parser.add_argument("--burst", type=int, default=2000, help="connections at once, at the end")
    parser.add_argument("--goal-ttft", type=float, default=2000, help="ms to the first token that count as good")
    return asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
