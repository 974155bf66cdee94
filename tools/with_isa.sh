#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# tools/with_isa.sh ISA COMMAND...: runs COMMAND with NIBBLE_CPU=ISA; exit code 77 (skipped) where the machine lacks it.
isa=${1:?usage: tools/with_isa.sh ISA COMMAND...}
shift
case $isa in
  generic) flag= ;;
  avx2) flag=avx2 ;;
  avx512) flag=avx512_bf16 ;;
  *) echo "with_isa.sh: unknown ISA '$isa'" >&2; exit 2 ;;
esac
if [ -n "$flag" ] && ! grep -qw "$flag" /proc/cpuinfo; then
  echo "skipped: this processor has no $flag"
  exit 77
fi
NIBBLE_CPU=$isa exec "$@"
