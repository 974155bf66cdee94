// SPDX-License-Identifier: Apache-2.0
// Floor 2. How the open page of a sequence (its tail) keeps the rows of one KV head: in its codec's raw type,
// or as TurboAttention's INT8 buffer (arXiv 2412.08585), from whose codes FlashQ seals. The buffer's scale is
// frozen when it begins, so that no token is ever coded again: values beyond it are clamped and counted, and
// when more than 0.5% of what the buffer holds was, later tokens take twice the step. So what it holds
// depends on the rows alone and not on how they were cut into steps. Page: s8 codes [token][head_dim], u8
// exponents [token], then f32 scale, f32 greatest |x|, u32 clamped. docs/formats/kv_pages.md.
#pragma once
#include "quant/kv/flashq.h"

namespace nibble::kv {

struct Int8Tail {
  static constexpr int kBroken = -128;              // the code of a value that is not finite: decodes as NaN
  static constexpr int kRescaleOneIn = 200;         // 0.5%
  static constexpr float kLeastScale = 1e-6f;       // also of a sequence that begins with zeros
  static constexpr float kFirstHeadroom = 2;        // over the first token of a sequence
  static constexpr float kHeadroom = 127.0f / 119;  // over the page before

  struct State {
    float scale, greatest;  // of a step with exponent 0; of all finite |x| so far, clamped or not
    uint32_t clamped;       // values since the step was last doubled
  };
  NIBBLE_HD static int ExponentOffset(PageShape s) { return s.tokens * s.head_dim; }
  NIBBLE_HD static int StateOffset(PageShape s) { return ExponentOffset(s) + s.tokens; }
  NIBBLE_HD static int Bytes(PageShape s) { return StateOffset(s) + int(sizeof(State)); }

  NIBBLE_HD static State LoadState(PageShape s, const std::byte* tail) {
    State state;
    memcpy(&state, tail + StateOffset(s), sizeof state);
    return state;
  }
  NIBBLE_HD static float Step(PageShape s, const std::byte* tail, int token) {  // exact: a power of two
    return LoadState(s, tail).scale * Pow2(int(tail[ExponentOffset(s) + token]));
  }

  // Adds row x [head_dim] as `token`, after all tokens before it. Token 0 begins the buffer: `before` is the
  // sequence's buffer of the page before, complete, or null at the sequence's first token. It may be `tail`.
  // Returns how many values were clamped.
  NIBBLE_HD static int Append(PageShape s, std::byte* tail, int token, const float* x,
                              const std::byte* before) {
    Row row = token == 0 ? Begin(s, x, before, OneLane{}) : After(s, tail, token);
    const int clamped = Append(s, tail, token, x, row, OneLane{});
    Store(s, tail, row);
    return clamped;
  }

  // The same by lanes that share a row and keep what a buffer is between rows. Lanes: `first` and `count`,
  // the channels of a lane; Max of values that are not negative, and Sum, over all of them.
  struct Row {
    State state;
    int exponent;  // of the row before
  };
  struct OneLane {
    int first = 0, count = 1;
    NIBBLE_HD float Max(float x) const { return x; }
    NIBBLE_HD int Sum(int x) const { return x; }
  };
  template <class Lanes>
  NIBBLE_HD static Row Begin(PageShape s, const float* x, const std::byte* before, Lanes lanes) {
    float greatest = before != nullptr ? LoadState(s, before).greatest : 0;
    for (int d = lanes.first; before == nullptr && d < s.head_dim; d += lanes.count) {
      const float a = x[d] < 0 ? -x[d] : x[d];
      greatest = a > greatest && a <= 3.4028234e38f ? a : greatest;
    }
    greatest = lanes.Max(greatest);
    const float scale = greatest / float(kFlashRange) * (before != nullptr ? kHeadroom : kFirstHeadroom);
    return {{scale > kLeastScale ? scale : kLeastScale, 0, 0}, 0};
  }
  NIBBLE_HD static Row After(PageShape s, const std::byte* tail, int token) {
    return {LoadState(s, tail), int(tail[ExponentOffset(s) + token - 1])};
  }
  template <class Lanes>
  NIBBLE_HD static int Append(PageShape s, std::byte* tail, int token, const float* x, Row& row,
                              Lanes lanes) {
    State& state = row.state;
    if (int64_t{state.clamped} * kRescaleOneIn > int64_t{token} * s.head_dim) {
      ++row.exponent;
      state.clamped = 0;  // else one burst would double the step with every token after it
    }
    const float step = state.scale * Pow2(row.exponent);
    int clamped = 0;
    for (int d = lanes.first; d < s.head_dim; d += lanes.count) {
      const float a = x[d] < 0 ? -x[d] : x[d];
      const bool finite = a <= 3.4028234e38f;
      state.greatest = finite && a > state.greatest ? a : state.greatest;
      // A division, not a product with 1 / step, which is one more rounding that all would have to repeat.
      const float wanted = x[d] / step, limit = float(kFlashRange + 1);
      const int q = RoundToInt(wanted > limit ? limit : (wanted < -limit ? -limit : wanted));
      const bool beyond = finite && (q > kFlashRange || q < -kFlashRange);
      const int code = beyond ? (q > 0 ? kFlashRange : -kFlashRange) : q;
      clamped += beyond;
      tail[token * s.head_dim + d] = std::byte(finite ? code : kBroken);
    }
    state.greatest = lanes.Max(state.greatest);
    clamped = lanes.Sum(clamped);
    state.clamped += uint32_t(clamped);
    if (lanes.first == 0) tail[ExponentOffset(s) + token] = std::byte(row.exponent);
    return clamped;
  }
  NIBBLE_HD static void Store(PageShape s, std::byte* tail, const Row& row) {
    memcpy(tail + StateOffset(s), &row.state, sizeof row.state);
  }

