// SPDX-License-Identifier: Apache-2.0
// Floor 2. Codecs flashq4 and flashq2: FlashQ of TurboAttention (arXiv 2412.08585). A page is one block.
// Stage 1: INT8, symmetric, one scale a block, greatest magnitude 119. Stage 2, on those codes, by channel
// over the tokens: an integer step, and 4 or 2 bits. INT4 keeps the zero point on the grid of the step, INT2
// anchors at the channel's least code: neither can leave INT8, which the paper's form of INT2 does. Page:
// codes [token][head_dim * bits / 8], low bits first, then u8 step [head_dim], then s8 zero point or least
// code [head_dim], then f32 scale. docs/formats/kv_pages.md.
#pragma once
#include "quant/kv/codec.h"

namespace nibble::kv {

inline constexpr int kFlashRange =
    119;  // QServe's protective range: 119 + half of the widest INT4 step is 127

// Nearest integer to a / b, ties to even. |a| <= 255, 1 <= b: exact in f32.
NIBBLE_HD int RoundRatio(int a, int b) { return RoundToInt(float(a) / float(b)); }

template <int kBits>
struct FlashChannel {  // stage 2 of one channel
  static constexpr int kLevels = (1 << kBits) - 1;
  int step = 1, base = 0;  // base: zero point (INT4, in steps) or least code (INT2)

  NIBBLE_HD static FlashChannel Fit(int lo, int hi) {
    FlashChannel c;
    c.step = RoundRatio(hi - lo, kLevels);
    if (c.step < 1) c.step = 1;
    c.base = kBits == 4 ? RoundRatio(lo, c.step) : lo;
    return c;
  }
  NIBBLE_HD int Encode(int q8) const {
    const int code = kBits == 4 ? RoundRatio(q8, step) - base : RoundRatio(q8 - base, step);
    return code < 0 ? 0 : (code > kLevels ? kLevels : code);
  }
  NIBBLE_HD int Decode(int code) const { return kBits == 4 ? (code + base) * step : base + code * step; }
};

template <int kBits>
struct FlashQ {
  static_assert(kBits == 4 || kBits == 2);
  static constexpr DType kRaw = DType::kF16;
  using Channel = FlashChannel<kBits>;

  NIBBLE_HD static int StepOffset(PageShape s) { return s.tokens * s.head_dim * kBits / 8; }
  NIBBLE_HD static int BaseOffset(PageShape s) { return StepOffset(s) + s.head_dim; }
  NIBBLE_HD static int ScaleOffset(PageShape s) { return BaseOffset(s) + s.head_dim; }
  NIBBLE_HD static int PageBytes(PageShape s) { return ScaleOffset(s) + 4; }

  // max |x| / 119 over the block, as stored. NaN when a value is not finite: the whole page then decodes as
  // NaN.
  NIBBLE_HD static float BlockScale(PageShape s, const float* rows) {
    float amax = 0;
    bool finite = true;
    for (int i = 0; i < s.tokens * s.head_dim; ++i) {
      const float a = rows[i] < 0 ? -rows[i] : rows[i];
      amax = a > amax ? a : amax;
      finite &= a <= 3.4028234e38f;
    }
    return finite ? amax / float(kFlashRange) : BitsToFloat(0x7fc00000u);
  }

  NIBBLE_HD static int Stage1(float x, float inverse_scale) {
    const int q = RoundToInt(x * inverse_scale);
    return q > kFlashRange ? kFlashRange : (q < -kFlashRange ? -kFlashRange : q);
  }

  NIBBLE_HD static void EncodePage(PageShape s, const float* rows, std::byte* page) {
    const float scale = BlockScale(s, rows);
    // A scale below 2^-126 has no finite inverse; such a block is all zero to any reader.
    const float inverse = scale > 1.2e-38f ? 1.0f / scale : 0.0f;
    const bool broken = !(scale >= 0.0f);
    memset(page, 0, size_t(StepOffset(s)));
    for (int d = 0; d < s.head_dim; ++d) {
      int lo = kFlashRange, hi = -kFlashRange;
      for (int t = 0; t < s.tokens; ++t) {
        const int q = broken ? 0 : Stage1(rows[t * s.head_dim + d], inverse);
        lo = q < lo ? q : lo;
        hi = q > hi ? q : hi;
      }
      const Channel c = Channel::Fit(lo, hi);
      for (int t = 0; t < s.tokens; ++t) {
        const int q = broken ? 0 : Stage1(rows[t * s.head_dim + d], inverse);
        const int bit = (t * s.head_dim + d) * kBits;
        page[bit / 8] |= std::byte(c.Encode(q) << (bit % 8));
      }
      page[StepOffset(s) + d] = std::byte(c.step);
      page[BaseOffset(s) + d] = std::byte(c.base);
    }
    memcpy(page + ScaleOffset(s), &scale, 4);
  }

  NIBBLE_HD static void Decode8(PageShape s, const std::byte* page, int token, int channel, float* out8) {
    float scale;
    memcpy(&scale, page + ScaleOffset(s), 4);
    for (int i = 0; i < 8; ++i) {
      const int d = channel + i, bit = (token * s.head_dim + d) * kBits;
      const Channel c{int(page[StepOffset(s) + d]), int(int8_t(page[BaseOffset(s) + d]))};
      const int code = int(page[bit / 8]) >> (bit % 8) & Channel::kLevels;
      out8[i] = float(c.Decode(code)) * scale;
    }
  }
};

struct FlashQ4 : FlashQ<4> {
  static constexpr CodecId kId = CodecId::kFlashQ4;
  static constexpr const char* kName = "flashq4";
};
struct FlashQ2 : FlashQ<2> {
  static constexpr CodecId kId = CodecId::kFlashQ2;
  static constexpr const char* kName = "flashq2";
};

}  // namespace nibble::kv
