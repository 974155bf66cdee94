#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Shows that check_isa.sh refuses an object with a leaked symbol and accepts one without: check_isa_selftest.sh COMPILER
set -u
here=$(cd "$(dirname "$0")" && pwd)
cxx=${1:?usage: check_isa_selftest.sh COMPILER}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

compile() { # compile NAME: source from stdin to $dir/NAME/avx2.cc.o
  mkdir -p "$dir/$1"
  "$cxx" -std=c++20 -O0 -x c++ -c -o "$dir/$1/avx2.cc.o" - || exit 1
}
compile clean <<'CC'
namespace nibble::cpu::avx2 {
static int Helper(int x) { return x + 1; }
extern const int kKernels;
const int kKernels = Helper(1);
}
CC
compile function <<'CC'
namespace nibble { inline int Shared(int x) { return x + 1; } }
namespace nibble::cpu::avx2 { int Use(int x) { return nibble::Shared(x); } }
CC
compile template <<'CC'
#include <vector>
namespace nibble::cpu::avx2 { int Use(const std::vector<int>& v) { return v.at(0); } }
CC
compile other_isa <<'CC'
namespace nibble::cpu::generic { int Use(int x) { return x; } }
CC

bad=0
"$here/check_isa.sh" "$dir/clean/avx2.cc.o" >/dev/null || { echo "a clean object is refused"; bad=1; }
for leak in function template other_isa; do
  if "$here/check_isa.sh" "$dir/$leak/avx2.cc.o" >/dev/null; then
    echo "the leak '$leak' is not seen"
    bad=1
  fi
done
[ $bad -eq 0 ] && echo "1 clean object accepted, 3 leaks seen"
exit $bad
