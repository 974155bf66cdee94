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
  const Extremes int4 = Sweep<4>(), int2 = Sweep<2>();
  EXPECT_EQ(int4.least, -121);  // rounding ties away from zero instead of to even would give 126
  EXPECT_EQ(int4.greatest, 121);
  EXPECT_EQ(int4.worst_error, 14);
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

TEST(FlashQ, PagesKeepTheErrorCaps) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  for (CodecId id : {CodecId::kFlashQ4, CodecId::kFlashQ2})
    for (int head_dim : {8, 64, 80, 128, 256}) {
      const CodecInfo& c = Get(id);
      const PageShape s{head_dim, kPageTokens};
      std::vector<float> rows(size_t(s.tokens * head_dim));
      for (size_t i = 0; i < rows.size(); ++i) rows[i] = normal(random) * (i % 7 == 3 ? 20.0f : 1.0f);
      std::vector<std::byte> page(size_t(c.page_bytes(s)));
      c.encode_page(s, rows.data(), page.data());
      const float scale = FlashQ<4>::BlockScale(s, rows.data());
      const float cap = (id == CodecId::kFlashQ4 ? 14.5f : 39.5f) * scale * 1.0001f;
      float out[8];
      for (int t = 0; t < s.tokens; ++t)
        for (int d = 0; d < head_dim; d += 8) {
          c.decode8(s, page.data(), t, d, out);
          for (int i = 0; i < 8; ++i)
            ASSERT_LE(std::fabs(out[i] - rows[size_t(t * head_dim + d + i)]), cap) << c.name;
        }
    }
}

TEST(FlashQ, BrokenBlocksDecodeAsNan) {
  for (CodecId id : {CodecId::kFlashQ4, CodecId::kFlashQ2})
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
