#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Every header compiles alone. A header without `#pragma once` is a fragment, read by each src/kernels/cpu/isa/*.cc inside
# its own namespace: it cannot stand alone, and only that folder may hold one. Where x.cc includes x.h before anything else, its build is
# the proof and nothing is compiled here; sources that get a precompiled header (apps, tests) prove nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

mapfile -t headers < <(grep -rl --include='*.h' '^#pragma once' src tests | sort)
mapfile -t fragments < <(grep -rL --include='*.h' '^#pragma once' src tests | sort)
bad=0
for fragment in "${fragments[@]}"; do
  case $fragment in
    src/kernels/cpu/*) ;;
    *) echo "$fragment: no #pragma once"; bad=1 ;;
  esac
done

# The headers of the CUDA backend need the toolkit's own; without it they are not compiled either.
cuda=""
nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null || true)
if [ -n "$nvcc" ]; then
  cuda="-isystem $(dirname "$(dirname "$(readlink -f "$nvcc")")")/include"
else
  mapfile -t headers < <(printf '%s\n' "${headers[@]}" | grep -v '^src/backend/cuda_')
fi
export cuda

proved=0
alone=()
for header in "${headers[@]}"; do
  source=${header%.h}.cc
  case $header in src/apps/* | tests/*) source=none ;; esac
  if [ -f "$source" ] && [ "$(grep -m1 '^#include' "$source")" = "#include \"${header#src/}\"" ]; then
    proved=$((proved + 1))
  else
    alone+=("$header")
  fi
done

compile_alone() {
  # shellcheck disable=SC2086
  echo "#include \"$1\"" | "${CXX:-g++}" $cuda -std=c++20 -fsyntax-only -Wall -Wextra -Wno-missing-field-initializers -Werror -I. -Isrc -DNIBBLE_SOURCE_DIR='""' \
    -DNIBBLE_BINARY_DIR='""' -x c++ - ||
    { echo "$1: does not compile alone"; return 1; }
}
export -f compile_alone
printf '%s\0' "${alone[@]}" | xargs -0 -n 1 -P "$(nproc)" bash -c 'compile_alone "$0"' || bad=1
[ $bad -eq 0 ] && echo "${#alone[@]} headers compile alone, $proved come first in their source, ${#fragments[@]} fragments skipped"
exit $bad
