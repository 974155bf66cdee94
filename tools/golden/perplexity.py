#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/perplexity.json: negative log-likelihood of every window of a text, from transformers in
float32, for tests/golden_perplexity_test.cc.

The protocol is that of golden.json's "about" field: the text is tokenized once without special tokens and cut into
non-overlapping pieces of window - 1 tokens; each piece is scored after the begin-of-text token, every token of it;
what is left at the end is dropped.

Usage: perplexity.py OUT.json MODEL_DIR TEXT... [-- MODEL_DIR TEXT...]   (needs torch, transformers, tokenizers)
"""
import json
import pathlib
import sys

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

WINDOW, MAX_WINDOWS = 2048, 40


def window_nlls(model, bos, ids):
    piece = WINDOW - 1
    sums = []
    for i in range(min(MAX_WINDOWS, len(ids) // piece)):
        tokens = torch.tensor([bos] + ids[i * piece : (i + 1) * piece])
        with torch.no_grad():
            logits = model(tokens[None]).logits[0, :-1].double()
        sums.append(torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="sum").item())
    return sums


def main():
    out, rest = pathlib.Path(sys.argv[1]), sys.argv[2:]
    result = {"window": WINDOW, "models": {}}
    while rest:
        end = rest.index("--") if "--" in rest else len(rest)
        folder, texts, rest = pathlib.Path(rest[0]), rest[1:end], rest[end + 1 :]
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        entry = result["models"][folder.name] = {}
        for text in map(pathlib.Path, texts):
            ids = tokenizer.encode(text.read_text(encoding="utf-8"), add_special_tokens=False).ids
            nll = window_nlls(model, model.config.bos_token_id, ids)
            tokens = len(nll) * (WINDOW - 1)
            entry[text.name] = {"tokens": tokens, "nll_per_token": sum(nll) / tokens, "window_nll": nll}
            print(folder.name, text.name, tokens, sum(nll) / tokens)
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
