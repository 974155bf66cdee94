// SPDX-License-Identifier: Apache-2.0
// nvfp4: a page by hand, error bounds over sizes and shapes, zeros, blocks far below the page's greatest,
// broken pages. mxfp4's blocks of 32 must be seen to lose more.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "quant/kv/nvfp4.h"

namespace nibble::kv {
namespace {

template <class C>
std::vector<std::byte> Encode(PageShape s, const std::vector<float>& rows) {
  std::vector<std::byte> page(size_t(C::PageBytes(s)));
  C::EncodePage(s, rows.data(), page.data());
  return page;
}

template <class C>
std::vector<float> Decode(PageShape s, const std::vector<std::byte>& page) {
  std::vector<float> out(size_t(s.tokens * s.head_dim));
  for (int t = 0; t < s.tokens; ++t) DecodeRow<C>(s, page.data(), t, &out[size_t(t * s.head_dim)]);
  return out;
}

// Greatest 2688 = 6 * 448: page scale 1. The blocks' greatest are 2688 and 6: scales 448 (0x7E) and 1 (0x38).
TEST(Nvfp4, APageByHand) {
  const PageShape s{24, 1};
  std::vector<float> rows(24, 0.0f);
  rows[0] = 2688, rows[1] = -896, rows[2] = 111, rows[3] = 113;  // 6, -2, 0.2478 -> 0, 0.2522 -> 0.5
  rows[16] = 6, rows[17] = -5, rows[18] = 0.75f, rows[19] = 1.3f;
  const auto page = Encode<Nvfp4>(s, rows);
  ASSERT_EQ(page.size(), 20u);
  const uint8_t want[] = {0xC7, 0x10, 0, 0, 0, 0, 0, 0, 0xE7, 0x32, 0, 0, 0x7E, 0x38, 0, 0, 0, 0, 0x80, 0x3F};
  for (size_t i = 0; i < 20; ++i) EXPECT_EQ(page[i], std::byte(want[i])) << i;
  const auto got = Decode<Nvfp4>(s, page);
  EXPECT_EQ(got[0], 2688);
  EXPECT_EQ(got[1], -896);
  EXPECT_EQ(got[3], 224);
  EXPECT_EQ(got[17], -4);
  EXPECT_EQ(got[19], 1.5f);
}

std::vector<float> Normal(PageShape s, float size, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> rows(size_t(s.tokens * s.head_dim));
  for (float& x : rows) x = HalfToFloat(FloatToHalf(normal(random) * size));
  return rows;
}

double SquaredError(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (double(a[i]) - b[i]) * (double(a[i]) - b[i]);
  return sum;
}

// Half a step of at most 2 units, the unit a sixth of the block's greatest and 1/16 for the scale's own
// rounding.
TEST(Nvfp4, ErrorsStayWithinHalfAStep) {
  for (const float size : {1.0f, 3e-4f, 9000.0f})
    for (const int head_dim : {8, 64, 80, 128}) {
      const PageShape s{head_dim, kPageTokens};
      const auto rows = Normal(s, size, 5);
      const auto got = Decode<Nvfp4>(s, Encode<Nvfp4>(s, rows));
      for (size_t i = 0; i < rows.size(); ++i) {
        const size_t row = i / size_t(head_dim) * size_t(head_dim), first = row + (i - row) / 16 * 16;
        double amax = 0;
        for (size_t j = first; j < std::min(first + 16, row + size_t(head_dim)); ++j)
          amax = std::max(amax, std::fabs(double(rows[j])));
        ASSERT_LE(std::fabs(double(got[i]) - rows[i]), amax / 6 * (17.0 / 16) * (1 + 1e-6)) << head_dim;
      }
      const double coarse = SquaredError(rows, Decode<Mxfp4>(s, Encode<Mxfp4>(s, rows)));
      EXPECT_LT(SquaredError(rows, got), head_dim > 16 ? 0.9 * coarse : coarse) << head_dim;
    }
}

// A block a million times smaller than the page's greatest has no scale left and decodes as zeros.
TEST(Nvfp4, ZerosAndSmallBlocks) {
  const PageShape s{32, 1};
  std::vector<float> rows(32, 0.0f);
  EXPECT_EQ(Decode<Nvfp4>(s, Encode<Nvfp4>(s, rows)), rows);
  rows[0] = 60000, rows[20] = 0.01f;
  const auto got = Decode<Nvfp4>(s, Encode<Nvfp4>(s, rows));
  EXPECT_NEAR(got[0], 60000, 1);
  EXPECT_EQ(got[20], 0);
}

TEST(Nvfp4, BrokenPagesStayVisible) {
  const PageShape s{16, 2};
  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    std::vector<float> rows(32, 1.0f);
    rows[7] = bad;
    for (const float x : Decode<Nvfp4>(s, Encode<Nvfp4>(s, rows))) EXPECT_TRUE(std::isnan(x));
  }
}

}  // namespace
}  // namespace nibble::kv
