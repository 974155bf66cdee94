# SPDX-License-Identifier: Apache-2.0
"""A `nibble serve` under test and an HTTP client over asyncio, with Python's standard library alone."""
import asyncio
import atexit
import json
import os
import re
import signal
import socket
import subprocess
import time


ARENA, LARGE = 64 << 20, 1 << 20


class Server:
    """The program as a process; `url` and `port` once it has printed its address, which it does when it answers."""

    def __init__(self, nibble, model, *options, port=0, environment=None, log=False):
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [nibble, "serve", "-m", model, "--quiet", *([] if log else ["--no-log"]), "--port", str(port), *options],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL if log else None, text=True, env=environment)
        atexit.register(self.process.kill)  # a test that fails leaves nothing behind
        self.url = self.process.stdout.readline().strip()
        self.start_seconds = time.monotonic() - self.began
        if not self.url:
            raise AssertionError(f"the server did not start, exit code {self.process.wait()}")
        self.port = int(self.url.rsplit(":", 1)[1])

    def signal(self, number):
        self.process.send_signal(number)

    def wait(self, seconds=60):
        code = self.process.wait(timeout=seconds)
        self.process.stdout.close()
        return code

    def stop(self):
        self.signal(signal.SIGTERM)
        return self.wait()

    def memory_mb(self):
        """What is resident, by what it is for. `large`: weights, KV pools and work memory, which are mapped by themselves; `heap`: what
        malloc keeps, in its arenas too; `files`: the program and its libraries."""
        found, kind = {"large": 0.0, "heap": 0.0, "files": 0.0}, None
        with open(f"/proc/{self.process.pid}/smaps") as file:
            for line in file:
                head = re.match(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+\s*(.*)", line)
                if head:
                    first, size = int(head[1], 16), int(head[2], 16) - int(head[1], 16)
                    arena = first % ARENA == 0 and size <= ARENA  # glibc's begin at such addresses
                    anonymous = not head[3] or head[3].startswith("[")
                    kind = "files" if not anonymous else "large" if size >= LARGE and not arena and not head[3] else "heap"
                elif line.startswith("Rss:"):
                    found[kind] += int(line.split()[1]) / 1024
        return {kind: round(size, 1) for kind, size in found.items()}

    def rss_mb(self):
        with open(f"/proc/{self.process.pid}/status") as file:
            return int(next(line for line in file if line.startswith("VmRSS")).split()[1]) / 1024

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


def exit_code(wrong):
    """Prints what was found wrong; 1 where there was something."""
    for what in wrong:
        print(f"FAILED  {what}")
    return 1 if wrong else 0


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def post(body, path="/v1/completions", close=True):
    text = json.dumps(body).encode()
    end = "Connection: close\r\n" if close else ""
    return (f"POST {path} HTTP/1.1\r\nHost: nibble\r\nContent-Type: application/json\r\n{end}"
            f"Content-Length: {len(text)}\r\n\r\n").encode() + text


def get(path):
    return f"GET {path} HTTP/1.1\r\nHost: nibble\r\nConnection: close\r\n\r\n".encode()


class Connection:
    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port):
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 22))

    def send(self, request):
        self.writer.write(request)

    async def head(self):
        """(status, headers) of an answer; a connection that ends before it raises."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        return int(head[0].split()[1]), headers

    async def body(self, headers):
        """Whole, or an IncompleteReadError."""
        if "content-length" in headers:
            return await self.reader.readexactly(int(headers["content-length"]))
        text = b""
        while True:
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            text += await self.reader.readexactly(size)
            await self.reader.readexactly(2)
            if size == 0:
                return text

    def reset(self):
        """Goes as a process that dies does."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.writer.transport.abort()

    def close(self):
        self.writer.close()


async def call(port, request):
    """(status, body) of a request on a connection of its own."""
    connection = await Connection.open(port)
    try:
        connection.send(request)
        status, headers = await connection.head()
        return status, await connection.body(headers)
    finally:
        connection.close()


def events(stream):
    """The JSON of every event before [DONE]; raises where the stream is cut."""
    parts = stream.decode().split("\n\n")
    data = [part[6:] for part in parts if part.startswith("data: ")]
    if not data or data[-1] != "[DONE]":
        raise AssertionError("a stream without its end")
    return [json.loads(part) for part in data[:-1]]


def text_of(stream):
    return "".join(event["choices"][0]["text"] for event in events(stream) if event["choices"])


async def metrics(port):
    """{name without nibble:: value} of the gauges and counters, over all models and recipes."""
    _, body = await call(port, get("/metrics"))
    found = {}
    for line in body.decode().splitlines():
        if not line.startswith("#") and "le=" not in line:
            name, value = line.rsplit(" ", 1)
            name = name.split("{")[0].removeprefix("nibble:")
            found[name] = found.get(name, 0) + float(value)
    return found


async def idle(port, seconds=30):
    """The metrics once nothing runs or waits."""
    until = time.monotonic() + seconds
    while True:
        found = await metrics(port)
        if found["num_requests_running"] + found["num_requests_waiting"] == 0:
            return found
        if time.monotonic() > until:
            raise AssertionError(f"not idle after {seconds} s: {found}")
        await asyncio.sleep(0.02)


def completion(prompt, tokens, stream=True, **more):
    return {"prompt": prompt, "max_tokens": tokens, "stream": stream, "temperature": 0, "ignore_eos": True, **more}
