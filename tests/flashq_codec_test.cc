// SPDX-License-Identifier: Apache-2.0
// FlashQ: hand-checked vectors of both stages, the integer ranges over every pair of bounds, error caps,
// broken blocks. The paper's INT2 form, zero point on the grid, must be seen to leave INT8.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <random>

#include "quant/kv/registry.h"

namespace nibble::kv {
namespace {

// Four tokens of four channels, padded to the narrowest head.
constexpr float kBlock[4][4] = {{.45f, -.12f, .75f, .6f},
                                {-.55f, .35f, -.2f, -.65f},
                                {.75f, .85f, .1f, -.15f},
                                {-.05f, -.95f, .8f, .45f}};
constexpr int kStage1[4][4] = {
    {56, -15, 94, 75}, {-69, 44, -25, -81}, {94, 106, 13, -19}, {-6, -119, 100, 56}};
constexpr PageShape kShape{8, 4};

std::vector<float> BlockRows() {
  std::vector<float> rows(32, 0.0f);
  for (size_t t = 0; t < 4; ++t)
    for (size_t d = 0; d < 4; ++d) rows[t * 8 + d] = kBlock[t][d];
  return rows;
}

// What the page says of (token, channel), in stage-1 codes.
template <int kBits>
int DecodedCode(const std::vector<float>& rows, int token, int channel) {
  using C = FlashQ<kBits>;
  std::vector<std::byte> page(size_t(C::PageBytes(kShape)));
  C::EncodePage(kShape, rows.data(), page.data());
  float out[8], scale;
  C::Decode8(kShape, page.data(), token, 0, out);
  std::memcpy(&scale, page.data() + C::ScaleOffset(kShape), 4);
  return int(std::lround(out[channel] / scale));
}

TEST(FlashQ, StageOneVector) {
  const std::vector<float> rows = BlockRows();
  const float scale = FlashQ<4>::BlockScale(kShape, rows.data());
  EXPECT_NEAR(scale, .0079831933f, 1e-9);
  for (size_t t = 0; t < 4; ++t)
    for (size_t d = 0; d < 4; ++d) {
      EXPECT_EQ(FlashQ<4>::Stage1(kBlock[t][d], 1 / scale), kStage1[t][d]) << t << " " << d;
      EXPECT_LE(std::fabs(float(kStage1[t][d]) * scale - kBlock[t][d]), scale / 2 + 1e-7f);
    }
}

TEST(FlashQ, StageTwoVectors) {
  struct Case {
    int step, base;
    std::array<int, 4> codes, decoded;
  };
  const Case int4[] = {{11, -6, {11, 0, 15, 5}, {55, -66, 99, -11}},
                       {15, -8, {7, 11, 15, 0}, {-15, 45, 105, -120}},
                       {8, -3, {15, 0, 5, 15}, {96, -24, 16, 96}},
                       {10, -8, {15, 0, 6, 14}, {70, -80, -20, 60}}};
  const Case int2[] = {{54, -69, {2, 0, 3, 1}, {39, -69, 93, -15}},
                       {75, -119, {1, 2, 3, 0}, {-44, 31, 106, -119}},
                       {42, -25, {3, 0, 1, 3}, {101, -25, 17, 101}},
                       {52, -81, {3, 0, 1, 3}, {75, -81, -29, 75}}};
  const auto check = [](const auto& channel, const Case& want, size_t d) {
    EXPECT_EQ(channel.step, want.step) << d;
    EXPECT_EQ(channel.base, want.base) << d;
    for (size_t t = 0; t < 4; ++t) {
      EXPECT_EQ(channel.Encode(kStage1[t][d]), want.codes[t]) << t << " " << d;
      EXPECT_EQ(channel.Decode(want.codes[t]), want.decoded[t]) << t << " " << d;
    }
  };
  const std::vector<float> rows = BlockRows();
  for (size_t d = 0; d < 4; ++d) {
    int lo = 127, hi = -127;
    for (size_t t = 0; t < 4; ++t) {
      lo = std::min(lo, kStage1[t][d]);
      hi = std::max(hi, kStage1[t][d]);
    }
    check(FlashChannel<4>::Fit(lo, hi), int4[d], d);
    check(FlashChannel<2>::Fit(lo, hi), int2[d], d);
    for (size_t t = 0; t < 4; ++t) {  // and through a page
      EXPECT_EQ(DecodedCode<4>(rows, int(t), int(d)), int4[d].decoded[t]);
      EXPECT_EQ(DecodedCode<2>(rows, int(t), int(d)), int2[d].decoded[t]);
    }
  }
}

struct Extremes {
  int least = 0, greatest = 0, worst_error = 0;
};
// Over every channel that stage 1 can hand over: bounds lo <= hi and any code between them.
template <int kBits>
Extremes Sweep() {
  Extremes e;
  for (int lo = -kFlashRange; lo <= kFlashRange; ++lo)
    for (int hi = lo; hi <= kFlashRange; ++hi) {
      const FlashChannel<kBits> c = FlashChannel<kBits>::Fit(lo, hi);
      EXPECT_TRUE(c.step >= 1 && c.step <= 255 && c.base >= -128 && c.base <= 127) << lo << " " << hi;
      for (int q = lo; q <= hi; ++q) {
        const int back = c.Decode(c.Encode(q));
        e.least = std::min(e.least, back);
        e.greatest = std::max(e.greatest, back);
        e.worst_error = std::max(e.worst_error, std::abs(back - q));
      }
    }
  return e;
}

TEST(FlashQ, DecodedCodesStayInInt8) {
  const Extremes int4 = Sweep<4>(), int3 = Sweep<3>(), int2 = Sweep<2>();
  EXPECT_EQ(int4.least, -121);  // rounding ties away from zero instead of to even would give 126
  EXPECT_EQ(int4.greatest, 121);
  EXPECT_EQ(int4.worst_error, 14);
  EXPECT_GE(int3.least, -119);
  EXPECT_LE(int3.greatest, 122);
  EXPECT_EQ(int3.worst_error, 17);
  EXPECT_GE(int2.least, -119);
  EXPECT_LE(int2.greatest, 120);
  EXPECT_EQ(int2.worst_error, 39);
}

TEST(FlashQ, GridZeroPointAtTwoBitsLeavesInt8) {
  int least = 0;
  for (int lo = -kFlashRange; lo <= kFlashRange; ++lo)
    for (int hi = lo; hi <= kFlashRange; ++hi) {
      const int step = std::max(1, RoundRatio(hi - lo, 3)), zero = RoundRatio(lo, step);
      for (int q : {lo, hi})
        least = std::min(least, (std::clamp(RoundRatio(q, step) - zero, 0, 3) + zero) * step);
    }
  EXPECT_LT(least, -128);  // why flashq2 anchors at the least code
}

// The paper's form at two bits, as flashq2-literal clamps it.
TEST(FlashQ, LiteralFormIsClampedToInt8) {
  const auto c = FlashChannel<2, true>::Fit(-119, 106);
  EXPECT_EQ(c.step, 75);
  EXPECT_EQ(c.base, -2);
  const int codes[] = {2, 3, 3, 0}, decoded[] = {0, 75, 75, -127}, stage1[] = {-15, 44, 106, -119};
  for (int t = 0; t < 4; ++t) {
    EXPECT_EQ(c.Encode(stage1[t]), codes[t]);
    EXPECT_EQ(c.Decode(codes[t]), decoded[t]);
  }
  EXPECT_EQ((codes[3] + c.base) * c.step, -150) << "what the clamp is for";
}

FlashCodes RandomCodes(std::mt19937& random, float deviation, int n) {
  std::normal_distribution<float> normal(0, deviation);
  FlashCodes x;
  x.n = n;
  for (int i = 0; i < n; ++i) x.q[i] = int8_t(std::clamp(std::lround(normal(random)), -119L, 119L));
  return x;
}

template <int kBits, class Channel>
int SquaredError(const FlashCodes& x, const Channel& c) {
  int sum = 0;
  for (int i = 0; i < x.n; ++i) sum += int(std::pow(c.Decode(c.Encode(x.q[i])) - x.q[i], 2));
  return sum;
}

// Never worse than the bounds' own grid, rounded down or up, and at two bits far better; inside INT8 always.
template <int kBits>
void CheckSearch(double best_ratio) {
  std::mt19937 random(8);
  double searched = 0, bounds = 0;
  for (int i = 0; i < 300; ++i) {
    const FlashCodes x = RandomCodes(random, float(1 + i % 60), i % 3 == 0 ? 1 + i % 64 : 64);
    const auto c = FlashSearch<kBits>::Fit(x);
    const int error = SquaredError<kBits>(x, c), lo = x.Least(), hi = x.Greatest();
    const auto by_bounds = FlashChannel<kBits, false>::Fit(lo, hi);
    EXPECT_LE(error, SquaredError<kBits>(x, by_bounds));
    EXPECT_GE(c.step, 1);
    searched += error;
    bounds += SquaredError<kBits>(x, by_bounds);
  }
  EXPECT_LT(searched, best_ratio * bounds);
}
TEST(FlashQ, SearchBeatsTheBounds) {
  CheckSearch<4>(.90);
  CheckSearch<2>(.70);
}

// Over every pair of bounds of a channel of two values, and with a third between them.
TEST(FlashQ, SearchedChannelsStayInInt8) {
  FlashCodes x;
  x.n = 3;
  for (int lo = -119; lo <= 119; ++lo)
    for (int hi = lo; hi <= 119; hi += 1 + (hi - lo) / 16) {
      x.q[0] = int8_t(lo), x.q[1] = int8_t(hi), x.q[2] = int8_t((3 * lo + hi) / 4);
      const auto c4 = FlashSearch<4>::Fit(x);
      const auto c2 = FlashSearch<2>::Fit(x);
      for (int q = lo; q <= hi; ++q) {
        ASSERT_LE(std::abs(c4.Decode(c4.Encode(q))), 127) << lo << " " << hi;
        ASSERT_LE(std::abs(c2.Decode(c2.Encode(q))), 127) << lo << " " << hi;
      }
      ASSERT_TRUE(std::abs(c4.base) <= 127 && std::abs(c2.base) <= 127 && c4.step >= 1 && c2.step >= 1);
    }
}

TEST(FlashQ, TheOutlierIsKeptAndNarrowsTheRest) {
  using C = FlashQ2Outlier;
  const PageShape s{16, kPageTokens};
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  std::vector<float> rows(size_t(s.tokens * 16));
  for (float& v : rows) v = normal(random);
  rows[size_t(41 * 16 + 3)] = 30;
  rows[size_t(7 * 16 + 9)] = -28;
  const float scale = C::BlockScale(s, rows.data());
  const auto back = [&]<class Codec>() {
    std::vector<std::byte> page(size_t(Codec::PageBytes(s)));
    Codec::EncodePage(s, rows.data(), page.data());
    if (Codec::kKeepsOutlier) {
      EXPECT_EQ(page[size_t(Codec::OutlierOffset(s) + 3)], std::byte{41});
      EXPECT_EQ(page[size_t(Codec::OutlierOffset(s) + 9)], std::byte{7});
    }
    std::vector<float> out(rows.size());
    for (int t = 0; t < s.tokens; ++t) DecodeRow<Codec>(s, page.data(), t, &out[size_t(t * 16)]);
    return out;
  };
  const auto with = back.operator()<FlashQ2Outlier>(), without = back.operator()<FlashQ2Search>();
  EXPECT_LE(std::fabs(with[41 * 16 + 3] - 30), scale / 2 * 1.001f);
  EXPECT_LE(std::fabs(with[7 * 16 + 9] + 28), scale / 2 * 1.001f);
  double kept = 0, cut = 0;
  for (int t = 0; t < s.tokens; ++t) {
    const size_t at = size_t(t * 16 + 3);
    kept += std::pow(double(with[at] - rows[at]), 2);
    cut += std::pow(double(without[at] - rows[at]), 2);
  }
  EXPECT_LT(2 * kept, cut) << "what the outlier is kept for";
}

// The caps of stage 2, and half a code of stage 1, through whole pages.
template <class C>
void CheckErrorCap(int cap_of_bits) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  for (int head_dim : {8, 64, 80, 128, 256}) {
    const PageShape s{head_dim, kPageTokens};
    std::vector<float> rows(size_t(s.tokens * head_dim)), out = rows;
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = normal(random) * (i % 7 == 3 ? 20.0f : 1.0f);
    std::vector<std::byte> page(size_t(C::PageBytes(s)));
    C::EncodePage(s, rows.data(), page.data());
    for (int t = 0; t < s.tokens; ++t) DecodeRow<C>(s, page.data(), t, &out[size_t(t * head_dim)]);
    const float cap = (float(cap_of_bits) + .5f) * C::BlockScale(s, rows.data()) * 1.0001f;
    float worst = 0;
    for (size_t i = 0; i < rows.size(); ++i) worst = std::max(worst, std::fabs(out[i] - rows[i]));
    EXPECT_LE(worst, cap) << C::kBits << " bits, head_dim " << head_dim;
    EXPECT_GT(worst, cap / 10) << "a cap that says something";
  }
}
TEST(FlashQ, PagesKeepTheErrorCaps) {
  CheckErrorCap<FlashQ<4>>(14);
  CheckErrorCap<FlashQ<3>>(17);
  CheckErrorCap<FlashQ<2>>(39);
}

TEST(FlashQ, BrokenBlocksDecodeAsNan) {
  for (CodecId id : {CodecId::kFlashQ4, CodecId::kFlashQ2, CodecId::kFlashQ4Search, CodecId::kFlashQ2Search,
                     CodecId::kFlashQ2Literal, CodecId::kFlashQ2Outlier})
    for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      const CodecInfo& c = Get(id);
      std::vector<float> rows = BlockRows();
      rows[13] = bad;
      std::vector<std::byte> page(size_t(c.page_bytes(kShape)));
      c.encode_page(kShape, rows.data(), page.data());
      float out[8];
      c.decode8(kShape, page.data(), 2, 0, out);
      for (float x : out) EXPECT_TRUE(std::isnan(x));
    }
}

}  // namespace
}  // namespace nibble::kv
