// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "quant/kv/code_pages.h"
#include "quant/kv/registry.h"

namespace nibble::test {

// Does attention on the CPU read such pages as integers, and round queries and weights to 16 bits
// (docs/decisions/0017-codes-meet-integers.md)?
inline bool MeetsIntegers(kv::CodecId codec, int head_dim) {
  int bits = 0;
  Visit(kv::Codecs{}, codec,
        [&]<class C>() { bits = kv::CodeBits<C>({.head_dim = head_dim, .tokens = kv::kPageTokens}); });
  return bits != 0;
}

}  // namespace nibble::test
