// SPDX-License-Identifier: Apache-2.0
// Floor 2. Codec fp8: E4M3 (OCP OFP8: sign, 4 bits of exponent with bias 7, 3 of mantissa, greatest 448, no
// infinity), one f32 scale for the page, which puts its greatest magnitude at 448. Page: codes
// [token][head_dim], then f32 scale. docs/formats/kv_pages.md.
#pragma once
#include "quant/kv/codec.h"

namespace nibble::kv {

inline constexpr float kE4m3Max = 448.0f;

// To nearest even, saturating. REQUIRES x finite.
NIBBLE_HD int FloatToE4m3(float x) {
  const uint32_t u = FloatToBits(x), sign = u >> 24 & 0x80, a = u & 0x7fffffff;
  if (a < 0x3c800000) {  // below 2^-6: subnormal, in units of 2^-9
    return int(sign) | RoundToInt(BitsToFloat(a) * 512.0f);
  }
  const uint32_t code = ((a + 0x7ffff + (a >> 20 & 1)) >> 20) - (120u << 3);  // exponent bias 127 -> 7
  return int(sign | (code < 0x7e ? code : 0x7e));
}

// As an f16 the same bits mean 2^-8 of the value, subnormals included. REQUIRES no NaN (0x7f, 0xff).
NIBBLE_HD float E4m3ToFloat(int code) {
  return HalfToFloat(uint16_t((code & 0x80) << 8 | (code & 0x7f) << 7)) * 256.0f;
}

struct Fp8 {
  static constexpr CodecId kId = CodecId::kFp8;
  static constexpr const char* kName = "fp8";
  static constexpr DType kRaw = DType::kF16;
  NIBBLE_HD static int ScaleOffset(PageShape s) { return s.tokens * s.head_dim; }
  NIBBLE_HD static int PageBytes(PageShape s) { return ScaleOffset(s) + 4; }

  // greatest magnitude / 448; NaN when a value is not finite: the whole page then decodes as NaN.
  NIBBLE_HD static float PageScale(PageShape s, const float* rows) {
    float amax = 0;
    bool finite = true;
    for (int i = 0; i < s.tokens * s.head_dim; ++i) {
      const float a = rows[i] < 0 ? -rows[i] : rows[i];
      amax = a > amax ? a : amax;
      finite &= a <= 3.4028234e38f;
    }
    return finite ? amax / kE4m3Max : BitsToFloat(0x7fc00000u);
  }

  NIBBLE_HD static int Parts(PageShape s) { return s.tokens; }
  NIBBLE_HD static float Prepare(PageShape s, const float* rows) { return PageScale(s, rows); }
  NIBBLE_HD static void EncodePart(PageShape s, float scale, const float* rows, int token, std::byte* page) {
    // A scale below 2^-126 has no finite inverse; such a page is all zero to any reader.
    const float inverse = scale > 1.2e-38f ? 1.0f / scale : 0.0f;
    const bool broken = !(scale >= 0.0f);
    for (int i = token * s.head_dim; i < (token + 1) * s.head_dim; ++i)
      page[i] = broken ? std::byte{0} : std::byte(FloatToE4m3(rows[i] * inverse));
    if (token == 0) memcpy(page + ScaleOffset(s), &scale, 4);
  }
  NIBBLE_HD static void EncodePage(PageShape s, const float* rows, std::byte* page) {
    EncodeParts<Fp8>(s, rows, page);
  }

  NIBBLE_HD static void Decode8(PageShape s, const std::byte* page, int token, int channel, float* out8) {
    float scale;
    memcpy(&scale, page + ScaleOffset(s), 4);
    for (int i = 0; i < 8; ++i) out8[i] = E4m3ToFloat(int(page[token * s.head_dim + channel + i])) * scale;
  }
};

}  // namespace nibble::kv
