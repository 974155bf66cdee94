#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# tools/check_tidy.sh PRESET [FOLDER...]: clang-tidy over every source of src, tests and bench, or of some of them, as that build
# compiles it.
set -euo pipefail
cd "$(dirname "$0")/.."
build=out/${1:?usage: tools/check_tidy.sh PRESET}

shift
mapfile -t sources < <(python3 - "$build" "${@:-}" <<'PY'
import json, os, sys
files = {os.path.relpath(entry["file"]) for entry in json.load(open(f"{sys.argv[1]}/compile_commands.json"))}
folders = tuple(f"{f}/" for f in sys.argv[2:] if f) or ("src/", "tests/", "bench/")
print("\n".join(sorted(f for f in files if f.endswith(".cc") and f.startswith(folders))))
PY
)
# clang cannot read the precompiled headers of g++, and the sources include what they need.
mkdir -p "$build/tidy"
sed -E 's/-include [^ ]*cmake_pch.hxx//; s/-fpch-preprocess|-Winvalid-pch//g' "$build/compile_commands.json" >"$build/tidy/compile_commands.json"
# --quiet still counts suppressed warnings of system headers on stderr; a real finding is on stdout.
printf '%s\0' "${sources[@]}" |
  xargs -0 -n 1 -P "$(nproc)" clang-tidy --quiet -p "$build/tidy" --extra-arg=-Wno-unknown-warning-option 2>/dev/null
echo "${#sources[@]} sources clean"
