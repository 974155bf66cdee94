// SPDX-License-Identifier: Apache-2.0
// Floor 2. FlashQ of TurboAttention (arXiv 2412.08585). A page is one block. Stage 1: INT8, symmetric, one
// scale a block, greatest magnitude 119. Stage 2, on those codes, by channel over the tokens: an integer step
// and a base, and 4, 3 or 2 bits. INT4 keeps the zero point on the grid of the step, the others anchor at a
// code of INT8: neither can leave INT8. The paper's form of 3 and 2 bits, on the grid, can: *-literal. How a
// channel's step and base are found is the codec's Fit. Page: codes [token][head_dim * bits / 8], low bits
// first, then u8 step [head_dim], then s8 base [head_dim], then u8 token and s8 stage-1 code of the outlier
// of each channel [2][head_dim] where the codec keeps one, then f32 scale. docs/formats/kv_pages.md.
#pragma once
#include "quant/kv/codec.h"
#include "quant/kv/low_bits.h"

namespace nibble::kv {

inline constexpr int kFlashRange =
    119;  // QServe's protective range: 119 + half of the widest INT4 step is 127

// Nearest integer to a / b, ties to even. |a| <= 2^14, 1 <= b: the quotient rounds to f32 without crossing a
// tie.
NIBBLE_HD int RoundRatio(int a, int b) { return RoundToInt(float(a) / float(b)); }

// Stage 2 of one channel. On the grid, `base` is the zero point in steps, else the value of code 0.
template <int kBits, bool kOnGrid = kBits == 4>
struct FlashChannel {
  static constexpr int kLevels = (1 << kBits) - 1;
  static constexpr bool kGrid = kOnGrid, kLeavesInt8 = kOnGrid && kBits != 4;
  int step = 1, base = 0;

  NIBBLE_HD static FlashChannel Fit(int lo, int hi) {
    FlashChannel c;
    c.step = RoundRatio(hi - lo, kLevels);
    if (c.step < 1) c.step = 1;
    c.base = kOnGrid ? RoundRatio(lo, c.step) : lo;
    return c;
  }
  NIBBLE_HD int Encode(int q8) const {
    const int code = kOnGrid ? RoundRatio(q8, step) - base : RoundRatio(q8 - base, step);
    return code < 0 ? 0 : (code > kLevels ? kLevels : code);
  }
  NIBBLE_HD int Decode(int code) const {
    const int q8 = kOnGrid ? (code + base) * step : base + code * step;
    if (!kLeavesInt8) return q8;
    return q8 < -127 ? -127 : (q8 > 127 ? 127 : q8);
  }
};

// The stage-1 codes of one channel of a block.
struct FlashCodes {
  int8_t q[kPageTokens] = {};
  int n = 0;
  NIBBLE_HD int Least() const {
    int lo = q[0];
    for (int i = 1; i < n; ++i) lo = q[i] < lo ? q[i] : lo;
    return lo;
  }
  NIBBLE_HD int Greatest() const {
    int hi = q[0];
    for (int i = 1; i < n; ++i) hi = q[i] > hi ? q[i] : hi;
    return hi;
  }
};

// From the bounds, as the paper does.
template <int kBits, bool kOnGrid = kBits == 4>
struct FlashBounds {
  static constexpr int kBitsOfCode = kBits;
  using Channel = FlashChannel<kBits, kOnGrid>;
  NIBBLE_HD static Channel Fit(const FlashCodes& x) { return Channel::Fit(x.Least(), x.Greatest()); }
};

// The step and base of least squared error. The bounds are a poor guide at few bits: the widest of 64 values
// lies far out, and a narrower grid that cuts it off serves the other 63 better. Steps from the bounds' own
// (rounded down and up) to half of it; for each the base that minimises the error is found by two rounds of
// "codes for this base, base for these codes". A grid that would leave INT8 is not taken.
template <int kBits>
struct FlashSearch {
  static constexpr int kBitsOfCode = kBits;
  using Channel = FlashChannel<kBits, false>;

