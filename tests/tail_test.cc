// SPDX-License-Identifier: Apache-2.0
// The INT8 open page on every ISA against its definition (kernels/ref/flashq.h): codes, exponents, counts and
// scales to the bit, however rows are cut; what attention reads of it; what it is sealed to. A scale taken
// from elsewhere, rows in another order and a step that doubles too often must be seen.
#include <cmath>
#include <limits>
#include <span>

#include "float_kernels.h"
#include "kernels/ref/flashq.h"
#include "quant/kv/registry.h"

namespace nibble {
namespace {

using kv::Int8Tail;
using ref::FlashBuffer;
using Bytes = std::vector<std::byte>;

constexpr int kTokens = kv::kPageTokens;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN(),
                kInfinity = std::numeric_limits<float>::infinity();
constexpr int kHeadDims[] = {8, 24, 64, 80, 128};

// Rows of a page. The deviation grows by `growth` from the first token to the last.
std::vector<float> Rows(int head_dim, uint32_t seed, float growth = 1, float deviation = 1) {
  std::vector<float> x = test::Normal(size_t(kTokens * head_dim), seed, deviation);
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t token = i / size_t(head_dim);
    x[i] *= 1 + (growth - 1) * float(token) / float(kTokens - 1);
  }
  return x;
}

// Appends rows in calls of the given sizes, the last one as often as there are rows.
AttentionCounters Append(const cpu::CpuKernels& isa, kv::PageShape s, const std::vector<float>& x,
                         std::span<const int> calls, const std::byte* before, std::byte* tail) {
  AttentionCounters counters{};
  for (int t = 0, call = 0; t < kTokens; ++call) {
    const int rows = std::min(calls[std::min(size_t(call), calls.size() - 1)], kTokens - t);
    isa.tail_append({.x = x.data() + t * s.head_dim,
                     .tail = tail,
                     .before = before,
                     .x_stride = s.head_dim,
                     .rows = rows,
                     .first_token = t,
                     .shape = s,
                     .counters = &counters});
    t += rows;
  }
  return counters;
}
Bytes TailOf(const cpu::CpuKernels& isa, kv::PageShape s, const std::vector<float>& x,
             const std::byte* before = nullptr) {
  Bytes tail(size_t(Int8Tail::Bytes(s)), std::byte{0xff});
  Append(isa, s, x, std::array{kTokens}, before, tail.data());
  return tail;
}

FlashBuffer Define(kv::PageShape s, const std::vector<float>& x, float scale) {
  FlashBuffer buffer(scale, s.head_dim);
  for (int t = 0; t < kTokens; ++t) buffer.Append(&x[size_t(t * s.head_dim)]);
  return buffer;
}
float FirstScale(kv::PageShape s, const std::vector<float>& x) {
  float greatest = 0;
  for (int d = 0; d < s.head_dim; ++d) greatest = std::max(greatest, std::abs(x[size_t(d)]));
  return ref::UniversalScale(greatest, Int8Tail::kFirstHeadroom);
}

void ExpectDefined(kv::PageShape s, const Bytes& tail, const FlashBuffer& want, const std::string& what) {
  for (int t = 0; t < kTokens; ++t) {
    ASSERT_EQ(int(tail[size_t(Int8Tail::ExponentOffset(s) + t)]), want.exponents()[size_t(t)]) << what << t;
    for (int d = 0; d < s.head_dim; ++d) {
      ASSERT_EQ(int(int8_t(tail[size_t(t * s.head_dim + d)])), want.codes()[t][d]) << what << t << " " << d;
      const float got = Int8Tail::Value(s, tail.data(), t, d);
      ASSERT_TRUE(double(got) == want.Decoded(t, d) || (std::isnan(got) && std::isnan(want.Decoded(t, d))));
    }
  }
  EXPECT_EQ(Int8Tail::LoadState(s, tail.data()).greatest, want.greatest()) << what;
}

TEST(Int8Tail, IsTheDefinitionHoweverRowsAreCut) {
  const int one[] = {1}, seven[] = {7}, whole[] = {64}, ragged[] = {3, 1, 40, 2};
  for (const auto* isa : test::Isas())
    for (const int head_dim : kHeadDims)
      for (const float growth : {1.0f, 3.0f, 60.0f}) {
        const kv::PageShape s{head_dim, kTokens};
        const auto x = Rows(head_dim, uint32_t(head_dim), growth), y = Rows(head_dim, 7, growth, growth);
        const FlashBuffer first = Define(s, x, FirstScale(s, x));
        const FlashBuffer second = Define(s, y, ref::UniversalScale(first.greatest(), Int8Tail::kHeadroom));
        for (const std::span<const int> calls : {std::span<const int>(one), std::span<const int>(seven),
                                                 std::span<const int>(whole), std::span<const int>(ragged)}) {
          test::Guarded<std::byte> a(size_t(Int8Tail::Bytes(s))), b(a.size());
          const AttentionCounters count = Append(*isa, s, x, calls, nullptr, a.data());
          EXPECT_EQ(count.tail_values, kTokens * head_dim);
          EXPECT_EQ(count.tail_clamped, first.clamped());
          ExpectDefined(s, Bytes(a.data(), a.data() + a.size()), first, "first page, token ");
          Append(*isa, s, y, calls, a.data(), b.data());
          ExpectDefined(s, Bytes(b.data(), b.data() + b.size()), second, "second page, token ");
          Append(*isa, s, y, calls, a.data(), a.data());  // a slot that holds the page before is reused
          EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size()), 0);
          EXPECT_TRUE(a.Intact() && b.Intact());
        }
        if (growth > 10) {
          EXPECT_GT(first.clamped(), 0) << "a stream that outgrows its scale";
          EXPECT_GT(first.exponents().back(), 1);
        }
      }
}

