#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""lm-eval's `local-completions` against the real server: lm_eval_test.py NIBBLE MODEL.

The perplexity that lm-eval finds for a few texts, over HTTP and with the server's tokenizer, is that of `nibble eval` within 1e-3. Skips
(exit code 77), and says so, where lm-eval is not installed:
    python3 -m venv out/e2e && out/e2e/bin/pip install "lm-eval[api]"
    out/e2e/bin/python tests/e2e/lm_eval_test.py out/release/nibble models/novelist-10m
"""
import importlib.util
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import urllib.request

from serve_client import Server, exit_code

HERE = pathlib.Path(__file__).resolve().parent
TEXT = HERE / "../../texts/Doyle_Hound_1902.txt"
TEXTS, CHARACTERS = 4, 6000
TOLERANCE = 1e-3


def tokenize(url, text, special=False):
    body = json.dumps({"prompt": text, "add_special_tokens": special}).encode()
    request = urllib.request.Request(url + "/tokenize", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["tokens"]


def evaluate(nibble, model, recipe, path, tokens):
    """The perplexity of a text that is one window: the mark of the beginning and all its tokens."""
    command = [nibble, "eval", "-m", model, "--recipe", recipe, "--text", path, "--window", str(tokens + 1), "--json", "--quiet"]
    got = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert got["tokens"] == tokens, (got, tokens)
    return got["perplexity"]


def run_lm_eval(folder, url):
    """Byte perplexity of all texts together."""
    task = (HERE / "lm_eval_tasks/nibble_text.yaml").read_text().replace("TEXTS", str(folder / "texts.jsonl"))
    (folder / "nibble_text.yaml").write_text(task)
    begin = tokenize(url, "", special=True)[0]  # lm-eval takes the end for it where its id is 0
    command = [sys.executable, "-m", "lm_eval", "--model", "local-completions", "--tasks", "nibble_text", "--include_path", str(folder),
               "--model_args", f"model=novelist,base_url={url}/v1/completions,max_length=4096,num_concurrent=2,"
               f"custom_prefix_token_id={begin}",
               "--output_path", str(folder / "results")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode != 0:
        raise AssertionError(done.stderr[-2000:])
    results = next((folder / "results").rglob("results_*.json"))
    return json.loads(results.read_text())["results"]["nibble_text"]["byte_perplexity,none"]


def check(nibble, model, recipe):
    words = TEXT.read_text()
    texts = [words[i * 20000:i * 20000 + CHARACTERS] for i in range(1, TEXTS + 1)]
    server = Server(nibble, model, "--recipe", recipe, "-a", "novelist")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        nll, tokens, size = 0.0, 0, 0
        for text in texts:
            (folder / "text.txt").write_text(text)
            count = len(tokenize(server.url, text))
            nll += count * math.log(evaluate(nibble, model, recipe, folder / "text.txt", count))
            tokens, size = tokens + count, size + len(text.encode())
        expected = math.exp(nll / tokens)
        found = math.exp(math.log(run_lm_eval(folder, server.url)) * size / tokens)
    wrong = [] if abs(found - expected) < TOLERANCE else [f"{recipe}: lm-eval {found}, nibble eval {expected}"]
    print(f"{recipe}: {tokens} tokens, perplexity {found:.6f} by lm-eval, {expected:.6f} by nibble eval")
    if server.stop() != 0:
        wrong.append("the server's exit code")
    return wrong


def main():
    if importlib.util.find_spec("lm_eval") is None:
        print("skipped: lm-eval is not installed")
        return 77
    return exit_code([wrong for recipe in ("exact", "qserve") for wrong in check(sys.argv[1], sys.argv[2], recipe)])


if __name__ == "__main__":
    sys.exit(main())
