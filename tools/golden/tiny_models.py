#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/tiny/*.json: what transformers computes with tiny random models of every architecture.

    python3 -m venv out/golden && out/golden/bin/pip install torch transformers safetensors numpy
    out/golden/bin/python tools/golden/tiny_models.py [NAME...]

The weights are not kept: they follow from the tensor's name and shape by integer arithmetic (values() here, WriteTinyModel in
tests/support/tiny_model.cc), and a checksum in each file shows that both made the same bytes. Each file holds a `broken`
change of config.json, which must change the logits: without it a test could not tell a feature from its absence.
"""
import json
import pathlib
import sys
import tempfile

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests/golden/tiny"
PROMPT_TOKENS = 150  # two sealed pages of 64 tokens and an open one; longer than every window and original context below
POSITIONS = [0, 1, 40, 63, 64, 100, 127, 128, 149]  # around the page edges, and the last
GREEDY_TOKENS = 16
TOLERANCE = 1e-4  # of the test, on logits
MIN_MARGIN = 20 * TOLERANCE  # between the first and the second token of every greedy step
MIN_EFFECT = 5 * TOLERANCE  # of the broken config: exact and tanh GELU are no further apart
TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5,
         "num_hidden_layers": 2, "bos_token_id": 1, "eos_token_id": 2}
MISTRAL = LLAMA | {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
QWEN2 = LLAMA | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rms_norm_eps": 1e-6}
QWEN3 = LLAMA | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "rms_norm_eps": 1e-6}


def shape(hidden, inner, heads, kv_heads, vocab, context=512):
    return {"hidden_size": hidden, "intermediate_size": inner, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "vocab_size": vocab, "max_position_embeddings": context}


# name -> config.json, element type, files, broken change of the config
MODELS = {
    # Llama 1: every default of the old config format (no KV heads, no head size, no RoPE base), untied.
    "llama_mha": ({k: v for k, v in (LLAMA | shape(128, 160, 2, 0, 96)).items() if k != "num_key_value_heads"},
                  "F32", 1, {"rope_theta": 20000.0}),
    "llama_gqa_tied": (LLAMA | shape(128, 192, 4, 2, 128) | {
        "head_dim": 64, "tie_word_embeddings": True, "rope_theta": 500000.0}, "BF16", 1, {"rms_norm_eps": 1e-1}),
    # wavelengths below, between and above the two thresholds 64 / 4 and 64 / 1
    "llama3_rope_mqa": (LLAMA | shape(160, 192, 2, 1, 112) | {
        "rope_theta": 10000.0, "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64}}, "F32", 1, {"rope_scaling": None}),
    "llama_linear_rope": (LLAMA | shape(96, 128, 2, 2, 96) | {
        "head_dim": 96, "rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
        "F32", 1, {"rope_scaling": None}),
    # every bias, exact GELU, head size 256, MQA
    "llama_biases_gelu": (LLAMA | shape(64, 128, 2, 1, 100) | {
        "head_dim": 256, "attention_bias": True, "mlp_bias": True, "hidden_act": "gelu", "rope_theta": 10000.0},
        "F32", 1, {"hidden_act": "gelu_pytorch_tanh"}),
    # the window ends inside a page and is shorter than the prompt
    "mistral_window": (MISTRAL | shape(128, 128, 2, 1, 120) | {
        "head_dim": 128, "sliding_window": 52, "rope_theta": 10000.0}, "F16", 1, {"sliding_window": None}),
    "mistral_sharded": (MISTRAL | shape(160, 128, 2, 2, 96) | {
        "sliding_window": None, "hidden_act": "gelu_pytorch_tanh", "rope_theta": 1000000.0},
        "BF16", 3, {"hidden_act": "silu"}),
    # as published: a window is named but not used
    "qwen2_bias": (QWEN2 | shape(128, 160, 2, 1, 128) | {
        "tie_word_embeddings": True, "use_sliding_window": False, "sliding_window": 32, "max_window_layers": 1,
        "rope_theta": 1000000.0}, "BF16", 1, {"use_sliding_window": True}),
    "qwen2_window_layers": (QWEN2 | shape(128, 128, 2, 2, 96) | {
        "use_sliding_window": True, "sliding_window": 70, "max_window_layers": 1, "rope_theta": 1000000.0},
        "F32", 1, {"max_window_layers": 0}),
    # head size other than hidden / heads, and the config format of transformers 5
    "qwen3_qk_norm": (QWEN3 | shape(64, 128, 2, 1, 128) | {
        "head_dim": 128, "attention_bias": False, "tie_word_embeddings": True, "dtype": "bfloat16",
        "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}}, "BF16", 1, {"rms_norm_eps": 1e-1}),
}


def fnv1a(data, h=0xCBF29CE484222325):
    for byte in data:
        h = (h ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return h


def values(name, dims):
    """The tensor `name` in float32: splitmix64 of the name's hash and the index, its top 24 bits as a number in [-1, 1)."""
    index = np.arange(1, int(np.prod(dims)) + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        x = np.uint64(fnv1a(name.encode())) + index * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    unit = ((x >> np.uint64(40)).astype(np.int64) - (1 << 23)).astype(np.float32) / np.float32(1 << 23)
    if name.endswith("norm.weight"):
        unit = np.float32(1) + np.float32(0.5) * unit
    else:  # standard deviation 0.144, so that a row of 128 inputs of size 1 gives outputs of size 1.6
        unit = np.float32(0.25) * unit
    return torch.from_numpy(unit.reshape(dims))


def tensor_shapes(config):
    model = transformers.AutoModelForCausalLM.from_config(config)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    return {name: list(t.shape) for name, t in sorted(model.state_dict().items()) if name not in tied}


def write_folder(folder, config, tensors, files):
    (folder / "config.json").write_text(json.dumps(config))
    names = sorted(tensors)
    if files == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {name: f"model-{i % files + 1:05d}-of-{files:05d}.safetensors" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        save_file({n: tensors[n] for n in names if weight_map[n] == file}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def load(config, tensors, files):
    with tempfile.TemporaryDirectory() as folder:
        write_folder(pathlib.Path(folder), config, tensors, files)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


@torch.no_grad()
def logits(model, ids):
    return model(torch.tensor([ids]), use_cache=False).logits[0]


def greedy(model, prompt):
    ids, margin = list(prompt), float("inf")
    for _ in range(GREEDY_TOKENS):
        best = torch.topk(logits(model, ids)[-1], 2)
        margin = min(margin, float(best.values[0] - best.values[1]))
        ids.append(int(best.indices[0]))
    return ids[len(prompt):], margin


def golden(name):
    config, dtype, files, broken = MODELS[name]
    config = config | {"torch_dtype": {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[dtype]}
    if "dtype" in config:
        del config["torch_dtype"]
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, "config.json").write_text(json.dumps(config))
        shapes = tensor_shapes(transformers.AutoConfig.from_pretrained(folder))
    tensors = {n: values(n, dims).to(TORCH[dtype]).contiguous() for n, dims in shapes.items()}
    checksum = 0xCBF29CE484222325
    for n in sorted(tensors):
        checksum = fnv1a(tensors[n].flatten().view(torch.uint8).numpy().tobytes(), checksum)

    prompt = [3 + fnv1a(f"{name}/{i}".encode()) % (config["vocab_size"] - 3) for i in range(PROMPT_TOKENS)]
    model = load(config, tensors, files)
    rows = logits(model, prompt)[POSITIONS]
    new_ids, margin = greedy(model, prompt)
    effect = float((logits(load(config | broken, tensors, files), prompt)[POSITIONS] - rows).abs().max())
    print(f"{name}: logits std {rows.std():.2f}, greedy margin {margin:.4f}, broken changes {effect:.4f}, {new_ids}")
    if margin < MIN_MARGIN or effect < MIN_EFFECT:
        raise SystemExit(f"{name}: margin {margin} or effect {effect} too small to test with; change the model")
    return {
        "about": f"transformers {transformers.__version__}, float32, eager attention; made by tools/golden/tiny_models.py",
        "config": config, "dtype": dtype, "files": files, "tensors": shapes, "checksum": f"{checksum:016x}",
        "prompt": prompt, "positions": POSITIONS, "greedy": new_ids, "broken": broken,
        "logits": [[float(f"{v:.9g}") for v in row] for row in rows.tolist()]}


def main():
    transformers.logging.set_verbosity_error()
    OUT.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or MODELS:
        # One line a key: small, and a difference can still be read.
        lines = ",\n".join(f'"{key}": {json.dumps(value)}' for key, value in golden(name).items())
        (OUT / f"{name}.json").write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    main()