TEST(Int8Tail, WhatIsNotTheDefinitionIsSeen) {
  const kv::PageShape s{64, kTokens};
  for (const auto* isa : test::Isas()) {
    const auto x = Rows(64, 1), y = Rows(64, 2, 4);
    const Bytes a = TailOf(*isa, s, x), b = TailOf(*isa, s, y, a.data());
    EXPECT_NE(b, TailOf(*isa, s, y)) << "a scale from the page's own first token";
    auto swapped = y;
    std::swap_ranges(swapped.begin() + 64 * 10, swapped.begin() + 64 * 11, swapped.begin() + 64 * 50);
    EXPECT_NE(b, TailOf(*isa, s, swapped, a.data())) << "tokens 10 and 50 in the other order";
    const FlashBuffer want = Define(s, y, Int8Tail::LoadState(s, a.data()).greatest / 119);
    EXPECT_NE(int(int8_t(b[0])), want.codes()[0][0]) << "a scale without headroom";
  }
}

// One burst doubles the step until it fits, and no further.
TEST(Int8Tail, ABurstDoublesTheStepUntilItFits) {
  const kv::PageShape s{32, kTokens};
  for (const auto* isa : test::Isas()) {
    auto x = Rows(32, 3);
    for (int t = 10; t < 16; ++t)
      for (int d = 0; d < 32; ++d) x[size_t(t * 32 + d)] *= 5;
    const Bytes tail = TailOf(*isa, s, x);
    const auto exponent = [&](int t) { return int(tail[size_t(Int8Tail::ExponentOffset(s) + t)]); };
    EXPECT_EQ(exponent(10), 0);
    EXPECT_GE(exponent(15), 1);
    EXPECT_LE(exponent(15), 3);
    EXPECT_EQ(exponent(63), exponent(16)) << "calm tokens double nothing";
    const float step = Int8Tail::Step(s, tail.data(), 63);
    for (int t = 16; t < kTokens; ++t)
      for (int d = 0; d < 32; ++d)
        EXPECT_LE(std::abs(Int8Tail::Value(s, tail.data(), t, d) - x[size_t(t * 32 + d)]), step * .5001f);
  }
}

