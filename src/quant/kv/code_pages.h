// SPDX-License-Identifier: Apache-2.0
// Floor 2. Codecs whose pages attention reads as unsigned integers: [tokens, head_dim] codes of 8, 4 or 2
// bits from the first byte on, the lowest bits first, without gaps. Queries and weights that meet them have
// 16 bits (docs/decisions/0017-codes-meet-integers.md).
#pragma once
#include "quant/kv/int4_token.h"
#include "quant/kv/int8_codes.h"
#include "quant/kv/int8_token.h"

namespace nibble::kv {

// Kernels turn 16 bytes of a row into columns, and load 16 channels of floats at a time.
NIBBLE_HD constexpr bool FitsColumns(int bits, int head_dim) {
  return head_dim % 16 == 0 && head_dim * bits % 128 == 0;
}

// Of 8-bit codes, so that the sum of their products with 16 bits stays inside int32.
inline constexpr int kMaxCodes8Channels = 256;

// code * scale[token] + min[token]
template <class C>
inline constexpr bool kHasTokenCodes = C::kId == CodecId::kInt8Token || C::kId == CodecId::kInt4Token;

// (code * step[channel] + base[channel]) * scale of the page; the base in steps where C::Channel::kGrid
template <class C>
concept HasChannelCodes = HasInt8Codes<C> &&(C::kBits == 4 || C::kBits == 2) && !C::kKeepsOutlier &&
                          !C::Channel::kLeavesInt8;

// Bits of a code of such a page, or 0 where attention decodes the codec's pages of this shape.
template <class C>
NIBBLE_HD constexpr int CodeBits(PageShape s) {
  int bits = 0;
  if constexpr (kHasTokenCodes<C>) bits = C::kLevels == 15 ? 4 : 8;
  if constexpr (HasChannelCodes<C>) bits = C::kBits;
  return FitsColumns(bits, s.head_dim) && (bits < 8 || s.head_dim <= kMaxCodes8Channels) ? bits : 0;
}

}  // namespace nibble::kv