  NIBBLE_HD static int Error(const FlashCodes& x, Channel c) {
    int sum = 0;
    for (int i = 0; i < x.n; ++i) {
      const int e = x.q[i] - c.Decode(c.Encode(x.q[i]));
      sum += e * e;
    }
    return sum;
  }
  NIBBLE_HD static int BestBase(const FlashCodes& x, Channel c) {
    int sum = 0;
    for (int i = 0; i < x.n; ++i) sum += x.q[i] - c.step * c.Encode(x.q[i]);
    return RoundRatio(sum, x.n);
  }
  NIBBLE_HD static Channel Fit(const FlashCodes& x) {
    const int lo = x.Least(), range = x.Greatest() - lo;
    Channel best = Channel::Fit(lo, lo + range);
    int least = Error(x, best);
    constexpr int kParts = 16;  // candidates: 8/16 .. 16/16 of the bounds' step, then one above
    int previous = 0;
    for (int part = kParts / 2; part <= kParts + 1; ++part) {
      Channel c;
      c.step = part > kParts ? (range + Channel::kLevels - 1) / Channel::kLevels
                             : range * part / (kParts * Channel::kLevels);
      if (c.step < 1) c.step = 1;
      if (c.step == previous) continue;
      previous = c.step;
      c.base = lo + (range - Channel::kLevels * c.step) / 2;
      for (int round = 0; round < 2; ++round) c.base = BestBase(x, c);
      if (c.base < -127 || c.base + Channel::kLevels * c.step > 127) continue;
      const int error = Error(x, c);
      if (error < least) {
        least = error;
        best = c;
      }
    }
    return best;
  }
};

template <class Fit, bool kOutlier = false>
struct FlashQPage {
  static constexpr int kBits = Fit::kBitsOfCode;
  static constexpr bool kKeepsOutlier = kOutlier;
  static constexpr DType kRaw = DType::kF16;
  using Channel = typename Fit::Channel;

  NIBBLE_HD static int StepOffset(PageShape s) { return CodeBytes<kBits>(s.tokens * s.head_dim); }
  NIBBLE_HD static int BaseOffset(PageShape s) { return StepOffset(s) + s.head_dim; }
  NIBBLE_HD static int OutlierOffset(PageShape s) { return BaseOffset(s) + s.head_dim; }
  NIBBLE_HD static int ScaleOffset(PageShape s) { return OutlierOffset(s) + (kOutlier ? 2 * s.head_dim : 0); }
  NIBBLE_HD static int PageBytes(PageShape s) { return ScaleOffset(s) + 4; }
  NIBBLE_HD static int SharedBytes(PageShape s) { return PageBytes(s) - StepOffset(s); }

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

  // Takes the channel's farthest token out: of least and greatest, the one whose absence leaves the narrower
  // rest (the first such token). Its place takes the value nearest to it.
  NIBBLE_HD static int TakeOutlier(FlashCodes& x) {
    int low = 0, high = 0;
    for (int i = 1; i < x.n; ++i) {
      if (x.q[i] < x.q[low]) low = i;
      if (x.q[i] > x.q[high]) high = i;
    }
    FlashCodes below = x, above = x;  // without the greatest, without the least
    below.q[high] = x.q[low];
    above.q[low] = x.q[high];
    const int next_high = below.Greatest(), next_low = above.Least();
    const bool take_high = x.q[high] - next_high >= next_low - x.q[low];
    x.q[take_high ? high : low] = int8_t(take_high ? next_high : next_low);
    return take_high ? high : low;
  }

  // A part is eight channels: their codes share bytes.
  NIBBLE_HD static int Parts(PageShape s) { return s.head_dim / 8; }
  NIBBLE_HD static float Prepare(PageShape s, const float* rows) { return BlockScale(s, rows); }
  NIBBLE_HD static void EncodePart(PageShape s, float scale, const float* rows, int part, std::byte* page) {
    // A scale below 2^-126 has no finite inverse; such a block is all zero to any reader.
    const float inverse = scale > 1.2e-38f ? 1.0f / scale : 0.0f;
    const bool broken = !(scale >= 0.0f);
    EncodeChannels(s, scale, RowCodes{rows, s.head_dim, inverse, broken}, part, page);
  }
  NIBBLE_HD static void EncodePage(PageShape s, const float* rows, std::byte* page) {
    EncodeParts<FlashQPage>(s, rows, page);
  }

  struct RowCodes {
    const float* rows;
    int head_dim;
    float inverse;
    bool broken;
    NIBBLE_HD int operator()(int t, int d) const {
      return broken ? 0 : Stage1(rows[t * head_dim + d], inverse);
    }
  };