// A query that sees one token only gives that token's V.
TEST(Int8Tail, AttentionReadsTheDecodedRows) {
  for (const auto* isa : test::Isas())
    for (const int head_dim : kHeadDims) {
      const kv::PageShape s{head_dim, kTokens};
      auto x = Rows(head_dim, 4, 20);
      x[size_t(20 * head_dim + 5)] = kNan;
      const Bytes k = TailOf(*isa, s, Rows(head_dim, 5)), v = TailOf(*isa, s, x);
      const auto q = test::Normal(size_t(head_dim), 6);
      for (int t = 0; t < kTokens; ++t) {
        std::vector<float> out(size_t(head_dim), NAN), scratch(size_t(AttentionScratchFloats(1, 1, s)) + 16);
        AttentionArgs a{};
        a.q = q.data(), a.out = out.data(), a.k_raw = k.data(), a.v_raw = v.data();
        a.scratch = scratch.data() + (64 - reinterpret_cast<uintptr_t>(scratch.data()) % 64) % 64 / 4;
        a.q_stride = a.out_stride = head_dim;
        a.position = t, a.window = 1, a.rows = 1, a.group = 1, a.page = s;
        a.k_codec = a.v_codec = kv::CodecId::kFlashQ4;
        a.tail = kv::Tail::kInt8;
        a.scale = .1f;
        isa->attention(a);
        for (int d = 0; d < head_dim; ++d) {
          if (t == 20 && d == 5) {
            EXPECT_TRUE(std::isnan(out[size_t(d)])) << "a broken value stays visible";
          } else {
            EXPECT_EQ(out[size_t(d)], Int8Tail::Value(s, v.data(), t, d)) << isa->isa << " " << t << " " << d;
          }
        }
      }
    }
}

struct Sealed {
  kv::CodecId codec;
  int bits;
  ref::Stage2Form form;
  int cap;  // counts of the second stage's greatest error
};
constexpr Sealed kSealed[] = {{kv::CodecId::kFlashQ4, 4, ref::Stage2Form::kCanonical, 14},
                              {kv::CodecId::kFlashQ3, 3, ref::Stage2Form::kCanonical, 17},
                              {kv::CodecId::kFlashQ2, 2, ref::Stage2Form::kCanonical, 39},
                              {kv::CodecId::kFlashQ2Literal, 2, ref::Stage2Form::kPaperLiteral, 79}};

// The page is stage 2 of the buffer's codes as they are: no value goes through a float again.
TEST(Int8Tail, SealsToTheSecondStageOfItsCodes) {
  for (const auto* isa : test::Isas())
    for (const Sealed& c : kSealed)
      for (const int head_dim : kHeadDims)
        for (const float growth : {1.0f, 30.0f}) {
          const kv::PageShape s{head_dim, kTokens};
          const auto x = Rows(head_dim, 8, growth);
          const FlashBuffer buffer = Define(s, x, FirstScale(s, x));
          const ref::Codes want = ref::ExpandStage2(ref::FlashStage2(buffer.SealedCodes(), c.bits, c.form));
          const kv::CodecInfo& codec = kv::Get(c.codec);
          const Bytes tail = TailOf(*isa, s, x);
          test::Guarded<std::byte> page(size_t(codec.page_bytes(s)));
          isa->tail_seal({.tail = tail.data(), .page = page.data(), .codec = c.codec, .shape = s});
          EXPECT_TRUE(page.Intact());
          const float scale = buffer.SealedScale();
          double worst = 0;
          std::vector<float> row(static_cast<size_t>(head_dim));
          for (int t = 0; t < kTokens; ++t) {
            codec.decode_row(s, page.data(), t, row.data());
            for (int d = 0; d < head_dim; ++d) {
              ASSERT_EQ(row[size_t(d)], float(want[t][d]) * scale) << isa->isa << " " << codec.name;
              EXPECT_LE(std::abs(want[t][d]), 127);
              worst = std::max(worst, std::abs(double(row[size_t(d)]) - buffer.Decoded(t, d)));
            }
          }
          // A flush moves no value by more than the second stage may, and half a code where the step grew.
          EXPECT_LE(worst, (c.cap + .5001) * double(scale)) << codec.name;
          EXPECT_GT(worst, 0);
        }
}

