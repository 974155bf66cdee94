// SPDX-License-Identifier: Apache-2.0
// KIVI's codecs: the paper's vector for keys by channel, error bounds in both directions, and what each
// direction is good for: an outlier channel ruins its neighbours by token and not by channel.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "quant/kv/registry.h"

namespace nibble::kv {
namespace {

std::vector<float> RoundTrip(CodecId id, PageShape s, const std::vector<float>& rows) {
  const CodecInfo& c = Get(id);
  std::vector<std::byte> page(size_t(c.page_bytes(s)));
  c.encode_page(s, rows.data(), page.data());
  std::vector<float> out(rows.size());
  for (int t = 0; t < s.tokens; ++t)
    for (int d = 0; d < s.head_dim; d += 8) c.decode8(s, page.data(), t, d, &out[size_t(t * s.head_dim + d)]);
  return out;
}

std::vector<float> Normal(PageShape s, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> rows(size_t(s.tokens * s.head_dim));
  for (float& x : rows) x = HalfToFloat(FloatToHalf(normal(random)));
  return rows;
}

double RelativeError(const std::vector<float>& x, const std::vector<float>& y) {
  double num = 0, den = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    num += std::pow(double(x[i]) - double(y[i]), 2);
    den += double(x[i]) * double(x[i]);
  }
  return std::sqrt(num / den);
}

TEST(Kivi, TwoBitChannelVector) {
  constexpr float kBlock[4][4] = {{.45f, -.12f, .75f, .6f},
                                  {-.55f, .35f, -.2f, -.65f},
                                  {.75f, .85f, .1f, -.15f},
                                  {-.05f, -.95f, .8f, .45f}};
  constexpr int kCodes[4][4] = {{2, 1, 3, 3}, {0, 2, 0, 0}, {3, 3, 1, 1}, {1, 0, 3, 3}};  // [token][channel]
  constexpr float kMin[] = {-.55f, -.95f, -.2f, -.65f}, kScale[] = {.433333f, .6f, .333333f, .416667f};
  const PageShape s{8, 4};
  std::vector<float> rows(32, 0.0f);
  for (size_t t = 0; t < 4; ++t)
    for (size_t d = 0; d < 4; ++d) rows[t * 8 + d] = kBlock[t][d];
  std::vector<std::byte> page(size_t(Int2Channel::PageBytes(s)));
  Int2Channel::EncodePage(s, rows.data(), page.data());
  for (size_t d = 0; d < 4; ++d) {
    EXPECT_NEAR(HalfToFloat(LoadU16(&page[size_t(Int2Channel::ScaleOffset(s)) + 2 * d])), kScale[d], 3e-4);
    EXPECT_NEAR(HalfToFloat(LoadU16(&page[size_t(Int2Channel::MinOffset(s)) + 2 * d])), kMin[d], 3e-4);
    for (size_t t = 0; t < 4; ++t)
      EXPECT_EQ(int(page[t * 2 + d / 4]) >> (2 * (d % 4)) & 3, kCodes[t][d]) << t << d;
  }
}

TEST(Kivi, ErrorIsAtMostHalfAStepOfItsGroup) {
  for (int head_dim : {8, 40, 64, 80, 128}) {
    const PageShape s{head_dim, kPageTokens};
    const auto rows = Normal(s, uint32_t(head_dim));
    for (const auto& [id, levels, by_channel] :
         {std::tuple{CodecId::kInt4Channel, 15, true}, std::tuple{CodecId::kInt2Channel, 3, true},
          std::tuple{CodecId::kInt4Group, 15, false}, std::tuple{CodecId::kInt2Group, 3, false}}) {
      const auto back = RoundTrip(id, s, rows);
      for (int t = 0; t < s.tokens; ++t)
        for (int d = 0; d < head_dim; ++d) {
          float lo = INFINITY, hi = -INFINITY;  // of the group of (t, d)
          for (int i = 0; i < kKiviGroup; ++i) {
            const int tt = by_channel ? t / 32 * 32 + i : t, dd = by_channel ? d : d / 32 * 32 + i;
            if (dd >= head_dim) continue;
            lo = std::min(lo, rows[size_t(tt * head_dim + dd)]);
            hi = std::max(hi, rows[size_t(tt * head_dim + dd)]);
          }
          const size_t at = size_t(t * head_dim + d);
          ASSERT_LE(std::fabs(back[at] - rows[at]), (hi - lo) / float(levels) * 0.502f + 1e-6f)
              << Get(id).name;
        }
    }
  }
}

TEST(Kivi, AnOutlierChannelIsCheapByChannelOnly) {
  const PageShape s{128, kPageTokens};
  auto rows = Normal(s, 3);
  for (int t = 0; t < s.tokens; ++t) rows[size_t(t * 128 + 17)] += 60.0f;
  std::vector<float> rest = rows;
  const auto ordinary = [&](CodecId id) {  // error of all other channels
    auto back = RoundTrip(id, s, rows);
    for (int t = 0; t < s.tokens; ++t) rest[size_t(t * 128 + 17)] = back[size_t(t * 128 + 17)] = 0;
    return RelativeError(rest, back);
  };
  EXPECT_LT(ordinary(CodecId::kInt4Channel), 0.1);
  EXPECT_LT(ordinary(CodecId::kInt4Group), 0.7);  // one group of four is ruined
  EXPECT_GT(ordinary(CodecId::kInt4Group), 4 * ordinary(CodecId::kInt4Channel));
  EXPECT_GT(ordinary(CodecId::kInt4Token), 8 * ordinary(CodecId::kInt4Channel));  // all of them
}

}  // namespace
}  // namespace nibble::kv
