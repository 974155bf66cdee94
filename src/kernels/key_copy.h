// SPDX-License-Identifier: Apache-2.0
// Floor 4. The bits of the d-major copy of a page's keys, which ranks tokens for SparQ:
// docs/formats/kv_pages.md. f16 [head_dim][tokens], or symmetric codes stored unsigned, then f16 scales
// [head_dim][tokens / 32].
#pragma once
#include "quant/kv/codec.h"
#include "recipe/selection.h"

namespace nibble {

inline constexpr int kCopyGroup = 32;  // tokens of a channel that share a scale

// Greatest code, and what is added so that codes are stored unsigned.
NIBBLE_HD constexpr int KeyCopyLevels(KeyCopy format) { return format == KeyCopy::kInt8 ? 127 : 7; }
NIBBLE_HD constexpr int KeyCopyBias(KeyCopy format) { return format == KeyCopy::kInt8 ? 128 : 8; }

NIBBLE_HD int KeyCopyScaleOffset(KeyCopy format, kv::PageShape s) {
  return s.head_dim * s.tokens / (format == KeyCopy::kInt8 ? 1 : 2);
}

// Codes of 32 tokens x of a channel, kInt8 or kInt4. A channel that is not finite gets the scale NaN.
NIBBLE_HD void EncodeKeyGroup(KeyCopy format, const float* x, std::byte* codes, std::byte* scale) {
  float amax = 0;
  bool finite = true;
  for (int i = 0; i < kCopyGroup; ++i) {
    const float a = x[i] < 0 ? -x[i] : x[i];
    amax = a > amax ? a : amax;
    finite &= a <= 3.4028234e38f;
  }
  const float limit = float(KeyCopyLevels(format)), wanted = amax / limit;
  const uint16_t stored = finite ? FloatToHalf(wanted < kHalfMax ? wanted : kHalfMax) : uint16_t{0x7e00};
  kv::StoreU16(scale, stored);
  const float step = HalfToFloat(stored);
  uint8_t code[kCopyGroup];
  for (int i = 0; i < kCopyGroup; ++i) {
    const float t = step > 0 ? x[i] / step : 0.0f;
    code[i] = uint8_t(RoundToInt(t > limit ? limit : (t < -limit ? -limit : t)) + KeyCopyBias(format));
  }
  if (format == KeyCopy::kInt8) {
    memcpy(codes, code, kCopyGroup);
  } else {
    for (int i = 0; i < kCopyGroup / 2; ++i) codes[i] = std::byte(code[2 * i] | code[2 * i + 1] << 4);
  }
}

// 32 tokens x of channel d from token t on, a multiple of 32, into the copy.
NIBBLE_HD void StoreKeyGroup(KeyCopy format, kv::PageShape s, int d, int t, const float* x, std::byte* copy) {
  const int at = d * s.tokens + t;
  if (format == KeyCopy::kF16) {
    for (int i = 0; i < kCopyGroup; ++i) {
      const float low = x[i] < -kHalfMax ? -kHalfMax : x[i];  // NaN stays
      kv::StoreU16(copy + 2 * (at + i), FloatToHalf(low > kHalfMax ? kHalfMax : low));
    }
    return;
  }
  EncodeKeyGroup(format, x, copy + (format == KeyCopy::kInt8 ? at : at / 2),
                 copy + KeyCopyScaleOffset(format, s) + at / kCopyGroup * 2);
}

// The key of token t in channel d.
NIBBLE_HD float LoadKeyCopy(KeyCopy format, kv::PageShape s, const std::byte* copy, int t, int d) {
  const int at = d * s.tokens + t;
  if (format == KeyCopy::kF16) return HalfToFloat(kv::LoadU16(copy + 2 * at));
  const float scale = HalfToFloat(kv::LoadU16(copy + KeyCopyScaleOffset(format, s) + at / kCopyGroup * 2));
  const int code = format == KeyCopy::kInt8 ? int(copy[at]) : int(copy[at / 2]) >> (at % 2 * 4) & 15;
  return (float(code) - float(KeyCopyBias(format))) * scale;
}

}  // namespace nibble
