#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Many sequences at once, nibble beside llama.cpp, on a model of novelist-29m's shape, in alternating runs.

  bench/peers/serve.py MODEL_FOLDER [--threads 2] [--slots 16] [--streams 64] [--pairs 3] [--python PYTHON] [--json FILE]

MODEL_FOLDER is a W4A8 folder that `nibble quantize` wrote. llama.cpp gets random weights of the same shape in Q4_0 with a Q6_K head, as
llama-quantize makes of a tied head, through the C API of llama-cpp-python: one llama_decode a step for all slots, each slot's next
token by its greedy sampler, which is the loop of llama-server without HTTP. (The server of llama-cpp-python itself takes one
request after the other.) nibble runs `nibble bench --n-seqs`: its step loop with as many sequences, greedy, also without HTTP.
PYTHON has llama_cpp and gguf; without it bench/peers/llama_cpp.py's environment is taken."""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAYERS, HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 8, 512, 1536, 4, 2, 128, 8192
PROMPT = 64


# ---- inside the virtual environment ----

def write_gguf(path):
    import gguf
    import numpy
    random = numpy.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500000.0)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("none")

    def matrix(name, n, k, kind=gguf.GGMLQuantizationType.Q4_0):
        weights = random.standard_normal((n, k), numpy.float32) * k**-0.5
        if kind == gguf.GGMLQuantizationType.Q6_K:  # gguf has no quantizer for it: 256 codes of 6 bits, 16 scales, an f16 scale
            blocks = random.integers(0, 256, (n, k // 256, 210), numpy.uint8)
            blocks[:, :, 192:208] = 32
            blocks[:, :, 208:] = numpy.frombuffer(numpy.float16(k**-0.5 / 18.5 / 32).tobytes(), numpy.uint8)
            return writer.add_tensor(name, blocks.reshape(n, -1), raw_dtype=kind)
        return writer.add_tensor(name, gguf.quants.quantize(weights, kind), raw_dtype=kind)

    matrix("token_embd.weight", VOCAB, HIDDEN, gguf.GGMLQuantizationType.Q6_K)  # the head too: tied
    writer.add_tensor("output_norm.weight", numpy.ones(HIDDEN, numpy.float32))
    for i in range(LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{name}.weight", numpy.ones(HIDDEN, numpy.float32))
        matrix(f"blk.{i}.attn_q.weight", HEADS * HEAD_DIM, HIDDEN)
        matrix(f"blk.{i}.attn_k.weight", KV_HEADS * HEAD_DIM, HIDDEN)
        matrix(f"blk.{i}.attn_v.weight", KV_HEADS * HEAD_DIM, HIDDEN)
        matrix(f"blk.{i}.attn_output.weight", HIDDEN, HEADS * HEAD_DIM)
        matrix(f"blk.{i}.ffn_gate.weight", INNER, HIDDEN)
        matrix(f"blk.{i}.ffn_up.weight", INNER, HIDDEN)
        matrix(f"blk.{i}.ffn_down.weight", HIDDEN, INNER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def worker(gguf_file, threads, cache_type):
    """Reads lines "SLOTS TOKENS", answers each with the seconds of that many decode steps of so many slots."""
    import ctypes
    import llama_cpp as lib
    silent = lib.llama_log_callback(lambda level, text, data: None)
    lib.llama_log_set(silent, ctypes.c_void_p(0))
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(gguf_file.encode(), lib.llama_model_default_params())
    sampler = lib.llama_sampler_init_greedy()
    for line in sys.stdin:
        slots, tokens = map(int, line.split())
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = slots * (PROMPT + tokens + 64), 512, 512, slots
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = {"f16": lib.GGML_TYPE_F16, "q4_0": lib.GGML_TYPE_Q4_0}[cache_type]
        params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
        ctx = lib.llama_init_from_model(model, params)
        assert ctx, "llama.cpp refused the context"
        batch = lib.llama_batch_init(512, 0, 1)

        def decode(rows):  # (token, position, slot, logits)
            batch.n_tokens = len(rows)
            for i, (token, position, slot, logits) in enumerate(rows):
                batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, logits
                batch.seq_id[i][0] = slot
            assert lib.llama_decode(ctx, batch) == 0

        newest = []
        for slot in range(slots):
            decode([((slot * 37 + i * 101) % VOCAB, i, slot, i == PROMPT - 1) for i in range(PROMPT)])
            newest.append(lib.llama_sampler_sample(sampler, ctx, -1))
        start = time.perf_counter()
        for step in range(tokens):
            decode([(newest[slot], PROMPT + step, slot, True) for slot in range(slots)])
            newest = [lib.llama_sampler_sample(sampler, ctx, slot) for slot in range(slots)]
        print(time.perf_counter() - start, flush=True)
        lib.llama_batch_free(batch)
        lib.llama_free(ctx)


# ---- outside ----

def nibble_rates(args, counts):
    """Tokens a second of all sequences together, by how many there are."""
    command = [args.nibble, "bench", "-m", args.folder, "--recipe", args.recipe, "-t", str(args.threads), "-p", "0", "-n", str(args.tokens),
               "-d", str(PROMPT), "-r", "1", "-o", "json", "--n-seqs", ",".join(map(str, counts))]
    rows = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {row["n_seqs"]: row["median_ts"] for row in rows if row["n_gen"] > 0}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--recipe", default="qserve")
    parser.add_argument("--cache", choices=["f16", "q4_0"], default="f16", help="of llama.cpp")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--nibble", default=str(ROOT / "out/release/nibble"))
    parser.add_argument("--python", default=str(ROOT / "out/peers/llama-cpp/bin/python"))
    parser.add_argument("--gguf", type=pathlib.Path, default=ROOT / "out/peers/novelist-29m-q4_0.gguf")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    args.gguf.parent.mkdir(parents=True, exist_ok=True)
    if not args.gguf.exists():
        subprocess.run([args.python, __file__, "--write-gguf", args.gguf], check=True)
    peer = subprocess.Popen([args.python, __file__, "--worker", args.gguf, str(args.threads), args.cache], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, text=True)

    def llama_rate(slots):
        peer.stdin.write(f"{slots} {args.tokens}\n")
        peer.stdin.flush()
        return slots * args.tokens / float(peer.stdout.readline())

    counts = [1, args.slots, args.streams]
    llama_rate(args.slots)  # a warm-up
    ours, theirs = {n: [] for n in counts}, {n: [] for n in (1, args.slots)}
    for _ in range(args.pairs):
        for n, rate in nibble_rates(args, counts).items():
            ours[n].append(rate)
        for n in theirs:
            theirs[n].append(llama_rate(n))
    peer.stdin.close()
    peer.wait()
    median = {n: statistics.median(rates) for n, rates in ours.items()}
    llama = {n: statistics.median(rates) for n, rates in theirs.items()}
    result = {"nibble": median, "llama_cpp": llama, "streams_against_one": median[args.streams] / median[1],
              "slots_against_llama_cpp": median[args.slots] / llama[args.slots],
              "streams_against_llama_cpp_slots": median[args.streams] / llama[args.slots], "recipe": args.recipe, "llama_cache": args.cache,
              "threads": args.threads, "tokens": args.tokens, "prompt": PROMPT, "all": {"nibble": ours, "llama_cpp": theirs}}
    print(json.dumps({key: value for key, value in result.items() if key != "all"}, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.path.pop(0)  # a neighbour of this file has the name of the package
    if sys.argv[1:2] == ["--write-gguf"]:
        write_gguf(sys.argv[2])
    elif sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        main()
