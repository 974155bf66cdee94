#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes a model folder of random weights in the shape that `nibble bench --shape` makes in memory, for what needs a file.

  bench/shape_folder.py 1b out/shape-1b

W4A8-g128 with embedding and head in 8 bits, no tokenizer: `nibble bench -m` runs it.
"""
import json
import os
import pathlib
import struct
import sys

SHAPES = {"1b": (16, 2048, 8192, 32, 8, 64, 32000), "3b": (28, 3072, 8192, 24, 8, 128, 32000),
          "8b": (32, 4096, 14336, 32, 8, 128, 128256)}
GROUP = 128
S1 = struct.pack("<e", 0.0005)  # makes activations of order 1; the codes are bytes of the system


def tensors(shape):
    """(name, dtype, shape, bytes of one element that is repeated, or None for random bytes)"""
    layers, hidden, inner, heads, kv_heads, dim, vocab = SHAPES[shape]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        yield name, "I8", [vocab, hidden], b"\x07\xf3\x21\xd0"
        yield name + "_scale", "F16", [vocab], S1
    yield "model.norm.weight", "BF16", [hidden], b"\x80\x3f"
    for i in range(layers):
        layer = f"model.layers.{i}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield layer + norm + ".weight", "BF16", [hidden], b"\x80\x3f"
        for name, n, k in (("self_attn.q_proj", heads * dim, hidden), ("self_attn.k_proj", kv_heads * dim, hidden),
                           ("self_attn.v_proj", kv_heads * dim, hidden), ("self_attn.o_proj", hidden, heads * dim),
                           ("mlp.gate_proj", inner, hidden), ("mlp.up_proj", inner, hidden), ("mlp.down_proj", hidden, inner)):
            w = layer + name + ".weight"
            yield w + "_packed", "U8", [n, k // 2], None
            yield w + "_scale", "F16", [n], S1
            yield w + "_group_scale", "U8", [n, k // GROUP], b"\x08"
            yield w + "_group_zero", "U8", [n, k // GROUP], b"\x07"


def main(shape, folder):
    size = {"I8": 1, "U8": 1, "F16": 2, "BF16": 2}
    header, at = {}, 0
    for name, dtype, dims, _ in tensors(shape):
        count = size[dtype]
        for d in dims:
            count *= d
        header[name] = {"dtype": dtype, "shape": dims, "data_offsets": [at, at + count]}
        at += count
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 64)
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    with open(folder / "model.safetensors", "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name, _, _, element in tensors(shape):
            begin, end = header[name]["data_offsets"]
            for first in range(begin, end, 1 << 24):
                count = min(1 << 24, end - first)
                out.write(os.urandom(count) if element is None else element * (count // len(element)))
    layers, hidden, inner, heads, kv_heads, dim, vocab = SHAPES[shape]
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": inner,
        "vocab_size": vocab, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": dim,
        "max_position_embeddings": 1 << 20, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        "quantization_config": {"quant_method": "nibble", "format": "w4a8-g128", "group_size": GROUP, "embedding": "int8",
                                "method": "rtn"}}, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in SHAPES:
        sys.exit(__doc__)
    main(*sys.argv[1:])
