#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# tools/results.sh [NAME...]: regenerates docs/results: a page for each model, plain and with injected outliers, and the tables
# of its README.md. Without names all of: novelist-10m novelist-10m-outliers novelist-29m novelist-29m-outliers. novelist-29m is
# looked for in $NIBBLE_TEST_MODELS. $WINDOWS is the number of perplexity windows (16), $PYTHON a Python with numpy (python3).
set -euo pipefail
cd "$(dirname "$0")/.."

root=$PWD
nibble=$root/out/release/nibble
python=${PYTHON:-python3}
text=Doyle_Hound_1902.txt
seed=1 # of the outliers
work=$root/out/results

if ! "$python" -c 'import numpy' 2>/dev/null; then
  tools/setup.sh tools/packages-results.txt
fi
tools/build.sh release nibble
mkdir -p "$work" docs/results

# The program runs in $work, so that pages name models and texts and no folder of this machine.
ln -sfn "$root/texts/$text" "$work/$text"
ln -sfn "$root/models/novelist-10m" "$work/novelist-10m"
if [ -n "${NIBBLE_TEST_MODELS:-}" ] && [ -d "$NIBBLE_TEST_MODELS/novelist-29m" ]; then
  ln -sfn "$NIBBLE_TEST_MODELS/novelist-29m" "$work/novelist-29m"
fi

models=("$@")
if [ ${#models[@]} -eq 0 ]; then models=(novelist-10m novelist-10m-outliers novelist-29m novelist-29m-outliers); fi
for model in "${models[@]}"; do
  plain=${model%-outliers}
  if [ ! -e "$work/$plain/config.json" ]; then
    echo "results: $model is left as it is: no $plain here (NIBBLE_TEST_MODELS=${NIBBLE_TEST_MODELS:-})" >&2
    continue
  fi
  if [ "$model" != "$plain" ]; then
    rm -rf "${work:?}/$model"
    "$python" tools/inject_outliers.py "$work/$plain" "$work/$model" "$seed"
  fi
  echo "results: $model"
  (cd "$work" && "$nibble" compare -m "$model" --text "$text" --all --max-windows "${WINDOWS:-16}" -o "$model.html")
  cp "$work/$model.html" docs/results/
done
"$python" tools/results_tables.py docs/results
