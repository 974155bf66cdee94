#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures nibble beside llama.cpp on random models of one shape, in alternating runs.

  bench/peers/llama_cpp.py [--shape 1b] [--threads 2] [--pairs 5] [--depth 0,4096] [--json bench/results/cpu_peer.json]

The first call installs llama-cpp-python from PyPI, built for this machine, into out/peers/llama-cpp (some minutes), and
writes a GGUF of the same shape beside it: Q4_0 with a Q6_K head, which is what llama-quantize makes of "Q4_0". Of nibble it
takes W4A8-g128 with a head in 8 bits. Both get the same number of threads, prompts in steps of 512, and flash attention. Where
there is a depth, both get random keys and values of their own cache types up to it.
"""
import argparse
import json
import os
import pathlib
import platform
import statistics
import struct
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
VERSION = "0.3.36"
SHAPES = {"1b": (16, 2048, 8192, 32, 8, 64), "3b": (28, 3072, 8192, 24, 8, 128), "8b": (32, 4096, 14336, 32, 8, 128),
          "8b-4": (4, 4096, 14336, 32, 8, 128)}
VOCAB, BATCH = 32000, 512


def python_of(folder):
    """The interpreter of the virtual environment, made if it is missing."""
    python = folder / "bin" / "python"
    if python.exists() and subprocess.run([python, "-c", "import llama_cpp, gguf"], capture_output=True).returncode == 0:
        return python
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    env = {**os.environ, "CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF", "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count())}
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-cache-dir", f"llama-cpp-python=={VERSION}", "gguf"],
                   check=True, env=env)
    return python


# ---- inside the virtual environment ----

def write_gguf(path, shape):
    import gguf
    import numpy
    layers, hidden, inner, heads, kv_heads, head_dim = SHAPES[shape]
    random = numpy.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(1 << 20)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(head_dim)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("none")

    def norm(name):
        writer.add_tensor(name, numpy.ones(hidden, numpy.float32))

    def matrix(name, n, k, kind="Q4_0"):
        # Weights of a standard deviation of 1 / sqrt(k). The blocks: 32 codes of 4 bits after an f16 scale; 256 codes of
        # 6 bits, 16 scales of 8 bits, an f16 scale.
        if kind == "Q4_0":
            blocks = random.integers(0, 256, (n, k // 32, 18), numpy.uint8)
            blocks[:, :, :2] = numpy.frombuffer(numpy.float16(k**-0.5 / 4.6).tobytes(), numpy.uint8)
        else:
            blocks = random.integers(0, 256, (n, k // 256, 210), numpy.uint8)
            blocks[:, :, 192:208] = 32
            blocks[:, :, 208:] = numpy.frombuffer(numpy.float16(k**-0.5 / 18.5 / 32).tobytes(), numpy.uint8)
        writer.add_tensor(name, blocks.reshape(n, -1), raw_dtype=getattr(gguf.GGMLQuantizationType, kind))

    matrix("token_embd.weight", VOCAB, hidden)
    matrix("output.weight", VOCAB, hidden, "Q6_K")
    norm("output_norm.weight")
    for i in range(layers):
        norm(f"blk.{i}.attn_norm.weight")
        norm(f"blk.{i}.ffn_norm.weight")
        matrix(f"blk.{i}.attn_q.weight", heads * head_dim, hidden)
        matrix(f"blk.{i}.attn_k.weight", kv_heads * head_dim, hidden)
        matrix(f"blk.{i}.attn_v.weight", kv_heads * head_dim, hidden)
        matrix(f"blk.{i}.attn_output.weight", hidden, heads * head_dim)
        matrix(f"blk.{i}.ffn_gate.weight", inner, hidden)
        matrix(f"blk.{i}.ffn_up.weight", inner, hidden)
        matrix(f"blk.{i}.ffn_down.weight", hidden, inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def deep_state(state, depth, cache_type, random):
    """The saved state of a sequence of a few tokens, made `depth` tokens long with random keys and values. Its parts, as
    llama.cpp's cache writes them: magic u32, sequence i32; streams and cells u32; of each cell position i32, sequences u32,
    sequence i32; transposed and layers u32; of each layer type i32, bytes of a row u64 and the rows, of all K, then of all V."""
    import numpy
    streams, cells = struct.unpack_from("<II", state, 8)
    transposed, layers = struct.unpack_from("<II", state, 16 + 12 * cells)
    assert streams == 1 and transposed == 0, "one sequence, with flash attention"
    positions = numpy.ones((depth, 3), numpy.int32)
    positions[:, 0], positions[:, 2] = numpy.arange(depth), 0
    parts = [state[:8], struct.pack("<II", 1, depth), positions.tobytes(), struct.pack("<II", 0, layers)]
    at = 24 + 12 * cells
    for _ in range(2 * layers):
        kind, row = struct.unpack_from("<iQ", state, at)
        at += 12 + cells * row
        if cache_type == "f16":
            rows = random.standard_normal((depth, row // 2), numpy.float32).astype(numpy.float16)
        else:  # blocks of an f16 scale and 32 codes of 4 or 8 bits
            block = 18 if cache_type == "q4_0" else 34
            rows = random.integers(0, 256, (depth, row // block, block), numpy.uint8)
            spread = 4.6 if cache_type == "q4_0" else 73.9  # of the codes
            rows[:, :, :2] = numpy.frombuffer(numpy.float16(1 / spread).tobytes(), numpy.uint8)
        parts += [struct.pack("<iQ", kind, row), rows.tobytes()]
    assert at == len(state), "the state of another version of llama.cpp"
    return b"".join(parts)


def worker(gguf_file, threads, context, cache_type):
    """Reads lines "pp N DEPTH" and "tg N DEPTH", answers each with the seconds it took. The depth is random keys and values,
    as it is in `nibble bench -d`."""
    import ctypes
    import llama_cpp as lib
    import numpy
    silent = lib.llama_log_callback(lambda level, text, data: None)
    lib.llama_log_set(silent, ctypes.c_void_p(0))
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(gguf_file.encode(), lib.llama_model_default_params())
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = context, BATCH, BATCH
    params.n_threads = params.n_threads_batch = threads
    params.type_k = params.type_v = {"f16": lib.GGML_TYPE_F16, "q4_0": lib.GGML_TYPE_Q4_0, "q8_0": lib.GGML_TYPE_Q8_0}[cache_type]
    params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
    ctx = lib.llama_init_from_model(model, params)
    assert ctx, "llama.cpp refused the context"
    memory = lib.llama_get_memory(ctx)
    random = numpy.random.default_rng(2)

    def feed(count):
        tokens = (ctypes.c_int32 * count)(*random.integers(0, VOCAB, count).tolist())
        assert lib.llama_decode(ctx, lib.llama_batch_get_one(tokens, count)) == 0
        lib.llama_synchronize(ctx)

    depth_now = 0
    for line in sys.stdin:
        kind, count, depth = line.split()
        count, depth = int(count), int(depth)
        if depth < depth_now or depth_now == 0:
            lib.llama_memory_clear(memory, True)
            depth_now = 0
        lib.llama_memory_seq_rm(memory, 0, depth_now, -1)
        if depth_now < depth:
            lib.llama_memory_clear(memory, True)
            feed(8)
            size = lib.llama_state_seq_get_size(ctx, 0)
            short = (ctypes.c_uint8 * size)()
            assert lib.llama_state_seq_get_data(ctx, short, size, 0) == size
            deep = deep_state(bytes(short), depth, cache_type, random)
            buffer = (ctypes.c_uint8 * len(deep)).from_buffer_copy(deep)
            assert lib.llama_state_seq_set_data(ctx, buffer, len(deep), 0) == len(deep), "llama.cpp refused the state"
            assert lib.llama_memory_seq_pos_max(memory, 0) == depth - 1
            depth_now = depth
        start = time.perf_counter()
        if kind == "pp":
            for first in range(0, count, BATCH):
                feed(min(BATCH, count - first))
        elif kind == "tg":
            for _ in range(count):
                feed(1)
        print(time.perf_counter() - start, flush=True)


# ---- outside ----

class Peer:
    def __init__(self, python, gguf_file, threads, context, cache_type):
        self.process = subprocess.Popen([python, __file__, "--worker", gguf_file, str(threads), str(context), cache_type],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def rate(self, kind, count, depth):
        self.process.stdin.write(f"{kind} {count} {depth}\n")
        self.process.stdin.flush()
        return count / float(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def nibble_rate(args, kind, count, depth):
    command = [args.nibble, "bench", "--shape", args.shape, "--weights", args.weights, "--recipe", args.recipe, "-t",
               str(args.threads), "-r", "1", "-o", "json", "-d", str(depth)]
    command += ["-p", str(count), "-n", "0"] if kind == "pp" else ["-p", "0", "-n", str(count)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    row = json.loads(out)[0]
    return row["median_ts"], row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--weights", default="w4a8-g128")
    parser.add_argument("--recipe", default="kv16", help="of nibble")
    parser.add_argument("--cache", choices=["f16", "q8_0", "q4_0"], default="f16", help="of llama.cpp")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=32)
    parser.add_argument("--depth", default="0", help="comma-separated list")
    parser.add_argument("--nibble", default=str(ROOT / "out/release/nibble"))
    parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "out/peers")
    parser.add_argument("--python", help="an interpreter that has llama_cpp and gguf; nothing is installed then")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()

    python = args.python or python_of(args.folder / "llama-cpp")
    args.folder.mkdir(parents=True, exist_ok=True)
    gguf_file = args.folder / f"llama-{args.shape}-q4_0.gguf"
    if not gguf_file.exists():
        subprocess.run([python, __file__, "--write-gguf", gguf_file, args.shape], check=True)
    depths = [int(d) for d in args.depth.split(",")]
    context = max(depths) + max(args.prompt, args.generate) + 64
    peer = Peer(python, str(gguf_file), args.threads, context, args.cache)
    rows = []
    print(f"{'test':16} {'nibble':>9} {'llama.cpp':>9} ratio   (tokens/s, medians of {args.pairs} pairs)")
    for depth in depths:
        for kind, count in (("pp", args.prompt), ("tg", args.generate)):
            if count == 0:
                continue
            peer.rate(kind, count, depth)  # a warm-up, as nibble bench has one
            pairs = []
            for _ in range(args.pairs):
                ours, row = nibble_rate(args, kind, count, depth)
                pairs.append((ours, peer.rate(kind, count, depth)))
            ours, theirs = (statistics.median(side) for side in zip(*pairs))
            name = f"{kind}{count}" + (f" @ d{depth}" if depth else "")
            print(f"{name:16} {ours:9.2f} {theirs:9.2f} {ours / theirs:5.2f}", flush=True)
            rows.append({"test": name, "depth": depth, "nibble": ours, "llama_cpp": theirs, "ratio": ours / theirs,
                         "pairs": pairs, "weight_bytes": row["weight_bytes"]})
            if args.json:
                write_json(args, row["device"], rows)
    peer.close()


def write_json(args, device, rows):
    commit = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True)
    args.json.write_text(json.dumps({
        "machine": machine(), "commit": commit.stdout.strip(), "device": device, "shape": args.shape, "weights": args.weights,
        "recipe": args.recipe, "llama_cpp": VERSION, "llama_cache": args.cache, "threads": args.threads, "rows": rows},
        indent=1) + "\n")


def machine():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


if __name__ == "__main__":
    sys.path.pop(0)  # this file has the name of the package
    if sys.argv[1:2] == ["--write-gguf"]:
        write_gguf(*sys.argv[2:4])
    elif sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
    else:
        main()
