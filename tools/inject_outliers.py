#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Give a Llama-type Hugging Face folder the outlier channels that large models have, without changing what it computes.

Usage: inject_outliers.py MODEL_DIR OUT_DIR [SEED]

Every change multiplies one place by a power of two and divides its counterpart by the same, so in exact arithmetic the
function is unchanged, and bf16 weights stay exact:
  keys         k_proj rows of RoPE pairs (i, i+head_dim/2) x s, the q_proj rows that meet them / s
  values       v_proj rows x s, the o_proj columns that read them / s
  MLP hidden   up_proj rows x s, down_proj columns / s
  norm output  input_layernorm (post_attention_layernorm) entries x s, the columns of q,k,v (gate,up) / s
Needs numpy. Tensors must be BF16; all other files of the folder are copied.
"""
import json, os, shutil, struct, sys
import numpy as np


def read(path):
    with open(path, "rb") as f:
        n = struct.unpack("<Q", f.read(8))[0]; head = json.loads(f.read(n)); data = f.read()
    return {k: np.frombuffer(data, "<u2", offset=v["data_offsets"][0],
                             count=(v["data_offsets"][1] - v["data_offsets"][0]) // 2).reshape(v["shape"]).copy()
            for k, v in head.items() if k != "__metadata__"}


def write(path, tensors):
    head, off = {"__metadata__": {"format": "pt"}}, 0
    for k in tensors:
        head[k] = {"dtype": "BF16", "shape": list(tensors[k].shape), "data_offsets": [off, off + tensors[k].nbytes]}
        off += tensors[k].nbytes
    h = json.dumps(head).encode(); h += b" " * (-len(h) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(h))); f.write(h)
        for k in tensors: f.write(tensors[k].tobytes())


def scale(bits, power):
    """bf16 bit patterns times 2**power, exact; values that would leave the normal range become zero."""
    exp = (bits >> 7) & 0xFF
    new = np.clip(exp.astype(np.int32) + power, 0, 254)
    out = (bits & 0x807F) | (new.astype(np.uint16) << 7)
    return np.where((exp == 0) | (exp.astype(np.int32) + power <= 0), bits & 0x8000, out).astype(np.uint16)


def main(src, dst, seed):
    rng = np.random.default_rng(seed)
    cfg = json.load(open(f"{src}/config.json"))
    heads, kv, d, hidden, ff = (cfg["num_attention_heads"], cfg["num_key_value_heads"],
                                cfg.get("head_dim", cfg["hidden_size"] // cfg["num_attention_heads"]), cfg["hidden_size"],
                                cfg["intermediate_size"])
    files = sorted(f for f in os.listdir(src) if f.endswith(".safetensors"))
    shards = {f: read(f"{src}/{f}") for f in files}
    where = {k: f for f in files for k in shards[f]}

    def rows(name, idx, p):
        t = shards[where[name]][name]; t[idx] = scale(t[idx], p)

    def cols(name, idx, p):
        t = shards[where[name]][name]; t[:, idx] = scale(t[:, idx], p)

    group = heads // kv
    for layer in range(cfg["num_hidden_layers"]):
        n = f"model.layers.{layer}."
        for h in range(kv):
            for i in rng.choice(d // 2, 3, replace=False):
                p = int(rng.integers(2, 5))
                for j in (i, i + d // 2):
                    rows(n + "self_attn.k_proj.weight", h * d + j, p)
                    rows(n + "self_attn.q_proj.weight", [(h * group + g) * d + j for g in range(group)], -p)
            for i in rng.choice(d, 2, replace=False):
                p = int(rng.integers(2, 4))
                rows(n + "self_attn.v_proj.weight", h * d + i, p)
                cols(n + "self_attn.o_proj.weight", [(h * group + g) * d + i for g in range(group)], -p)
        for i in rng.choice(ff, max(2, ff // 256), replace=False):
            p = int(rng.integers(3, 6))
            rows(n + "mlp.up_proj.weight", i, p); cols(n + "mlp.down_proj.weight", i, -p)
        for norm, readers in (("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
                              ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj"))):
            for i in rng.choice(hidden, 4, replace=False):
                p = int(rng.integers(3, 6))
                rows(n + norm + ".weight", i, p)
                for r in readers: cols(n + r + ".weight", i, -p)
    os.makedirs(dst, exist_ok=True)
    for f in os.listdir(src):
        if f in shards: write(f"{dst}/{f}", shards[f])
        else: shutil.copy(f"{src}/{f}", dst)
    print(f"{dst}: outliers injected with seed {seed}")


if __name__ == "__main__":
    if len(sys.argv) < 3: sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 0)