TEST(Int8Tail, EveryFlashQCodecSealsAlikeOnEveryIsa) {
  int codecs = 0;
  for (const kv::CodecInfo& codec : kv::kRegistry) {
    if (codec.seal_int8 == nullptr) continue;
    ++codecs;
    const kv::PageShape s{72, kTokens};
    Bytes tail = TailOf(*test::Isas()[0], s, Rows(72, 9, 10));
    Bytes want(size_t(codec.page_bytes(s)));
    codec.seal_int8(s, tail.data(), want.data());
    for (const auto* isa : test::Isas()) {
      Bytes page(want.size());
      const TailSealArgs args{.tail = tail.data(), .page = page.data(), .codec = codec.id, .shape = s};
      isa->tail_seal(args);
      EXPECT_EQ(page, want) << isa->isa << " " << codec.name;
      std::byte& last = tail[size_t(Int8Tail::ExponentOffset(s) + kTokens - 1)];
      last = std::byte(int(last) + 1);
      isa->tail_seal(args);
      EXPECT_NE(page, want) << "another exponent was not noticed";
      last = std::byte(int(last) - 1);
    }
  }
  EXPECT_GE(codecs, 7);
}

TEST(Int8Tail, BrokenValuesStayVisible) {
  const kv::PageShape s{16, kTokens};
  for (const auto* isa : test::Isas())
    for (const float bad : {kNan, kInfinity, -kInfinity}) {
      auto x = Rows(16, 10);
      x[3] = bad;  // in the token that the scale comes from
      x[size_t(30 * 16 + 7)] = bad;
      const Bytes tail = TailOf(*isa, s, x);
      for (int t = 0; t < kTokens; ++t)
        for (int d = 0; d < 16; ++d) {
          const bool broken = (t == 0 && d == 3) || (t == 30 && d == 7);
          EXPECT_EQ(std::isnan(Int8Tail::Value(s, tail.data(), t, d)), broken) << t << " " << d;
        }
      const kv::CodecInfo& codec = kv::Get(kv::CodecId::kFlashQ4);
      Bytes page(size_t(codec.page_bytes(s)));
      isa->tail_seal({.tail = tail.data(), .page = page.data(), .codec = codec.id, .shape = s});
      float row[16];
      codec.decode_row(s, page.data(), 63, row);
      for (const float v : row) EXPECT_TRUE(std::isnan(v));
      const Bytes next = TailOf(*isa, s, Rows(16, 11), tail.data());
      EXPECT_TRUE(std::isfinite(Int8Tail::LoadState(s, next.data()).scale)) << "the next page is well";
    }
}

// Zeros, the greatest and the least floats: no scale becomes 0, infinite or NaN.
TEST(Int8Tail, ExtremesKeepTheScaleFinite) {
  const kv::PageShape s{8, kTokens};
  for (const auto* isa : test::Isas())
    for (const float value : {0.0f, 1e-45f, 1e-7f, 3e38f}) {
      std::vector<float> x(size_t(kTokens * 8), value);
      const Bytes a = TailOf(*isa, s, x), b = TailOf(*isa, s, x, a.data());
      for (const Bytes& tail : {a, b}) {
        const float scale = Int8Tail::LoadState(s, tail.data()).scale;
        EXPECT_TRUE(std::isfinite(scale) && scale >= Int8Tail::kLeastScale) << value;
        EXPECT_LE(std::abs(Int8Tail::Value(s, tail.data(), 63, 7) - value), scale * .51f) << value;
      }
    }
  // Zeros, then the greatest: the step doubles with every token and stays finite.
  std::vector<float> x(size_t(kTokens * 8), 3e38f);
  std::fill_n(x.begin(), 8, 0.0f);
  const Bytes tail = TailOf(*test::Isas()[0], s, x);
  EXPECT_EQ(int(tail[size_t(Int8Tail::ExponentOffset(s) + 63)]), 62);
  EXPECT_TRUE(std::isfinite(Int8Tail::Value(s, tail.data(), 63, 0)));
}

}  // namespace
}  // namespace nibble
