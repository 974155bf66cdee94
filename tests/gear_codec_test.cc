// SPDX-License-Identifier: Apache-2.0
// GEAR: the paper's chain on a hand-checked block, what each of its parts is good for, exact outliers, pages
// that are broken or constant. A rank too low and a start of zeros must be seen to lose.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "quant/kv/registry.h"

namespace nibble::kv {
namespace {

constexpr CodecId kSparse[] = {CodecId::kGear4Channel, CodecId::kGear4Group, CodecId::kGear2Channel,
                               CodecId::kGear2Group};
constexpr CodecId kPlain[] = {CodecId::kGearL4Channel, CodecId::kGearL4Group, CodecId::kGearL2Channel,
                              CodecId::kGearL2Group};

std::vector<float> RoundTrip(CodecId id, PageShape s, const std::vector<float>& rows) {
  const CodecInfo& c = Get(id);
  std::vector<std::byte> page(size_t(c.page_bytes(s)));
  c.encode_page(s, rows.data(), page.data());
  std::vector<float> out(rows.size());
  for (int t = 0; t < s.tokens; ++t) c.decode_row(s, page.data(), t, &out[size_t(t * s.head_dim)]);
  return out;
}

std::vector<float> Normal(size_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(n);
  for (float& v : x) v = HalfToFloat(FloatToHalf(normal(random)));
  return x;
}

double Distance(const std::vector<float>& x, const std::vector<float>& y) {
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) sum += std::pow(double(x[i]) - double(y[i]), 2);
  return std::sqrt(sum);
}

struct Matrix {  // a residual given outright
  PageShape s;
  std::vector<float> x;
  void Row(int token, float* out) const { std::copy_n(&x[size_t(token * s.head_dim)], s.head_dim, out); }
};

template <int kRank>
double LeftOver(const Matrix& e, const std::vector<float>& start) {
  LowRank<kRank> f;
  std::copy(start.begin(), start.end(), f.p);
  f.Fit(e.s, e);
  std::vector<float> approximation(e.x.size());
  for (int t = 0; t < e.s.tokens; ++t)
    for (int d = 0; d < e.s.head_dim; ++d)
      for (int r = 0; r < kRank; ++r)
        approximation[size_t(t * e.s.head_dim + d)] += f.q[r * e.s.tokens + t] * f.p[r * e.s.head_dim + d];
  return Distance(e.x, approximation);
}

// KIVI-2 by channel on four tokens of four channels leaves .343770; rank 1 after three rounds .190298.
TEST(Gear, PowerIterationVector) {
  constexpr float kBlock[4][4] = {{.45f, -.12f, .75f, .6f},
                                  {-.55f, .35f, -.2f, -.65f},
                                  {.75f, .85f, .1f, -.15f},
                                  {-.05f, -.95f, .8f, .45f}};
  const PageShape s{8, 4};
  std::vector<float> rows(32, 0.0f);
  for (size_t t = 0; t < 4; ++t)
    for (size_t d = 0; d < 4; ++d) rows[t * 8 + d] = kBlock[t][d];
  const auto quantized = RoundTrip(CodecId::kInt2Channel, s, rows);
  Matrix e{s, rows};
  for (size_t i = 0; i < rows.size(); ++i) e.x[i] -= quantized[i];
  EXPECT_NEAR(Distance(rows, quantized), .343770, 3e-4);  // f16 scales
  EXPECT_NEAR(LeftOver<1>(e, {1, .5f, .25f, .125f, 0, 0, 0, 0}), .190298, 3e-4);
  EXPECT_NEAR(LeftOver<1>(e, std::vector<float>(8, 0.0f)), .343770, 3e-4) << "nothing comes of nothing";
}

TEST(Gear, LowRankMatricesAreFoundAtTheirRank) {
  const PageShape s{80, kPageTokens};
  const auto a = Normal(2 * 64, 1), b = Normal(2 * 80, 2), start = Normal(2 * 80, 3);
  Matrix e{s, std::vector<float>(size_t(64 * 80))};
  for (size_t t = 0; t < 64; ++t)
    for (size_t d = 0; d < 80; ++d) e.x[t * 80 + d] = a[t] * b[d] + .5f * a[64 + t] * b[80 + d];
  const double norm = Distance(e.x, std::vector<float>(e.x.size(), 0.0f));
  EXPECT_LT(LeftOver<2>(e, start), 1e-4 * norm);
  EXPECT_GT(LeftOver<1>(e, start), .2 * norm) << "rank 1 must not do";
  for (size_t i = 0; i < e.x.size(); ++i) e.x[i] = a[i / 80] * b[i % 80];
  EXPECT_LT(LeftOver<2>(e, start), 1e-4 * norm) << "a second direction of pure rounding";
  e.x.assign(e.x.size(), 0.0f);
  EXPECT_EQ(LeftOver<2>(e, start), 0);
}

template <class C>
void CheckTheLowRankPart(PageShape s) {
  const auto rows = Normal(size_t(s.tokens * s.head_dim), 12);
  std::vector<std::byte> page(size_t(C::PageBytes(s)));
  C::EncodePage(s, rows.data(), page.data());
  std::vector<float> with(rows.size()), without = with;
  for (int t = 0; t < s.tokens; ++t) {
    DecodeRow<C>(s, page.data(), t, &with[size_t(t * s.head_dim)]);
    DecodeRow<typename C::Quantized>(s, page.data(), t, &without[size_t(t * s.head_dim)]);
  }
  EXPECT_LT(Distance(rows, with), .97 * Distance(rows, without)) << C::kName << " " << s.head_dim;
}
TEST(Gear, TheLowRankPartHelpsEvenOnNoise) {
  for (int head_dim : {8, 64, 80, 128}) {
    CheckTheLowRankPart<GearL4Channel>({head_dim, kPageTokens});
    CheckTheLowRankPart<GearL4Group>({head_dim, kPageTokens});
    CheckTheLowRankPart<GearL2Channel>({head_dim, kPageTokens});
    CheckTheLowRankPart<GearL2Group>({head_dim, kPageTokens});
  }
}

TEST(Gear, OutliersComeBackExactly) {
  const PageShape s{128, kPageTokens};
  auto rows = Normal(64 * 128, 5);
  const std::pair<size_t, float> outliers[] = {
      {9 * 128 + 4, 900}, {31 * 128 + 77, -512}, {63 * 128 + 127, 63}};
  for (const auto& [at, value] : outliers) rows[at] = value;
  for (size_t i = 0; i < 4; ++i) {
    const auto sparse = RoundTrip(kSparse[i], s, rows), plain = RoundTrip(kPlain[i], s, rows);
    for (const auto& [at, value] : outliers) EXPECT_EQ(sparse[at], value) << Get(kSparse[i]).name;
    EXPECT_LT(1.1 * Distance(rows, sparse), Distance(rows, plain)) << "what outliers are kept for";
  }
}

// u16 places, beyond 256 channels.
TEST(Gear, WideHeadsKeepTheirOutliers) {
  const PageShape s{1024, kPageTokens};
  auto rows = Normal(64 * 1024, 5);
  rows[17 * 1024 + 1001] = 777;
  EXPECT_EQ(RoundTrip(CodecId::kGear4Group, s, rows)[17 * 1024 + 1001], 777);
  EXPECT_EQ(RoundTrip(CodecId::kGear2Group, s, rows)[17 * 1024 + 1001], 777);
}

TEST(Gear, ConstantZeroAndShortPages) {
  for (const auto& ids : {kSparse, kPlain})
    for (size_t i = 0; i < 4; ++i) {
      for (float value : {0.0f, 1.5f, -65504.0f})
        for (int tokens : {1, 2, 3, 64}) {
          const std::vector<float> rows(size_t(tokens * 16), value);
          EXPECT_EQ(RoundTrip(ids[i], {16, tokens}, rows), rows) << Get(ids[i]).name << " " << value;
        }
      std::vector<float> greatest(64 * 16);
      for (size_t j = 0; j < greatest.size(); ++j) greatest[j] = j * j % 7 < 3 ? 65504.0f : -65504.0f;
      for (float v : RoundTrip(ids[i], {16, 64}, greatest)) EXPECT_LT(std::fabs(v), 2e5f);  // and not NaN
    }
}

// Only the line of the broken value is NaN, outliers included; the rest is a function of the rest alone.
TEST(Gear, BrokenLinesAreNanAndAlone) {
  const PageShape s{64, kPageTokens};
  for (const auto& ids : {kSparse, kPlain})
    for (size_t i = 0; i < 4; ++i)
      for (float bad :
           {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 70000.0f}) {
        const bool by_channel = i % 2 == 0;
        auto rows = Normal(64 * 64, 6);
        rows[20 * 64 + 30] = bad;
        const auto back = RoundTrip(ids[i], s, rows);
        for (size_t t = 0; t < 64; ++t)
          for (size_t d = 0; d < 64; ++d) {
            const bool on_line = by_channel ? d == 30 : t == 20;
            ASSERT_EQ(std::isnan(back[t * 64 + d]), on_line) << Get(ids[i]).name << " " << t << " " << d;
            if (!on_line) {
              ASSERT_LT(std::fabs(back[t * 64 + d] - rows[t * 64 + d]), 1.6f);
            }
          }
      }
}

TEST(Gear, BytesAreHonest) {
  const PageShape s{128, 64};
  EXPECT_EQ(Gear4Channel::Outliers(s), 2) << "2% of 64 tokens, at least one each side";
  EXPECT_EQ(Gear4Group::Outliers({1024, 64}), 20);
  EXPECT_EQ(Gear4Channel::PageBytes(s), 4096 + 128 * 4 + 4 * (64 + 128) + 128 * 2 * 3);
  EXPECT_EQ(GearL2Group::PageBytes(s), 2048 + 64 * 2 * 4 + 4 * (64 + 128));
  EXPECT_EQ(Gear2Group::PageBytes({320, 64}), 64 * 80 + 64 * 5 * 4 + 4 * (64 + 320) + 64 * 6 * 4);
}

}  // namespace
}  // namespace nibble::kv
