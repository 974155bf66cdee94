#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tools/check_tidy.py PRESET [FOLDER or SOURCE...]: clang-tidy over every source of src, tests and bench, or of some of them, as that
build compiles it.

Sources with the same flags are read together, through a file that includes several of them (joined_sources.py); a file that does
not compile is taken apart and read source by source."""
import concurrent.futures
import json
import os
import shlex
import subprocess
import sys

from joined_sources import make_groups

# In a file of several sources, what one declares at its top is no concern of the next.
JOINED = ["--checks=-bugprone-suspicious-include", "--extra-arg=-Wno-shadow"]


def read_sources(build, folders):
    """{source: (folder of the compiler, flags)} of each .cc below `folders`, without what only g++ understands."""
    sources = {}
    for entry in json.load(open(f"{build}/compile_commands.json")):
        name = os.path.relpath(entry["file"])
        if not name.endswith(".cc") or not name.startswith(folders):
            continue
        words = shlex.split(entry["command"])
        begin = max(i for i, w in enumerate(words) if os.path.basename(w) in ("c++", "g++", "clang++")) + 1
        flags = []
        rest = iter(words[begin:])
        for word in rest:
            if word in ("-o", "-c", "-include"):
                next(rest)
            elif word not in ("-fpch-preprocess", "-Winvalid-pch"):
                flags.append(word)
        sources[name] = (entry["directory"], tuple(flags))
    return sources


def write_commands(folder, sources, batches):
    os.makedirs(folder, exist_ok=True)
    entries, files = [], []
    for i, batch in enumerate(batches):
        path = os.path.abspath(f"{folder}/batch_{i}.cc")
        with open(path, "w") as f:
            f.writelines(f'#include "{os.path.abspath(s)}"\n' for s in batch)
        files.append(path)
    for path, (directory, flags) in [(f, sources[b[0]]) for f, b in zip(files, batches)] + [
            (os.path.abspath(s), flags) for s, flags in sources.items()]:
        entries.append({"file": path, "directory": directory, "arguments": ["c++", *flags, "-c", path]})
    json.dump(entries, open(f"{folder}/compile_commands.json", "w"))
    return files


def tidy(folder, path, *more):
    """(clean, what it printed); --quiet still counts suppressed warnings on stderr, a finding is on stdout."""
    run = subprocess.run(["clang-tidy", "--quiet", "-p", folder, "--header-filter=/(src|tests|bench)/",
                          "--extra-arg=-Wno-unknown-warning-option", *more, path],
                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return run.returncode == 0, run.stdout


def check_batch(folder, path, batch):
    """Findings as text, and how many times clang-tidy ran."""
    if len(batch) > 1:
        clean, out = tidy(folder, path, *JOINED)
        if clean or "[clang-diagnostic-error]" not in out:
            return ("" if clean else out), 1
    results = [tidy(folder, os.path.abspath(s)) for s in batch]
    return "".join(out for clean, out in results if not clean), len(batch) + (len(batch) > 1)


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
    build = f"out/{sys.argv[1]}"
    folders = tuple(f if f.endswith(".cc") else f.rstrip("/") + "/" for f in sys.argv[2:]) or ("src/", "tests/", "bench/")
    sources = read_sources(build, folders)
    if not sources:
        sys.exit(f"{build}/compile_commands.json names no source below {' '.join(folders)}")
    batches = make_groups(sources)
    folder = f"{build}/tidy"
    files = write_commands(folder, sources, batches)
    # The longest first: the last one to end should be a short one.
    order = sorted(zip(files, batches), key=lambda fb: -len(fb[1]))
    runs, bad = 0, False
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for findings, count in pool.map(lambda fb: check_batch(folder, *fb), order):
            runs += count
            if findings:
                bad = True
                print(findings, flush=True)
    if bad:
        sys.exit(1)
    print(f"{len(sources)} sources clean, {len(batches)} batches, {runs} runs of clang-tidy")


main()
