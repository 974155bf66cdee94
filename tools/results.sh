#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# tools/results.sh [PAGE...]: regenerates docs/results: the pages named (all), then the tables of its README.md. Pages of a MODEL:
#   MODEL                 every recipe
#   MODEL-outliers        injected outlier channels: recipes that suffer from them, without and with a plan
#   MODEL-w4a8-rtn        weights in 4 bits, rounded to nearest
#   MODEL-w4a8            the same with all passes of QoQ
#   MODEL-outliers-w4a8   both
# Models are novelist-10m and novelist-29m, the latter from $NIBBLE_TEST_MODELS. $WINDOWS: perplexity windows (4 for
# every recipe, 8 for the others); $SEED: of the outliers (1); $THREADS: all processors; $NIBBLE: the program (built when not given). Plans and QoQ see Treasure Island, figures are of The Hound.
set -euo pipefail
cd "$(dirname "$0")/.."

root=$PWD
nibble=${NIBBLE:-$root/out/release/nibble}
work=$root/out/results
text=Doyle_Hound_1902.txt
calibration=Stevenson_Treasure_1883.txt
treated=qserve,flashq4,kivi4,sage2-8b,sage2-4b,turbo
suffixes=("" -outliers -w4a8-rtn -w4a8 -outliers-w4a8)

python_with_numpy() {
  local python
  for python in "${PYTHON:-python3}" /usr/bin/python3; do # Debian's numpy is for Debian's python3
    if "$python" -c 'import numpy' 2>/dev/null; then echo "$python"; return; fi
  done
  return 1
}

# Makes out/results/FOLDER, and what it is made from, once a run.
declare -A made=()
folder() {
  local name=$1 base
  if [ -n "${made[$name]:-}" ]; then return; fi
  made[$name]=yes
  case $name in
    *-w4a8*) base=${name%-w4a8*} ;;
    *-outliers) base=${name%-outliers} ;;
    *) return ;; # a model that is there
  esac
  folder "$base"
  rm -rf "${work:?}/$name"
  case $name in
    *-w4a8-rtn) "$nibble" quantize -m "$base" -o "$name" --weights w4a8-g128 --method rtn --quiet >/dev/null ;;
    *-w4a8) "$nibble" quantize -m "$base" -o "$name" --weights w4a8-g128 --calibration "$calibration" -t "${THREADS:-0}" --quiet >/dev/null ;;
    *) "$python" "$root/tools/inject_outliers.py" "$base" "$name" "${SEED:-1}" ;;
  esac
}

page() {
  local name=$1 windows=8 options
  folder "$name"
  case $name in
    *-w4a8*) options=(--reference "${name%-w4a8*}" --recipes "kv8,qserve" --tasks ppl) ;;
    *-outliers) options=(--recipes "$treated" --tasks ppl --calibrate "$calibration") ;;
    novelist-*) windows=4 options=(--all) ;;
  esac
  "$nibble" compare -m "$name" --text "$text" --max-windows "${WINDOWS:-$windows}" -t "${THREADS:-0}" "${options[@]}" -o "$name.html"
  cp "$name.html" "$root/docs/results/"
}

if ! python=$(python_with_numpy); then
  tools/setup.sh tools/packages-results.txt
  python=$(python_with_numpy) || { echo "results: numpy is not to be found; name a Python that has it in PYTHON" >&2; exit 1; }
fi
if [ -z "${NIBBLE:-}" ]; then tools/build.sh release nibble; fi
mkdir -p "$work" docs/results
cd "$work" # so that pages name models and texts and no folder of this machine
for file in "$text" "$calibration"; do ln -sfn "$root/texts/$file" "$file"; done
for models in "$root/models" "${NIBBLE_TEST_MODELS:-}"; do
  for model in novelist-10m novelist-29m; do
    if [ -e "$models/$model/config.json" ]; then ln -sfn "$models/$model" "$model"; fi
  done
done

pages=("$@")
if [ ${#pages[@]} -eq 0 ]; then
  for model in novelist-10m novelist-29m; do pages+=("${suffixes[@]/#/$model}"); done
fi
for name in "${pages[@]}"; do
  model=$(grep -o '^novelist-[0-9]*m' <<<"$name" || true)
  if [ -z "$model" ] || [[ " ${suffixes[*]/#/$model} " != *" $name "* ]]; then
    echo "results: no page '$name': a model (novelist-10m, novelist-29m) and one of:${suffixes[*]/#/ MODEL}" >&2
    exit 2
  fi
  if [ ! -e "$model/config.json" ]; then
    echo "results: $name is left as it is: no $model here (NIBBLE_TEST_MODELS=${NIBBLE_TEST_MODELS:-})" >&2
    continue
  fi
  echo "results: $name"
  page "$name"
done
"$python" "$root/tools/results_tables.py" "$root/docs/results"
