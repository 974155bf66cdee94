#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a server is put through in operation: clients that go at any byte, drains, kills, cold starts.

operations_test.py NIBBLE MODEL [--cancels N] [--drains N] [--kills N] [--starts N]: the counts of ctest are small; those of an
acceptance run are 1000, 50, 100 and 20."""
import argparse
import asyncio
import random
import signal
import statistics
import sys

from serve_client import Connection, Server, call, completion, events, free_port, get, idle, metrics, post, text_of

PROMPTS = ["It was a dark and stormy night", "Chapter I", "\"My dear Watson,\" said he,", "The rain fell"]


async def alone(port, tokens):
    """The stream of each prompt with nothing beside it."""
    return [(await call(port, post(completion(prompt, tokens))))[1] for prompt in PROMPTS]


async def go_at_a_random_byte(port, rng, size):
    """Asks for a stream or a whole answer and goes: within the request, or within so many bytes of the answer."""
    connection = await Connection.open(port)
    whole = rng.random() < 0.25
    request = post(completion(f"Cancelled {rng.random()}", 300, stream=not whole))
    try:
        if rng.random() < 0.2:
            connection.send(request[:rng.randrange(len(request))])
            await connection.writer.drain()
        else:
            connection.send(request)
            await connection.writer.drain()
            if whole:
                await asyncio.sleep(rng.random() * 0.1)
            else:
                await connection.reader.readexactly(rng.randrange(size))
        if rng.random() < 0.5:
            connection.reset()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # at the end of the answer the server was faster
    finally:
        connection.close()


async def neighbour(port, expected, index, stop):
    count = 0
    while not stop.is_set():
        status, stream = await call(port, post(completion(PROMPTS[index], 60)))
        assert status == 200, status
        assert text_of(stream) == expected[index], f"a neighbour's text changed: {text_of(stream)!r}"
        count += 1
    return count


async def cancels(server, count):
    rng = random.Random(4)
    expected = [text_of(stream) for stream in await alone(server.port, 60)]
    size = len((await call(server.port, post(completion("Size", 300))))[1])
    before, stop = await idle(server.port), asyncio.Event()
    neighbours = [asyncio.create_task(neighbour(server.port, expected, i, stop)) for i in range(len(PROMPTS))]
    for first in range(0, count, 8):
        await asyncio.gather(*[go_at_a_random_byte(server.port, rng, size) for _ in range(min(8, count - first))])
    stop.set()
    checked = sum(await asyncio.gather(*neighbours))
    after = await idle(server.port)
    assert after["kv_cache_pages_used"] == 0, after["kv_cache_pages_used"]
    # A session ends a moment after its last byte.
    for _ in range(100):
        if after["http_connections"] <= before["http_connections"]:
            break
        await asyncio.sleep(0.05)
        after = await metrics(server.port)
    assert after["http_connections"] <= before["http_connections"], after["http_connections"]
    return f"{count} cancels, 0 pages leaked, {checked} answers of neighbours equal"


def run_cancels(options):
    said = []
    for more in ([], ["--no-prefix-cache"]):
        server = Server(options.nibble, options.model, "-t", "1", *more)
        said.append(asyncio.run(cancels(server, options.cancels // 2)))
        assert server.stop() == 0
    return "; ".join(said)


async def one_drain(options, rng):
    """(streams that came whole, refused before they began)"""
    server = Server(options.nibble, options.model, "--max-num-seqs", "64", "-t", "1")
    lengths = [rng.randrange(20, 120) for _ in range(64)]

    async def one(index):
        body = completion(f"Stream {index}", lengths[index], stream_options={"include_usage": True})
        status, stream = await call(server.port, post(body))
        if status == 503:
            return False
        assert status == 200, status
        assert events(stream)[-1]["usage"]["completion_tokens"] == lengths[index]
        return True

    streams = [asyncio.create_task(one(i)) for i in range(64)]
    while (await metrics(server.port))["num_requests_running"] == 0:
        await asyncio.sleep(0.01)
    await asyncio.sleep(rng.random() * 1.5)
    server.signal(signal.SIGTERM)
    came = await asyncio.gather(*streams)
    code = await asyncio.to_thread(server.wait)
    assert code == 0, f"exit code {code}"
    return sum(came), len(came) - sum(came)


def run_drains(options):
    rng = random.Random(5)
    counts = [asyncio.run(one_drain(options, rng)) for _ in range(options.drains)]
    return f"{options.drains} drains: {sum(c[0] for c in counts)} streams whole, {sum(c[1] for c in counts)} refused, 0 cut"


async def under_way_when_killed(server, rng):
    async def one(index):
        try:
            await call(server.port, post(completion(f"Killed {index}", 200)))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass

    streams = [asyncio.create_task(one(i)) for i in range(8)]
    await asyncio.sleep(rng.random() * 0.2)
    server.signal(signal.SIGKILL)
    await asyncio.gather(*streams)


def run_kills(options):
    rng, port, expected = random.Random(6), free_port(), None
    for _ in range(options.kills):
        server = Server(options.nibble, options.model, "-t", "1", port=port)
        text = text_of(asyncio.run(call(port, post(completion(PROMPTS[0], 20))))[1])
        expected = expected or text
        assert text == expected, text
        asyncio.run(under_way_when_killed(server, rng))
        assert server.wait() == -signal.SIGKILL
    return f"{options.kills} kill -9 under 8 streams: every start on the same port answers the same"


def run_starts(options):
    times = []
    for _ in range(options.starts):
        server = Server(options.nibble, options.model)
        status, _ = asyncio.run(call(server.port, get("/health/ready")))
        assert status == 200, status
        times.append(server.start_seconds)
        assert server.stop() == 0
    return f"{options.starts} starts: median {statistics.median(times):.3f} s, slowest {max(times):.3f} s to ready"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("nibble")
    parser.add_argument("model")
    for name, count in (("cancels", 60), ("drains", 2), ("kills", 3), ("starts", 2)):
        parser.add_argument(f"--{name}", type=int, default=count)
    options = parser.parse_args()
    failed = 0
    for run in (run_cancels, run_drains, run_kills, run_starts):
        name = run.__name__.removeprefix("run_")
        if getattr(options, name) == 0:
            continue
        try:
            print(f"ok      {run(options)}", flush=True)
        except Exception as error:  # every scenario is tried, whatever becomes of the others
            failed += 1
            print(f"FAILED  {name}: {type(error).__name__}: {error}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
