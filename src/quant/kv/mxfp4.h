// SPDX-License-Identifier: Apache-2.0
// Floor 2. Codec mxfp4: the MXFP4 of the OCP Microscaling Formats (MX) specification 1.0: E2M1 elements in
// blocks of 32 channels of a token that share a power of two. Page: codes [token][head_dim / 2] with the even
// channel in the low nibble, then E8M0 scales [token][ceil(head_dim / 32)], padded. docs/formats/kv_pages.md.
#pragma once
#include "quant/kv/codec.h"

namespace nibble::kv {

inline constexpr float kE2m1Max = 6.0f;

// Codes 0 .. 7 are 0, 0.5, 1, 1.5, 2, 3, 4, 6; bit 3 is the sign. To nearest even, saturating.
NIBBLE_HD int FloatToE2m1(float x) {
  const float a = x < 0 ? -x : x;
  return (x < 0 ? 8 : 0) |
         ((a > 0.25f) + (a >= 0.75f) + (a > 1.25f) + (a >= 1.75f) + (a > 2.5f) + (a >= 3.5f) + (a > 5.0f));
}

NIBBLE_HD float E2m1ToFloat(int code) {
  const int m = code & 7;
  const float magnitude = m < 2 ? 0.5f * float(m) : 0.25f * float((2 + (m & 1)) << (m >> 1));
  return (code & 8) != 0 ? -magnitude : magnitude;
}

// E8M0: 2^(code - 127), 255 is NaN.
NIBBLE_HD float E8m0ToFloat(int code) {
  if (code == 255) return BitsToFloat(0x7fc00000u);
  return BitsToFloat(code == 0 ? 0x00400000u : uint32_t(code) << 23);
}

// Decode8 of a codec whose u4 codes are indices of levels, times a scale of C::kBlock channels of a token.
template <class C>
NIBBLE_HD void DecodeLevels8(PageShape s, const std::byte* page, int token, int channel, float* out8) {
  const std::byte* codes = page + (token * s.head_dim + channel) / 2;
  const float scale = C::Scale(s, page, token, channel / C::kBlock);
  for (int i = 0; i < 4; ++i) {
    out8[2 * i] = C::Level(int(codes[i]) & 15) * scale;
    out8[2 * i + 1] = C::Level(int(codes[i]) >> 4) * scale;
  }
}

struct Mxfp4 {
  static constexpr CodecId kId = CodecId::kMxfp4;
  static constexpr const char* kName = "mxfp4";
  static constexpr DType kRaw = DType::kF16;
  static constexpr int kBlock = 32;
  NIBBLE_HD static int Blocks(PageShape s) { return (s.head_dim + kBlock - 1) / kBlock; }
  NIBBLE_HD static int ScaleOffset(PageShape s) { return s.tokens * s.head_dim / 2; }
  NIBBLE_HD static int PageBytes(PageShape s) { return (ScaleOffset(s) + s.tokens * Blocks(s) + 3) / 4 * 4; }

  // floor(log2 amax) - 2, so that amax / 2^scale lies in [4, 8): above 6 it saturates, as the specification
  // says. Rows are f16: no amax but 0 is subnormal as f32.
  NIBBLE_HD static int BlockScale(const float* x, int n) {
    float amax = 0;
    bool finite = true;
    for (int i = 0; i < n; ++i) {
      const float a = x[i] < 0 ? -x[i] : x[i];
      amax = a > amax ? a : amax;
      finite &= a <= 3.4028234e38f;
    }
    if (!finite) return 255;
    const int exponent = int(FloatToBits(amax) >> 23);
    return exponent > 2 ? exponent - 2 : 0;
  }

  NIBBLE_HD static void EncodePage(PageShape s, const float* rows, std::byte* page) {
    std::byte* scales = page + ScaleOffset(s);
    for (int t = 0; t < s.tokens; ++t)
      for (int first = 0; first < s.head_dim; first += kBlock) {
        const float* x = rows + t * s.head_dim + first;
        const int n = s.head_dim - first < kBlock ? s.head_dim - first : kBlock;
        const int scale = BlockScale(x, n);
        // 0 where nothing is to be scaled: a block of zeros, or one with a value that is not finite.
        const float inverse = scale == 0 || scale == 255 ? 0.0f : E8m0ToFloat(254 - scale);
        for (int i = 0; i < n; i += 2) {
          const int even = scale == 255 ? 0 : FloatToE2m1(x[i] * inverse);
          const int odd = scale == 255 ? 0 : FloatToE2m1(x[i + 1] * inverse);
          page[(t * s.head_dim + first + i) / 2] = std::byte(even | odd << 4);
        }
        *scales++ = std::byte(scale);
      }
    while (scales < page + PageBytes(s)) *scales++ = std::byte{0};
  }

  // A table codec (kernels/cpu/kv_tiles.h): a value is Level(code) * Scale(block).
  NIBBLE_HD static float Level(int code) { return E2m1ToFloat(code); }
  NIBBLE_HD static float Scale(PageShape s, const std::byte* page, int token, int block) {
    return E8m0ToFloat(int(page[ScaleOffset(s) + token * Blocks(s) + block]));
  }
  NIBBLE_HD static void Decode8(PageShape s, const std::byte* page, int token, int channel, float* out8) {
    DecodeLevels8<Mxfp4>(s, page, token, channel, out8);
  }
};

}  // namespace nibble::kv
