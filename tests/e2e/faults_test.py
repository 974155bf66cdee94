#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The n-th call of the system fails, for every n until the scenario passes without a fault: faults_test.py NIBBLE MODEL PRELOAD [--most N].

PRELOAD is the library of tests/faults. Loading and generating, quantizing, and serving each either do their work to the byte or say
why not in one line; a server answers the next request. Where memory for a small thing fails, the server ends with exit code 1, for whoever
supervises it: that is counted. --most N takes the first, third, ninth, ... call, N of them; 0 all, of malloc 200 at even distances."""
import argparse
import asyncio
import errno
import hashlib
import itertools
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile

from serve_client import Server, call, completion, post, text_of

PROMPT = "It was a dark and stormy night"
HALF = 0  # of what was asked
GENERATE = {"open": [errno.EMFILE], "read": [errno.EIO, errno.EINTR, HALF], "pread": [errno.EIO, errno.EINTR, HALF],
            "mmap": [errno.ENOMEM], "write": [errno.ENOSPC, errno.EINTR, HALF], "malloc": [errno.ENOMEM]}
QUANTIZE = {"open": [errno.EMFILE], "pread": [errno.EIO], "mmap": [errno.ENOMEM], "write": [errno.ENOSPC, errno.EINTR, HALF],
            "pwrite": [errno.ENOSPC, errno.EINTR, HALF], "fsync": [errno.EIO], "rename": [errno.EIO], "ftruncate": [errno.ENOSPC]}
SERVE = {"accept": [errno.EMFILE, errno.ECONNABORTED, errno.EINTR], "recv": [errno.ECONNRESET, errno.EINTR, HALF],
         "recvmsg": [errno.ECONNRESET, errno.EINTR, HALF], "send": [errno.EPIPE, errno.EINTR, HALF],
         "sendmsg": [errno.EPIPE, errno.EINTR, HALF], "read": [errno.EIO], "write": [errno.EPIPE, HALF], "malloc": [errno.ENOMEM]}
MOST_OF_MEMORY = 200  # places of malloc, of which there are tens of thousands
HARMLESS = (errno.EINTR, HALF)  # what a program goes on after


class Wrong(Exception):
    pass


class Ended(Exception):
    """A server, for want of memory."""


class Seam:
    """The environment of a run, and whether its fault came."""

    def __init__(self, preload, folder, name, number, error):
        self.name, self.mark = name, pathlib.Path(folder) / "mark"
        self.mark.unlink(missing_ok=True)
        self.environment = os.environ | {"LD_PRELOAD": preload, "NIBBLE_FAULT": f"{name}:{number}:{error}",
                                         "NIBBLE_FAULT_MARK": str(self.mark)}

    def fired(self):
        return self.mark.exists()


def run(command, environment):
    return subprocess.run(command, capture_output=True, env=environment, timeout=60)


def expect_one_line(done):
    lines = done.stderr.decode(errors="replace").splitlines()
    if done.returncode not in (1, 2) or not lines or not lines[-1].startswith("nibble: "):
        raise Wrong(f"exit code {done.returncode}: {done.stderr[-300:]!r}")


class Generate:
    calls = GENERATE

    def __init__(self, options, _):
        self.command = [options.nibble, "generate", "-m", options.model, "-p", PROMPT, "-n", "4", "--temp", "0", "-t", "1", "--quiet"]
        self.expected = run(self.command, os.environ).stdout

    def once(self, seam):
        done = run(self.command, seam.environment)
        if done.returncode == 0:
            if done.stdout != self.expected:
                raise Wrong(f"another text: {done.stdout!r}")
            return True
        expect_one_line(done)
        if not self.expected.startswith(done.stdout):
            raise Wrong(f"text that is none: {done.stdout!r}")
        return False


def contents(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


class Quantize:
    calls = QUANTIZE

    def __init__(self, options, folder):
        self.target = pathlib.Path(folder) / "quantized"
        self.command = [options.nibble, "quantize", "-m", options.model, "-o", str(self.target), "--weights", "w4a8-g128", "--method", "rtn", "-t", "1", "--quiet"]
        done = run(self.command, os.environ)
        if done.returncode != 0:
            raise Wrong(done.stderr.decode())
        self.expected = contents(self.target)
        shutil.rmtree(self.target)

    def once(self, seam):
        try:
            done = run(self.command, seam.environment)
            if done.returncode == 0:
                if contents(self.target) != self.expected:
                    raise Wrong("other files")
                return True
            expect_one_line(done)
            if self.target.exists():  # after the rename it is whole
                if contents(self.target) != self.expected:
                    raise Wrong("half of a folder was left")
            return False
        finally:
            shutil.rmtree(self.target, ignore_errors=True)


class Serve:
    calls = SERVE

    def __init__(self, options, _):
        self.options = options
        server = Server(options.nibble, options.model, "-t", "1")
        self.expected = asyncio.run(self.ask(server.port))
        server.stop()

    @staticmethod
    async def ask(port):
        status, stream = await call(port, post(completion(PROMPT, 12)))
        if status != 200:
            raise ConnectionError(f"status {status}")
        return text_of(stream)

    def answer(self, port):
        """The text, or None where the connection or the answer failed."""
        try:
            text = asyncio.run(asyncio.wait_for(self.ask(port), 20))
        except (ConnectionError, asyncio.IncompleteReadError, AssertionError):
            return None
        except asyncio.TimeoutError:
            raise Wrong("no answer and no end")
        if text != self.expected:
            raise Wrong(f"another text: {text!r}")
        return text

    def once(self, seam):
        try:
            server = Server(self.options.nibble, self.options.model, "-t", "1", environment=seam.environment, log=True)
        except AssertionError as error:
            if "exit code 1" not in str(error):
                raise Wrong(str(error)) from error
            return False
        try:
            answers = [self.answer(server.port) for _ in range(3)]
            if answers[-1] is None:
                answers.append(self.answer(server.port))
            if seam.name == "malloc" and answers[-1] is None and server.wait(10) == 1:
                raise Ended
            if answers.count(None) > 1 or answers[-1] is None:
                raise Wrong(f"{answers.count(None)} of {len(answers)} requests failed for one fault, exit code {server.process.poll()}")
            code = server.stop()
            if code != 0:
                raise Wrong(f"exit code {code}")
            return None not in answers
        finally:
            if server.process.poll() is None:
                server.signal(signal.SIGKILL)
                server.wait()


def places(scenario, options, folder, name, error):
    """Numbers of calls to fail: all of them, of malloc MOST_OF_MEMORY at even distances; or 1, 3, 9, ..."""
    if options.most:
        return [3**i for i in range(options.most)]
    if name != "malloc":
        return itertools.count(1)  # until none comes
    count = 1
    while True:  # how many there are
        seam = Seam(options.preload, folder, name, count, error)
        try:
            scenario.once(seam)
        except (Wrong, Ended, subprocess.TimeoutExpired):
            pass  # is found again below
        if not seam.fired():
            return sorted({1 + (count - 1) * i // MOST_OF_MEMORY for i in range(MOST_OF_MEMORY)})
        count *= 2


def run_call(scenario, options, folder, name, error):
    """How many were wrong; says what became of all."""
    kind = errno.errorcode.get(error, "half")
    came = {"went on": 0, "said so": 0, "ended": 0, "wrong": 0}
    for number in places(scenario, options, folder, name, error):
        seam = Seam(options.preload, folder, name, number, error)
        try:
            done = scenario.once(seam)
            if not seam.fired():
                if not done:
                    raise Wrong("failed without a fault")
                break
            if not done and error in HARMLESS:
                raise Wrong("gave up for nothing")
            came["went on" if done else "said so"] += 1
        except Ended:
            came["ended"] += 1
        except (Wrong, subprocess.TimeoutExpired) as what:
            came["wrong"] += 1
            print(f"FAILED  {type(scenario).__name__}: {name} {number} {kind}: {what}", flush=True)
    counts = ", ".join(f"{count} {what}" for what, count in came.items() if count)
    print(f"{'FAILED' if came['wrong'] else 'ok'}  {type(scenario).__name__}: {name} {kind}: {counts or 'not called'}", flush=True)
    return came["wrong"]


def run_calls(scenario, options, folder):
    return sum(run_call(scenario, options, folder, name, error) for name, errors in scenario.calls.items() for error in errors)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("nibble")
    parser.add_argument("model")
    parser.add_argument("preload")
    parser.add_argument("--most", type=int, default=2, help="calls of each name; 0: all, of malloc 200")
    parser.add_argument("--only", default="", help="Generate, Quantize or Serve")
    options = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for scenario in (Generate, Quantize, Serve):
            if options.only in ("", scenario.__name__):
                wrong += run_calls(scenario(options, folder), options, folder)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