  NIBBLE_HD static float Value(PageShape s, const std::byte* tail, int token, int channel) {
    const int code = Code(s, tail, token, channel);
    return code == kBroken ? BitsToFloat(0x7fc00000u) : float(code) * Step(s, tail, token);
  }

  // Seals a full buffer: its codes, brought to the greatest step, are stage 1 of the FlashQ codec C. One that
  // holds a value that is not finite becomes a page of NaN, as in C::EncodePage.
  template <class C>
  NIBBLE_HD static void Seal(PageShape s, const std::byte* tail, std::byte* page) {
    const bool broken = Broken(s, tail);
    for (int part = 0; part < C::Parts(s); ++part) SealPart<C>(s, broken, tail, part, page);
  }
  NIBBLE_HD static bool Broken(PageShape s, const std::byte* tail) {
    bool broken = false;
    for (int i = 0; i < s.tokens * s.head_dim; ++i) broken |= int(int8_t(tail[i])) == kBroken;
    return broken;
  }
  template <class C>  // one part of Seal, as C::EncodePart
  NIBBLE_HD static void SealPart(PageShape s, bool broken, const std::byte* tail, int part, std::byte* page) {
    const int last = int(tail[ExponentOffset(s) + s.tokens - 1]);
    const float scale = broken ? BitsToFloat(0x7fc00000u) : Step(s, tail, s.tokens - 1);
    C::EncodeChannels(s, scale, SealCodes{s, tail, last, broken}, part, page);
  }

 private:
  NIBBLE_HD static float Pow2(int exponent) { return BitsToFloat(uint32_t(127 + exponent) << 23); }
  NIBBLE_HD static int Code(PageShape s, const std::byte* tail, int token, int channel) {
    return int(int8_t(tail[token * s.head_dim + channel]));
  }
  struct SealCodes {  // brought to the step of exponent `last`, ties to even
    PageShape s;
    const std::byte* tail;
    int last;
    bool broken;
    NIBBLE_HD int operator()(int t, int d) const {
      const int exponent = int(tail[ExponentOffset(s) + t]);
      return broken ? 0 : RoundToInt(float(Code(s, tail, t, d)) * Pow2(exponent - last));
    }
  };
};

// Bytes of the open page of one KV head, and what reading one of its rows takes (an INT8 row with its
// exponent). `raw`: Codec::kRaw.
NIBBLE_HD int TailBytes(Tail tail, DType raw, PageShape s) {
  return tail == Tail::kInt8 ? Int8Tail::Bytes(s) : s.tokens * s.head_dim * SizeOf(raw);
}
NIBBLE_HD int TailRowBytes(Tail tail, DType raw, PageShape s) {
  return tail == Tail::kInt8 ? s.head_dim + 1 : s.head_dim * SizeOf(raw);
}

}  // namespace nibble::kv
