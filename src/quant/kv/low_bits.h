// SPDX-License-Identifier: Apache-2.0
// Floor 2. Codes of 2, 3 or 4 bits, low bits first, without gaps: code i starts at bit i * kBits, so that
// eight codes take kBits bytes.
#pragma once
#include <cstddef>

#include "base/macros.h"

namespace nibble::kv {

template <int kBits>
NIBBLE_HD constexpr int CodeBytes(int count) {  // REQUIRES count a multiple of 8
  return count / 8 * kBits;
}

// Into bytes that were zero.
template <int kBits>
NIBBLE_HD void StoreCode(std::byte* codes, int index, int code) {
  const int bit = index * kBits, shifted = code << bit % 8;
  codes[bit / 8] |= std::byte(shifted & 255);
  if constexpr (8 % kBits != 0) {
    if (shifted > 255) codes[bit / 8 + 1] |= std::byte(shifted >> 8);
  }
}

template <int kBits>
NIBBLE_HD int LoadCode(const std::byte* codes, int index) {
  const int bit = index * kBits;
  int word = int(codes[bit / 8]);
  if constexpr (8 % kBits != 0) {
    if (bit % 8 + kBits > 8) word |= int(codes[bit / 8 + 1]) << 8;
  }
  return word >> bit % 8 & ((1 << kBits) - 1);
}

}  // namespace nibble::kv
