// SPDX-License-Identifier: Apache-2.0
// TurboQuant: the quantizer's published distortions, the demo vector, norms, errors on every kind of row, and
// what the rotation is for: without it an outlier channel must be seen to cost.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "quant/kv/registry.h"

namespace nibble::kv {
namespace {

std::vector<float> RoundTrip(const CodecInfo& c, PageShape s, const std::vector<float>& rows) {
  std::vector<std::byte> page(size_t(c.page_bytes(s)));
  c.encode_page(s, rows.data(), page.data());
  std::vector<float> out(rows.size());
  for (int t = 0; t < s.tokens; ++t) c.decode_row(s, page.data(), t, &out[size_t(t * s.head_dim)]);
  return out;
}

std::vector<float> Normal(size_t n, uint32_t seed, float deviation = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> x(n);
  for (float& v : x) v = HalfToFloat(FloatToHalf(normal(random)));
  return x;
}

double Squares(const float* x, const float* y, int n) {
  double sum = 0;
  for (int i = 0; i < n; ++i) sum += std::pow(double(x[i]) - double(y ? y[i] : 0.0f), 2);
  return sum;
}

struct Rate {
  CodecId id;
  double distortion;  // of the Lloyd-Max quantizer: mean squared error a unit of variance
};
constexpr Rate kRates[] = {
    {CodecId::kTurboQuant4, .009501}, {CodecId::kTurboQuant3, .034548}, {CodecId::kTurboQuant2, .117482}};

// Distortion of a quantizer of the normal distribution, by integration, and the worst distance of a level
// from the mean of its cell: 0 for Lloyd-Max.
template <class Q>
std::pair<double, double> Integrate() {
  double distortion = 0, mass[16] = {}, moment[16] = {};
  constexpr double kStep = 1e-4;
  for (double y = -9 + kStep / 2; y < 9; y += kStep) {
    const double p = std::exp(-y * y / 2) / std::sqrt(2 * M_PI) * kStep;
    const int code = Q::Code(float(y));
    distortion += p * std::pow(y - double(Q::Level(code)), 2);
    mass[code] += p;
    moment[code] += p * y;
  }
  double worst = 0;
  for (int i = 0; i < 2 * Q::kHalf; ++i)
    worst = std::max(worst, std::fabs(moment[i] / mass[i] - double(Q::Level(i))));
  return {distortion, worst};
}

struct EqualSteps {  // the check must see that these levels are not the optimum
  static constexpr int kHalf = 2;
  static float Level(int code) { return float(code) - 1.5f; }
  static int Code(float y) { return std::clamp(int(std::floor(y)) + 2, 0, 3); }
};

TEST(TurboQuant, LevelsAreLloydMax) {
  EXPECT_NEAR(Integrate<LloydMax<4>>().first, .009501, 2e-6);
  EXPECT_NEAR(Integrate<LloydMax<3>>().first, .034548, 2e-6);
  EXPECT_NEAR(Integrate<LloydMax<2>>().first, .117482, 2e-6);
  EXPECT_LT(Integrate<LloydMax<4>>().second, 1e-4);
  EXPECT_LT(Integrate<LloydMax<3>>().second, 1e-4);
  EXPECT_LT(Integrate<LloydMax<2>>().second, 1e-4);
  EXPECT_GT(Integrate<EqualSteps>().second, .01);
}

TEST(TurboQuant, CodesSplitAtTheMidpoints) {
  const float boundaries[] = {.2582217f,  .5224037f,  .7995498f, 1.0992858f,
                              1.4371388f, 1.8435318f, 2.4008034f};
  for (int i = 0; i < 7; ++i) {
    EXPECT_EQ(LloydMax<4>::Code(boundaries[i] - 1e-5f), 8 + i);
    EXPECT_EQ(LloydMax<4>::Code(boundaries[i] + 1e-5f), 9 + i);
    EXPECT_EQ(LloydMax<4>::Code(-boundaries[i] - 1e-5f), 6 - i);
  }
  EXPECT_EQ(LloydMax<2>::Code(0), 2) << "a tie goes up";
}

// x = [.45 -.12 .75 .6], two bits, rotated by H4 / 2 without signs.
TEST(TurboQuant, DemoVector) {
  const float x[4] = {.45f, -.12f, .75f, .6f}, want_y[4] = {.786939f, .337260f, -.477785f, .196735f};
  const int want_code[4] = {3, 2, 1, 2};
  const float plain[4] = {.523892f, .040583f, .523892f, .523892f},
              corrected[4] = {.615664f, .047692f, .615664f, .615664f};
  const double norm = std::sqrt(Squares(x, nullptr, 4));
  EXPECT_NEAR(norm, 1.0674268, 1e-6);
  float y[4], levels[4];
  std::copy(x, x + 4, y);
  WalshHadamard(y, 4);
  for (int i = 0; i < 4; ++i) {
    EXPECT_NEAR(double(y[i]) / 2 / norm, double(want_y[i]), 1e-6);
    const int code = LloydMax<2>::Code(float(double(y[i]) / norm));  // times sqrt(4) / 2
    EXPECT_EQ(code, want_code[i]);
    levels[i] = LloydMax<2>::Level(code);
  }
  const double level_norm = std::sqrt(Squares(levels, nullptr, 4));
  WalshHadamard(levels, 4);
  for (int i = 0; i < 4; ++i) {
    EXPECT_NEAR(double(levels[i]) / 2 * norm / 2, double(plain[i]), 1e-6);
    EXPECT_NEAR(double(levels[i]) / 2 * norm / level_norm, double(corrected[i]), 1e-6);
  }
}

TEST(TurboQuant, DecodedRowsKeepTheNorm) {
  for (const Rate& rate : kRates)
    for (int head_dim : {8, 64, 80, 96, 128, 1024}) {
      const PageShape s{head_dim, kPageTokens};
      const auto rows = Normal(size_t(s.tokens * head_dim), 3, 20);
      const auto back = RoundTrip(Get(rate.id), s, rows);
      for (int t = 0; t < s.tokens; ++t) {
        const size_t at = size_t(t * head_dim);
        const double want = Squares(&rows[at], nullptr, head_dim),
                     got = Squares(&back[at], nullptr, head_dim);
        ASSERT_NEAR(std::sqrt(got / want), 1, 6e-4) << Get(rate.id).name << " " << head_dim;
      }
    }
}

// Whatever the channels are like, the relative error is that of the normal distribution. With the norm kept
// it is 2 - 2 sqrt(1 - D), a little above D.
TEST(TurboQuant, ErrorIsThatOfTheQuantizer) {
  for (const Rate& rate : kRates)
    for (int kind = 0; kind < 3; ++kind) {
      const PageShape s{128, kPageTokens};
      auto rows = Normal(size_t(s.tokens * 128), 11);
      for (int t = 0; t < s.tokens; ++t) {
        if (kind == 1) rows[size_t(t * 128 + 17)] += 60;
        for (int d = 0; kind == 2 && d < 128; ++d) rows[size_t(t * 128 + d)] += 5;
      }
      const auto back = RoundTrip(Get(rate.id), s, rows);
      const int n = s.tokens * 128;
      const double error = Squares(rows.data(), back.data(), n) / Squares(rows.data(), nullptr, n);
      // An outlier of 60 among ones is +-5.3 in every rotated channel: all on two levels, not normal at all.
      const double cap = kind == 1 ? 3.5 : 1.5;
      EXPECT_LT(error, cap * (2 - 2 * std::sqrt(1 - rate.distortion)))
          << Get(rate.id).name << " kind " << kind;
      if (kind == 0) {
        EXPECT_GT(error, .85 * rate.distortion);
      }
    }
}

TEST(TurboQuant, AnOutlierChannelRuinsTheUnrotatedRow) {
  float x[128] = {};
  const auto noise = Normal(128, 5);
  std::copy(noise.begin(), noise.end(), x);
  x[17] = 30;
  const double norm = std::sqrt(Squares(x, nullptr, 128));
  float unrotated[128], levels_norm = 0;
  for (int i = 0; i < 128; ++i) {
    unrotated[i] = LloydMax<4>::Level(LloydMax<4>::Code(float(double(x[i]) * std::sqrt(128.0) / norm)));
    levels_norm += unrotated[i] * unrotated[i];
  }
  for (float& v : unrotated) v *= float(norm) / std::sqrt(levels_norm);
  const auto rotated = RoundTrip(Get(CodecId::kTurboQuant4), {128, 1}, std::vector<float>(x, x + 128));
  EXPECT_GT(Squares(x, unrotated, 128), 4 * Squares(x, rotated.data(), 128));
}

TEST(TurboQuant, ZeroTinyAndGreatestRows) {
  for (const Rate& rate : kRates)
    for (int head_dim : {8, 80, 128, 1024}) {
      const PageShape s{head_dim, 1};
      const auto zero = RoundTrip(Get(rate.id), s, std::vector<float>(size_t(head_dim), 0.0f));
      for (float v : zero) EXPECT_EQ(v, 0);
      for (float size : {65504.0f, 1.0f, 1e-4f}) {
        std::vector<float> one_hot(size_t(head_dim), 0.0f), hadamard_row = one_hot;
        one_hot[5] = size;
        for (int i = 0; i < head_dim; ++i) hadamard_row[size_t(i)] = RotationSign(i) * size;
        for (const auto& x : {one_hot, hadamard_row, std::vector<float>(size_t(head_dim), size)}) {
          const auto back = RoundTrip(Get(rate.id), s, x);
          for (float v : back) ASSERT_TRUE(std::isfinite(v)) << Get(rate.id).name << head_dim << " " << size;
          // No vector of the right norm is farther than two norms.
          EXPECT_LT(Squares(x.data(), back.data(), head_dim), 2.1 * Squares(x.data(), nullptr, head_dim));
        }
      }
    }
}

TEST(TurboQuant, BrokenRowsAreNanAndAlone) {
  for (const Rate& rate : kRates)
    for (float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), -70000.0f}) {
      const PageShape s{64, 3};
      auto rows = Normal(64 * 3, 9);
      const auto good = RoundTrip(Get(rate.id), s, rows);
      rows[64 + 13] = bad;
      const auto back = RoundTrip(Get(rate.id), s, rows);
      for (size_t i = 0; i < 64; ++i) {
        EXPECT_TRUE(std::isnan(back[64 + i]));
        EXPECT_EQ(back[i], good[i]);
        EXPECT_EQ(back[128 + i], good[128 + i]);
      }
    }
}

}  // namespace
}  // namespace nibble::kv
