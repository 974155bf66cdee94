// SPDX-License-Identifier: Apache-2.0
// mxfp4: E2M1 over all codes and ties, block scales, a page by hand, short blocks, broken blocks. Scales that
// do not follow the greatest value of a block must be seen to break the bound.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "quant/kv/mxfp4.h"

namespace nibble::kv {
namespace {

constexpr double kValues[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};

TEST(Mxfp4, EveryCodeIsItsValueAndComesBack) {
  for (int code = 0; code < 16; ++code) {
    const double want = (code & 8) != 0 ? -kValues[code & 7] : kValues[code & 7];
    EXPECT_EQ(double(E2m1ToFloat(code)), want) << code;
    if (code != 8) {
      EXPECT_EQ(FloatToE2m1(E2m1ToFloat(code)), code);  // -0 becomes +0
    }
  }
}

TEST(Mxfp4, RoundsToNearestEvenAndSaturates) {
  for (int code = 0; code < 7; ++code) {
    const auto tie = float((kValues[code] + kValues[code + 1]) / 2);
    EXPECT_EQ(FloatToE2m1(tie), code + (code & 1)) << code;
    EXPECT_EQ(FloatToE2m1(-tie), 8 | (code + (code & 1))) << code;
    EXPECT_EQ(FloatToE2m1(std::nextafter(tie, 0.0f)), code);
    EXPECT_EQ(FloatToE2m1(std::nextafter(-tie, -9.0f)), 8 | (code + 1));
  }
  EXPECT_EQ(FloatToE2m1(7.99f), 7);
  EXPECT_EQ(FloatToE2m1(-1e30f), 15);
}

std::vector<std::byte> Encode(PageShape s, const std::vector<float>& rows) {
  std::vector<std::byte> page(size_t(Mxfp4::PageBytes(s)));
  Mxfp4::EncodePage(s, rows.data(), page.data());
  return page;
}

std::vector<float> Decode(PageShape s, const std::vector<std::byte>& page) {
  std::vector<float> out(size_t(s.tokens * s.head_dim));
  for (int t = 0; t < s.tokens; ++t) DecodeRow<Mxfp4>(s, page.data(), t, &out[size_t(t * s.head_dim)]);
  return out;
}

// Greatest 5 lies in [4, 8): scale 2^0. 0.25 is a tie and goes to 0, 2.5 to 2, 5 to 4.
TEST(Mxfp4, APageByHand) {
  const PageShape s{8, 1};
  const auto page = Encode(s, {5, -2.5f, 0.25f, 0.3f, 0, -6.5f, 1, 3.4f});
  const uint8_t want[] = {0xC6, 0x10, 0xF0, 0x52, 127, 0, 0, 0};
  ASSERT_EQ(page.size(), 8u);
  for (size_t i = 0; i < 8; ++i) EXPECT_EQ(page[i], std::byte(want[i])) << i;
  EXPECT_EQ(Decode(s, page), (std::vector<float>{4, -2, 0, 0.5f, 0, -6, 1, 3}));
}

// Half a step, relative to a bound: a fifth of the value, a quarter of one that saturated (8 becomes 6), a
// quarter of the scale where steps are half of it.
double WorstShareOfBound(PageShape s, const std::vector<float>& rows, const std::vector<float>& got) {
  double worst = 0;
  for (int t = 0; t < s.tokens; ++t)
    for (int d = 0; d < s.head_dim; ++d) {
      const int first = d / 32 * 32, end = std::min(first + 32, s.head_dim);
      double amax = 0;
      for (int i = first; i < end; ++i)
        amax = std::max(amax, double(std::fabs(rows[size_t(t * s.head_dim + i)])));
      const double scale = std::exp2(std::floor(std::log2(amax)) - 2);
      const size_t i = size_t(t * s.head_dim + d);
      const double x = std::fabs(double(rows[i]));
      const double bound = std::max(x > 6 * scale ? x / 4 : x / 5, scale / 4);
      worst = std::max(worst, std::fabs(double(got[i]) - rows[i]) / bound);
    }
  return worst;
}

TEST(Mxfp4, ErrorsStayWithinHalfAStep) {
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  for (const float size : {1.0f, 3e-4f, 9000.0f})
    for (const int head_dim : {8, 64, 80, 128}) {
      const PageShape s{head_dim, kPageTokens};
      std::vector<float> rows(size_t(s.tokens * head_dim));
      for (float& x : rows) x = HalfToFloat(FloatToHalf(normal(random) * size));
      auto page = Encode(s, rows);
      EXPECT_LE(WorstShareOfBound(s, rows, Decode(s, page)), 1) << head_dim;
      page[size_t(Mxfp4::ScaleOffset(s))] = std::byte(int(page[size_t(Mxfp4::ScaleOffset(s))]) - 1);
      EXPECT_GT(WorstShareOfBound(s, rows, Decode(s, page)), 1) << "a scale too small must be seen";
    }
}

TEST(Mxfp4, ZerosAndBrokenBlocks) {
  const PageShape s{40, 2};
  std::vector<float> rows(80, 1.0f);
  for (int i = 0; i < 32; ++i) rows[size_t(i)] = 0;
  rows[35] = std::numeric_limits<float>::infinity();
  rows[70] = std::numeric_limits<float>::quiet_NaN();
  const auto got = Decode(s, Encode(s, rows));
  for (int i = 0; i < 80; ++i) {
    const bool broken = i >= 32 && i < 72;
    EXPECT_EQ(std::isnan(got[size_t(i)]), broken) << i;
    if (!broken) {
      EXPECT_EQ(got[size_t(i)], rows[size_t(i)]) << i;
    }
  }
}

}  // namespace
}  // namespace nibble::kv
