#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# tools/bundle.sh PROGRAM FOLDER: copies a program, stripped, and the libraries it needs beside those of the C library, so that
# it runs on another machine: LD_LIBRARY_PATH=FOLDER FOLDER/PROGRAM.
set -euo pipefail
program=${1:?usage: tools/bundle.sh PROGRAM FOLDER} folder=${2:?usage: tools/bundle.sh PROGRAM FOLDER}
mkdir -p "$folder"
strip -o "$folder/$(basename "$program")" "$program"
ldd "$program" | awk '$2 == "=>" && $3 ~ /^\// {print $3}' |
  grep -vE '/(libc|libm|libpthread|libdl|librt|libresolv)\.so' | xargs -r cp -L -t "$folder"
du -sh "$folder"
