#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Installs the packages named in tools/packages.txt and in the lists given as arguments, those that are missing only: with
# nothing missing it needs no network, no root and a few milliseconds.
set -euo pipefail
cd "$(dirname "$0")/.."

wanted=$(sed 's/#.*//' tools/packages.txt "$@" | xargs)
if ! command -v dpkg-query >/dev/null; then
  echo "setup: not a Debian system, so nothing is installed here. Needed: $wanted" >&2
  exit 0
fi

missing=()
# shellcheck disable=SC2086  # one word a package
installed=$(dpkg-query --show --showformat='${Package} ${db:Status-Status}\n' $wanted 2>/dev/null || true)
for package in $wanted; do
  grep -qx "$package installed" <<<"$installed" || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "setup: run as root or install sudo; missing packages: ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi
echo "setup: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -q
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
