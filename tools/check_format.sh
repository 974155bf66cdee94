#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Every C++ file of the repository is as .clang-format writes it.
set -euo pipefail
cd "$(dirname "$0")/.."
git ls-files -z '*.h' '*.cc' '*.cu' '*.cuh' '*.inl' | xargs -0 -r -n 16 -P "$(nproc)" clang-format --dry-run --Werror
echo "$(git ls-files '*.h' '*.cc' '*.cu' '*.cuh' '*.inl' | wc -l) files formatted"