  // Stage 2 of stage-1 codes code(token, channel), -119 .. 119, of a block with this scale, one part.
  template <class Code>
  NIBBLE_HD static void EncodeChannels(PageShape s, float scale, const Code& code, int part,
                                       std::byte* page) {
    for (int t = 0; t < s.tokens; ++t) memset(page + CodeBytes<kBits>(t * s.head_dim + 8 * part), 0, kBits);
    if (part == 0) memcpy(page + ScaleOffset(s), &scale, 4);
    for (int d = 8 * part; d < 8 * part + 8; ++d) {
      FlashCodes x;
      x.n = s.tokens;
      for (int t = 0; t < s.tokens; ++t) x.q[t] = int8_t(code(t, d));
      if constexpr (kOutlier) {
        const FlashCodes all = x;
        const int token = TakeOutlier(x);
        page[OutlierOffset(s) + d] = std::byte(token);
        page[OutlierOffset(s) + s.head_dim + d] = std::byte(all.q[token]);
      }
      const Channel c = Fit::Fit(x);
      for (int t = 0; t < s.tokens; ++t) StoreCode<kBits>(page, t * s.head_dim + d, c.Encode(x.q[t]));
      page[StepOffset(s) + d] = std::byte(c.step);
      page[BaseOffset(s) + d] = std::byte(c.base);
    }
  }

  NIBBLE_HD static void Decode8(PageShape s, const std::byte* page, int token, int channel, float* out8) {
    float scale;
    memcpy(&scale, page + ScaleOffset(s), 4);
    for (int i = 0; i < 8; ++i) {
      const int d = channel + i;
      const Channel c{int(page[StepOffset(s) + d]), int(int8_t(page[BaseOffset(s) + d]))};
      int q8 = c.Decode(LoadCode<kBits>(page, token * s.head_dim + d));
      if (kOutlier && int(page[OutlierOffset(s) + d]) == token)
        q8 = int(int8_t(page[OutlierOffset(s) + s.head_dim + d]));
      out8[i] = float(q8) * scale;
    }
  }
};

template <int kBits>
using FlashQ = FlashQPage<FlashBounds<kBits>>;

struct FlashQ4 : FlashQ<4> {
  static constexpr CodecId kId = CodecId::kFlashQ4;
  static constexpr const char* kName = "flashq4";
};
struct FlashQ2 : FlashQ<2> {
  static constexpr CodecId kId = CodecId::kFlashQ2;
  static constexpr const char* kName = "flashq2";
};
struct FlashQ3 : FlashQ<3> {
  static constexpr CodecId kId = CodecId::kFlashQ3;
  static constexpr const char* kName = "flashq3";
};
struct FlashQ4Search : FlashQPage<FlashSearch<4>> {
  static constexpr CodecId kId = CodecId::kFlashQ4Search;
  static constexpr const char* kName = "flashq4-search";
};
struct FlashQ2Search : FlashQPage<FlashSearch<2>> {
  static constexpr CodecId kId = CodecId::kFlashQ2Search;
  static constexpr const char* kName = "flashq2-search";
};
struct FlashQ2Literal : FlashQPage<FlashBounds<2, true>> {
  static constexpr CodecId kId = CodecId::kFlashQ2Literal;
  static constexpr const char* kName = "flashq2-literal";
};
struct FlashQ2Outlier : FlashQPage<FlashSearch<2>, true> {
  static constexpr CodecId kId = CodecId::kFlashQ2Outlier;
  static constexpr const char* kName = "flashq2-outlier";
};
// 4 bits for some KV heads of a layer and 2 for the others (quant/kv/head_mix.h). This is the page of a head
// with 4. Both forms are those of least divergence for their bits: more heads with 2 bits and an outlier do
// better than fewer with 2 bits alone, at as many bits in all (docs/formats/kv_pages.md).
struct FlashQMixed : FlashQPage<FlashSearch<4>> {
  static constexpr CodecId kId = CodecId::kFlashQMixed;
  static constexpr const char* kName = "flashq-mixed";
  static constexpr CodecId kTwoBit = FlashQ2Outlier::kId;  // the page of a head with 2
};

}  // namespace nibble::kv
