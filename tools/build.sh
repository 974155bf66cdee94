#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# tools/build.sh PRESET [TARGET...]: configures when that is due, then builds into out/PRESET.
set -euo pipefail
cd "$(dirname "$0")/.."

preset=${1:?usage: tools/build.sh PRESET [TARGET...]}
shift
# ninja notices changes of CMakeLists.txt by itself, but not those of the presets.
if [ ! -f "out/$preset/build.ninja" ] || [ CMakePresets.json -nt "out/$preset/build.ninja" ]; then
  cmake --preset "$preset"
fi
cmake --build --preset "$preset" -j "$(tools/jobs.sh)" ${1:+--target "$@"}
