// SPDX-License-Identifier: Apache-2.0
// Floor 2. Codec nvfp4: NVIDIA's NVFP4, E2M1 elements (mxfp4.h) in blocks of 16 channels of a token with an
// E4M3 scale each (fp8.h), and one f32 scale for the page, which puts the greatest block scale at 448. Page:
// codes [token][head_dim / 2] with the even channel in the low nibble, E4M3 scales [token][ceil(head_dim /
// 16)], padded, then the f32 scale. docs/formats/kv_pages.md.
#pragma once
#include "quant/kv/fp8.h"
#include "quant/kv/mxfp4.h"

namespace nibble::kv {

struct Nvfp4 {
  static constexpr CodecId kId = CodecId::kNvfp4;
  static constexpr const char* kName = "nvfp4";
  static constexpr DType kRaw = DType::kF16;
  static constexpr int kBlock = 16;
  NIBBLE_HD static int Blocks(PageShape s) { return (s.head_dim + kBlock - 1) / kBlock; }
  NIBBLE_HD static int ScaleOffset(PageShape s) { return s.tokens * s.head_dim / 2; }
  NIBBLE_HD static int PageScaleOffset(PageShape s) {
    return (ScaleOffset(s) + s.tokens * Blocks(s) + 3) / 4 * 4;
  }
  NIBBLE_HD static int PageBytes(PageShape s) { return PageScaleOffset(s) + 4; }

  // Greatest magnitude of n values, NaN when one is not finite.
  NIBBLE_HD static float Greatest(const float* x, int n) {
    float amax = 0;
    for (int i = 0; i < n; ++i) {
      const float a = x[i] < 0 ? -x[i] : x[i];
      if (!(a <= 3.4028234e38f)) return BitsToFloat(0x7fc00000u);
      amax = a > amax ? a : amax;
    }
    return amax;
  }

  NIBBLE_HD static void EncodePage(PageShape s, const float* rows, std::byte* page) {
    const float page_scale = Greatest(rows, s.tokens * s.head_dim) / (kE2m1Max * kE4m3Max);
    const bool coded = page_scale > 0;  // neither all zero nor broken: then every code and scale is 0
    std::byte* scales = page + ScaleOffset(s);
    for (int t = 0; t < s.tokens; ++t)
      for (int first = 0; first < s.head_dim; first += kBlock) {
        const float* x = rows + t * s.head_dim + first;
        const int n = s.head_dim - first < kBlock ? s.head_dim - first : kBlock;
        const int scale = coded ? FloatToE4m3(Greatest(x, n) / kE2m1Max / page_scale) : 0;
        const float inverse = scale > 0 ? 1.0f / (E4m3ToFloat(scale) * page_scale) : 0.0f;
        for (int i = 0; i < n; i += 2) {
          const int even = scale > 0 ? FloatToE2m1(x[i] * inverse) : 0;
          const int odd = scale > 0 ? FloatToE2m1(x[i + 1] * inverse) : 0;
          page[(t * s.head_dim + first + i) / 2] = std::byte(even | odd << 4);
        }
        *scales++ = std::byte(scale);
      }
    while (scales < page + PageScaleOffset(s)) *scales++ = std::byte{0};
    memcpy(page + PageScaleOffset(s), &page_scale, 4);
  }

  NIBBLE_HD static float Level(int code) { return E2m1ToFloat(code); }
  NIBBLE_HD static float Scale(PageShape s, const std::byte* page, int token, int block) {
    float page_scale;
    memcpy(&page_scale, page + PageScaleOffset(s), 4);
    return E4m3ToFloat(int(page[ScaleOffset(s) + token * Blocks(s) + block])) * page_scale;
  }
  NIBBLE_HD static void Decode8(PageShape s, const std::byte* page, int token, int channel, float* out8) {
    DecodeLevels8<Nvfp4>(s, page, token, channel, out8);
  }
};

}  // namespace nibble::kv
