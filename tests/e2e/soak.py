#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A server under mixed load for long: soak.py NIBBLE MODEL [--minutes 30] [--clients 24] [--rate N] [--recipes LIST].

Clients stream, wait, cancel, ask for choices, constraints, embeddings and for what is refused. Every ten seconds resident memory, descriptors
and pages are noted. Exit code 1 where an answer is wrong, or memory of the last quarter passes that of the second by 5%, or descriptors
or pages are not what they were once it is idle."""
import argparse
import asyncio
import json
import random
import sys
import time

from serve_client import Connection, Server, call, completion, exit_code, get, idle, post, text_of

GROWTH = 1.05
PROMPTS = ["It was a dark and stormy night", "Chapter I", "The rain fell", "\"My dear Watson,\" said he,"]


class Load:
    def __init__(self, port, expected, pause):
        self.port, self.expected, self.pause, self.counts = port, expected, pause, {}

    def choose(self, rng):
        return rng.choice(list(self.expected)), rng.randrange(len(PROMPTS))

    async def stream(self, rng):
        model, index = self.choose(rng)
        _, answer = await call(self.port, post(completion(PROMPTS[index], 40, model=model)))
        assert text_of(answer) == self.expected[model][index], "another text"

    async def whole(self, rng):
        model, index = self.choose(rng)
        _, answer = await call(self.port, post(completion(PROMPTS[index], 40, stream=False, model=model)))
        assert json.loads(answer)["choices"][0]["text"] == self.expected[model][index], "another text"

    async def fresh(self, rng):
        prompt = [rng.randrange(100, 4000) for _ in range(rng.randrange(1, 400))]
        body = completion(prompt, rng.randrange(1, 80), temperature=1.0, seed=rng.randrange(1 << 30), logprobs=2, n=rng.randrange(1, 4),
                          model=self.choose(rng)[0])
        status, _ = await call(self.port, post(body))
        assert status == 200, status

    async def cancel(self, rng):
        connection = await Connection.open(self.port)
        connection.send(post(completion(f"Cancelled {rng.random()}", 400)))
        try:
            await connection.reader.readexactly(rng.randrange(1, 20000))
        finally:
            connection.reset()

    async def constrained(self, rng):
        body = {"prompt": "A number: ", "max_tokens": 20, "guided_regex": f"[0-9]{{{rng.randrange(1, 6)}}}", "seed": 1}
        _, answer = await call(self.port, post(body))
        assert json.loads(answer)["choices"][0]["text"].isdigit(), answer

    async def embedding(self, _):
        status, _ = await call(self.port, post({"input": PROMPTS}, path="/v1/embeddings"))
        assert status == 200, status

    async def refused(self, rng):
        bad = rng.choice([{"prompt": []}, {"prompt": "x", "n": 0}, {"prompt": "x", "guided_regex": "["}, {"prompt": [1 << 30]}])
        status, _ = await call(self.port, post(bad))
        assert status == 400, status

    async def look(self, rng):
        status, _ = await call(self.port, get(rng.choice(["/metrics", "/health", "/v1/models", "/", "/nothing"])))
        assert status in (200, 404), status

    async def client(self, seed, until):
        rng = random.Random(seed)
        kinds = [self.stream, self.whole, self.fresh, self.cancel, self.constrained, self.embedding, self.refused, self.look]
        while time.monotonic() < until:
            await asyncio.sleep(rng.expovariate(1 / self.pause) if self.pause else 0)
            kind = rng.choice(kinds)
            await kind(rng)
            self.counts[kind.__name__] = self.counts.get(kind.__name__, 0) + 1


async def watch(server, until, samples):
    while time.monotonic() < until:
        await asyncio.sleep(min(10, max(0.1, until - time.monotonic())))
        samples.append((round(server.rss_mb(), 1), server.descriptors(), server.memory_mb()))
        print(f"{len(samples) * 10} s: {samples[-1][0]} MB, {samples[-1][1]} descriptors, {samples[-1][2]}", flush=True)


async def run(options):
    server = Server(options.nibble, options.model, "--kv-tokens", "16384", "--recipes", options.recipes, "--preempt", "swap")
    _, listed = await call(server.port, get("/v1/models"))
    expected = {}
    for model in [entry["id"] for entry in json.loads(listed)["data"]]:
        expected[model] = [text_of((await call(server.port, post(completion(prompt, 40, model=model))))[1]) for prompt in PROMPTS]
    before, descriptors = await idle(server.port), server.descriptors()
    load, samples, until = Load(server.port, expected, options.clients / options.rate if options.rate else 0), [], time.monotonic() + options.minutes * 60
    await asyncio.gather(watch(server, until, samples), *[load.client(i, until) for i in range(options.clients)])
    after = await idle(server.port)
    await asyncio.sleep(3)  # for the last sessions to end
    quarter = max(1, len(samples) // 4)
    second, last = (max(s[0] for s in part) for part in (samples[quarter:2 * quarter] or samples, samples[-quarter:]))
    left = server.descriptors()
    print(json.dumps({"answers": load.counts, "rss_mb": {"second_quarter": second, "last_quarter": last},
                      "descriptors": [descriptors, left], "pages_used": after["kv_cache_pages_used"],
                      "preemptions": after["num_preemptions_total"], "exit_code": server.stop()}))
    wrong = []
    if last > second * GROWTH:
        wrong.append(f"memory grew from {second} to {last} MB")
    if after["kv_cache_pages_used"] != before["kv_cache_pages_used"]:
        wrong.append(f"{after['kv_cache_pages_used']} pages in use")
    if left > descriptors:
        wrong.append(f"{left} descriptors, {descriptors} at the beginning")
    return exit_code(wrong)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("nibble")
    parser.add_argument("model")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--rate", type=float, default=0, help="requests a second of all clients together; 0: as fast as answers come")
    parser.add_argument("--recipes", default="exact,qserve")
    return asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
