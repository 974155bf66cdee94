#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# What Nibble does, in one screen: quantizes the embedded model to W4A8, continues a sentence with both, and says what each
# way of computing costs in quality and takes in size. `make demo` builds the program first.
set -euo pipefail
cd "$(dirname "$0")/.."

nibble=out/release/nibble
model=models/novelist-10m
text=texts/Doyle_Hound_1902.txt
prompt="It was a dark and stormy night"
windows=2 # of 2048 tokens; `nibble eval` alone takes 40, which is twenty times as long
work=out/demo
quantized=$work/novelist-10m-w4a8-g128

if [ ! -x "$nibble" ]; then
  echo "demo: $nibble is not built; run make demo" >&2
  exit 1
fi
mkdir -p "$work"
rm -rf "$quantized" "$quantized.qoq-state" # of an earlier run

bold='' plain=''
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then bold=$'\e[1m' plain=$'\e[0m'; fi
title() { printf '\n%s%s%s\n' "$bold" "$1" "$plain"; }

title "Quantize $model to W4A8 (4-bit weights in groups of 128, 8-bit activations)"
# A quarter of the usual calibration: most of the quality in a fraction of the time.
"$nibble" quantize -m "$model" -o "$quantized" --weights w4a8-g128 --calibration-tokens 8192

continue_prompt() { # continue_prompt TITLE FOLDER
  title "$1"
  printf '%s' "$prompt"
  "$nibble" generate -m "$2" -p "$prompt" -n 64 --quiet
}
continue_prompt "The original continues" "$model"
continue_prompt "W4A8 continues" "$quantized"

measure() { # measure NAME FOLDER RECIPE [EVAL OPTION...]
  local name=$1 folder=$2 recipe=$3
  shift 3
  "$nibble" inspect "$folder" --json >"$work/$name.inspect.json"
  "$nibble" eval -m "$folder" --recipe "$recipe" --text "$text" --max-windows "$windows" --json "$@" >"$work/$name.eval.json"
  "$nibble" generate -m "$folder" --recipe "$recipe" -p "$prompt" -n 256 --ignore-eos --json >"$work/$name.generate.json"
}
title "What it costs: $windows windows of 2048 tokens of $text"
measure exact "$model" exact
measure W4A8 "$quantized" exact --reference "$model"
measure W4A8KV4 "$quantized" qserve --reference "$model"
python3 tools/demo_table.py "$work" exact W4A8 W4A8KV4
echo "KLD and same-top compare the next-token distributions with those of the original in float32."
