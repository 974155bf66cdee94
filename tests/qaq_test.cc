// SPDX-License-Identifier: Apache-2.0
// QAQ: bounds, bits, outliers and the midpoint quantizer against their vectors; pages against a scalar truth;
// planes that are dropped and brought back; the arena.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <set>
#include <vector>

#include "backend/qaq_pages.h"
#include "cache/qaq_storage.h"
#include "quant/kv/qaq_rules.h"

namespace nibble {
namespace {

using kv::QaqRule;

TEST(QaqRules, Bounds) {
  EXPECT_NEAR(kv::QaqValueSigma(9, .3, .01), .0111111, 1e-6);
  EXPECT_NEAR(kv::QaqValueSigma(9, .2, .01), .0166667, 1e-6);
  EXPECT_NEAR(kv::QaqValueSigma(9, .15, .01), .0222222, 1e-6);
  EXPECT_NEAR(kv::QaqKeySigma(9, 1000, .01), .00301185, 1e-8);
  EXPECT_EQ(kv::QaqKeySigma(1, 1000, .01), 0);
}

TEST(QaqRules, Bits) {
  struct Case {
    double sigma, attention;
    int paper, code;
  };
  const Case values[] = {{.01, .5, 11, 10}, {.01, .1, 9, 8}, {.01, .01, 6, 5}, {.1, .1, 6, 5}, {1, .5, 5, 4},
                         {1, .1, 2, 2},     {1, .01, 0, 1},  {3, .5, 3, 3},    {10, .5, 1, 1}};
  for (const Case& c : values) {
    const double need = 4 / kv::QaqValueSigma(1024, c.attention, c.sigma);
    EXPECT_EQ(kv::QaqBits(need, QaqRule::kPaper, 0, 16), c.paper) << c.sigma << " " << c.attention;
    EXPECT_EQ(kv::QaqBits(need, QaqRule::kCode, 0, 16), c.code) << c.sigma << " " << c.attention;
    EXPECT_EQ(kv::QaqBits(need, QaqRule::kPaper, 1, 4), std::clamp(c.paper, 1, 4));
  }
  const Case keys[] = {{.001, .048910, 6, 5}, {.01, .124674, 5, 4}, {1, .214972, 4, 3}, {30, .262465, 4, 3}};
  for (const Case& c : keys) {
    const double sigma = kv::QaqKeySigma(1024, 300, c.sigma);
    EXPECT_NEAR(sigma, c.attention, 1e-6);
    EXPECT_EQ(kv::QaqBits(8 / sigma, QaqRule::kPaper, 0, 8), c.paper);
    EXPECT_EQ(kv::QaqBits(8 / sigma, QaqRule::kCode, 0, 8), c.code);
  }
  const double scaled = kv::QaqKeySigma(1024, 300.0 / 128, .001);
  EXPECT_NEAR(scaled, .553349, 1e-6);
  EXPECT_EQ(kv::QaqBits(8 / scaled, QaqRule::kPaper, 0, 8), 3);
  EXPECT_EQ(kv::QaqBits(8 / scaled, QaqRule::kCode, 0, 8), 2);
  EXPECT_EQ(kv::QaqBits(0, QaqRule::kPaper, 2, 8), 2) << "a constant vector";
  EXPECT_EQ(kv::QaqBits(NAN, QaqRule::kPaper, 2, 8), 8);
  EXPECT_EQ(kv::QaqBits(INFINITY, QaqRule::kPaper, 2, 8), 8);
}

// The vector Q4, with its outliers -.9 and 3.
const std::vector<float> kX{-.9f, -.4f, -.35f, -.2f, -.1f, -.05f, 0,   .02f,
                            .05f, .1f,  .15f,  .2f,  .3f,  .35f,  .5f, 3};

TEST(QaqQuantizer, MidpointVectors) {
  const kv::OutlierCounts n = kv::QuantileOutliers(int(kX.size()), .125);
  EXPECT_EQ(n.low, 1);
  EXPECT_EQ(n.high, 1);
  const kv::QaqExtremes e(kX.data(), int(kX.size()), n.low, n.high);
  EXPECT_EQ(e.low[0], 0);
  EXPECT_EQ(e.high[0], 15);
  const float min = -.4f, half = .45f;
  const std::vector<int> code8{0, 14, 56, 85, 99, 113, 119, 128, 142, 156, 170, 199, 213, 255};
  const std::vector<int> code2{0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3};
  const double rmse[] = {0, .153797, .073842, .034984, .018094};
  for (int bits = 1; bits <= 4; ++bits) {
    double squares = 0, worst = 0;
    for (size_t i = 0; i < code8.size(); ++i) {
      const float x = kX[i + 1];
      const int code = kv::QaqCode8(x, min, half);
      EXPECT_NEAR(code, code8[i], i == 7 ? 1 : 0) << "the middle lies on an edge, on either side in floats";
      const double error = double(x) - double(kv::QaqDecode(code8[i] >> (8 - bits), min, half, bits));
      squares += error * error;
      worst = std::max(worst, std::fabs(error));
      if (bits == 2) {
        EXPECT_EQ(code8[i] >> 6, code2[i]);
      }
    }
    EXPECT_NEAR(std::sqrt(squares / 14), rmse[bits], 1e-6) << bits;
    if (bits == 2) {
      EXPECT_NEAR(worst, .1125, 1e-6);
    }
    if (bits == 3) {
      EXPECT_NEAR(worst, .05625, 1e-6);
    }
  }
}

// Q8: the code of fewer bits is the high bits of the code of more. A quantizer of 2^b - 1 levels is not like
// that, so this check can fail.
TEST(QaqQuantizer, CodesNest) {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform;
  int broken = 0;
  for (int i = 0; i < 20000; ++i) {
    const float min = 4 * uniform(random) - 2, half = uniform(random) + .01f;
    const float x = min + 2 * half * uniform(random);
    const int code = kv::QaqCode8(x, min, half);
    for (int bits = 1; bits < 8; ++bits) {
      const float position = (x - min) / (2 * half);
      const int direct = std::min(int(std::floor(std::ldexp(position, bits))), (1 << bits) - 1);
      ASSERT_EQ(code >> (8 - bits), direct) << x << " " << min << " " << half << " " << bits;
      broken +=
          int(std::lround(position * 255)) >> (8 - bits) != std::lround(position * float((1 << bits) - 1));
    }
  }
  EXPECT_GT(broken, 1000);
}

TEST(QaqRules, OutliersByCost) {
  std::vector<float> low(kX.begin(), kX.begin() + 5), high(kX.rbegin(), kX.rbegin() + 5);
  const auto choose = [&](double sigma) {
    return kv::CheapestOutliers(low.data(), high.data(), 16, 4, sigma, QaqRule::kPaper, 8, 24);
  };
  EXPECT_EQ(choose(.05).low + choose(.05).high, 0) << "Q9: 80 bits against 84 and 90";
  const auto bits = [&](int below, int above) {
    return kv::QaqBits((double(high[size_t(above)]) - double(low[size_t(below)])) / .05, QaqRule::kPaper, 0,
                       8);
  };
  EXPECT_EQ(16 * bits(0, 0), 80);
  EXPECT_EQ(24 + 15 * bits(0, 1), 84);
  EXPECT_EQ(48 + 14 * bits(0, 2), 90);
  EXPECT_EQ(48 + 14 * bits(1, 1), 90);
  high[0] = 30;  // 8 bits with it, 4 without
  EXPECT_EQ(choose(.05).low, 0);
  EXPECT_EQ(choose(.05).high, 1);
}

TEST(QaqRules, NormQuantileIsAnUpperBound) {
  std::mt19937 random(2);
  std::lognormal_distribution<double> norms(0, 2);
  std::vector<double> seen;
  kv::NormHistogram histogram;
  EXPECT_EQ(histogram.UpperQuantile(.9), 0);
  for (int i = 0; i < 2000; ++i) {
    seen.push_back(norms(random));
    histogram.Add(seen.back());
  }
  std::sort(seen.begin(), seen.end());
  for (const double share : {.1, .5, .9, .99}) {
    const double exact = seen[size_t(std::ceil(share * 2000)) - 1], got = histogram.UpperQuantile(share);
    EXPECT_GE(got, exact);
    EXPECT_LE(got, exact * std::exp2(.25));
  }
}

// Q10: values of case G, importance = the weights of dense attention.
TEST(QaqRules, CaseG) {
  uint32_t state = 12345;
  const auto draw = [&] {
    state = 1664525 * state + 1013904223;
    return 2 * (double(state >> 8) / double(1 << 24)) - 1;
  };
  double q[8], k[16][8], v[16][8], weight[16], sum = 0, norm2 = 0;
  for (double& x : q) x = draw();
  for (auto& row : k)
    for (double& x : row) x = draw();
  for (auto& row : v)
    for (double& x : row) x = draw();
  q[2] *= 4, q[5] *= 3;
  for (const double x : q) norm2 += x * x;
  EXPECT_NEAR(norm2, 8.13556, 1e-5);
  for (int t = 0; t < 16; ++t) {
    double score = 0;
    for (int d = 0; d < 8; ++d) score += q[d] * k[t][d];
    sum += weight[t] = std::exp(score / std::sqrt(8.0));
  }
  const int paper[] = {3, 2, 1, 2, 3, 2, 1, 4, 1, 1, 2, 2, 2, 5, 3, 3};
  const int code[] = {3, 2, 1, 2, 3, 2, 1, 3, 1, 1, 2, 2, 2, 4, 3, 2};
  for (int t = 0; t < 16; ++t) {
    const auto [lo, hi] = std::minmax_element(v[t], v[t] + 8);
    const double need = (*hi - *lo) / kv::QaqValueSigma(16, weight[t] / sum, .02);
    EXPECT_EQ(kv::QaqBits(need, QaqRule::kPaper, 0, 8), paper[t]) << t;
    EXPECT_EQ(kv::QaqBits(need, QaqRule::kCode, 0, 8), code[t]) << t;
  }
  EXPECT_NEAR(kv::QaqKeySigma(16, norm2, .005), .02892, 1e-5);
  EXPECT_NEAR(kv::QaqKeySigma(16, norm2 / 8, .005), .08179, 1e-5);
}

TEST(PlaneArena, ReusesWhatIsGivenBack) {
  kv::ArenaState state{};
  std::vector<std::byte> memory(8 * 64);
  kv::PlaneArena arena(&state, memory.data(), 64, 8);
  std::set<uint32_t> held;
  for (int i = 0; i < 8; ++i) EXPECT_TRUE(held.insert(arena.Take()).second);
  EXPECT_DEATH(arena.Take(), "more planes");
  for (const uint32_t cell : {3u, 5u, 1u}) {
    arena.Give(cell);
    held.erase(cell);
  }
  EXPECT_EQ(arena.used(), 5);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(held.insert(arena.Take()).second) << "a cell was handed out twice";
  EXPECT_EQ(state.fresh, 8u) << "freed cells come first";
}

// A sealed page with an arena of its own.
class QaqPage : public testing::TestWithParam<int> {
 protected:
  static constexpr int kMax = 8, kOthers = 6;  // planes of a page, planes that others take meanwhile
  void Make(const kv::QaqParams& params, uint32_t seed) {
    params_ = params;
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    rows_.resize(size_t(shape_.tokens * shape_.head_dim));
    for (float& x : rows_) x = HalfToFloat(FloatToHalf(normal(random) * (random() % 50 == 0 ? 8.f : 1.f)));
    planes_.resize(size_t(2 * kMax * kv::QaqPlaneBytes(shape_)));
    cells_.resize(size_t(2 * 64 * kv::kQaqCellBytes));
    state_[0] = state_[1] = {};
    page_.assign(size_t(kv::QaqRecordBytes(shape_)), std::byte{0});
  }
  QaqPages Pages() {
    return {shape_, params_, kv::PlaneArena(&state_[0], planes_.data(), kv::QaqPlaneBytes(shape_), 2 * kMax),
            kv::PlaneArena(&state_[1], cells_.data(), kv::kQaqCellBytes, 2 * 64)};
  }
  void SetWidth(int width) {
    kv::QaqHeader h = kv::LoadQaqHeader(page_.data());
    h.width = uint8_t(width);
    kv::StoreQaqHeader(page_.data(), h);
  }
  std::vector<float> Decode() const {
    std::vector<float> x(rows_.size());
    for (int t = 0; t < shape_.tokens; ++t)
      for (int d = 0; d < shape_.head_dim; d += 8)
        kv::Qaq::Decode8(shape_, page_.data(), t, d, x.data() + t * shape_.head_dim + d);
    return x;
  }
  // What direct quantization of a token at this width gives, sorted and counted the plain way.
  std::vector<double> Truth(int token, int width, kv::OutlierCounts n) const {
    const float* x = rows_.data() + token * shape_.head_dim;
    std::vector<int> order(size_t(shape_.head_dim));
    for (int i = 0; i < shape_.head_dim; ++i) order[size_t(i)] = i;
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return x[a] < x[b]; });
    const float lo = x[order[size_t(n.low)]], hi = x[order[size_t(shape_.head_dim - 1 - n.high)]];
    const float half = (hi - lo) / 2;
    uint16_t bits = FloatToHalf(half);
    if (HalfToFloat(bits) < half) ++bits;
    const double range = 2 * double(HalfToFloat(bits));
    std::vector<double> y(size_t(shape_.head_dim));
    for (int i = 0; i < shape_.head_dim; ++i) {
      const int d = order[size_t(i)];
      const double position = std::floor((double(x[d]) - double(lo)) / range * std::ldexp(1, width));
      const double code = std::clamp(position, 0.0, std::ldexp(1, width) - 1);
      const bool outlier = i < n.low || i >= shape_.head_dim - n.high;
      y[size_t(d)] = outlier ? double(x[d]) : double(lo) + (code + .5) * range * std::ldexp(1, -width);
    }
    return y;
  }

  const kv::PageShape shape_{GetParam(), kv::kPageTokens};
  kv::QaqParams params_;
  std::vector<float> rows_;
  std::vector<std::byte> planes_, cells_;
  kv::ArenaState state_[2];
  alignas(8) std::vector<std::byte> page_;
};

TEST_P(QaqPage, EveryWidthIsDirectQuantization) {
  Make({.outliers = .01f}, 3);
  Pages().Seal(rows_.data(), 1, page_.data());
  const kv::OutlierCounts n = kv::QuantileOutliers(shape_.head_dim, .01);
  for (int width = 8; width >= 0; --width) {
    SetWidth(width);
    Pages().Drop(page_.data(), width);
    EXPECT_EQ(state_[0].used, uint32_t(width)) << "planes are really freed";
    const std::vector<float> got = Decode();
    int differences = 0;
    for (int t = 0; t < shape_.tokens; ++t) {
      const std::vector<double> want = Truth(t, width, n), broken = Truth(t, std::max(width, 1), {});
      for (int d = 0; d < shape_.head_dim; ++d) {
        const float x = got[size_t(t * shape_.head_dim + d)];
        // Codes are floor()s of an f32 quotient here, of a double there: an edge may fall on either side.
        const double step =
            2 * double(HalfToFloat(kv::LoadQaqRange(shape_, page_.data(), t).half)) / (1 << width);
        if (std::fabs(double(x) - want[size_t(d)]) > 1e-5) {
          EXPECT_NEAR(x, want[size_t(d)], step * 1.001);
          EXPECT_NEAR(x, rows_[size_t(t * shape_.head_dim + d)], step * .5001);
          ++differences;
        }
        if (d == 0) {
          EXPECT_NE(want, broken) << "without outliers the page is another one";
        }
      }
    }
    EXPECT_LE(differences, 2) << width;
  }
}

TEST_P(QaqPage, DroppedPlanesComeBackBitForBit) {
  Make({.outliers = .02f}, 4);
  QaqPages pages = Pages();
  pages.Seal(rows_.data(), 1, page_.data());
  const std::vector<float> all = Decode();
  SetWidth(2);
  pages.Drop(page_.data(), 2);
  const std::vector<float> two = Decode();
  kv::PlaneArena arena(&state_[0], planes_.data(), kv::QaqPlaneBytes(shape_), 2 * kMax);
  for (int i = 0; i < kOthers; ++i) memset(arena.Cell(arena.Take()), 0xff, size_t(kv::QaqPlaneBytes(shape_)));
  pages.Restore(page_.data(), rows_.data(), 8);
  EXPECT_EQ(Decode(), two) << "the width is what counts, not what is resident";
  SetWidth(8);
  EXPECT_EQ(Decode(), all);
  pages.Release(page_.data());
  EXPECT_EQ(state_[0].used, uint32_t(kOthers));
  EXPECT_EQ(state_[1].used, 0u);
}

TEST_P(QaqPage, SealingAgainReleasesWhatWasThere) {
  Make({.pick = kv::QaqPick::kCost}, 5);
  for (int i = 0; i < 20; ++i) Pages().Seal(rows_.data(), .05, page_.data());
  EXPECT_EQ(state_[0].used, 8u);
  const kv::QaqHeader h = kv::LoadQaqHeader(page_.data());
  EXPECT_EQ(h.outliers > 0, shape_.head_dim > 8) << "of eight values none is worth 32 bits";
  EXPECT_EQ(int(state_[1].used), kv::QaqCells(h.outliers));
  EXPECT_EQ(Pages().Bytes(page_.data()), kv::QaqRecordBytes(shape_) + 8 * kv::QaqPlaneBytes(shape_) +
                                             kv::QaqCells(h.outliers) * kv::kQaqCellBytes);
  const QaqPageBytes planned = PlanQaqPage(shape_, params_);
  EXPECT_LE(Pages().Bytes(page_.data()), planned.most);
  EXPECT_EQ(planned.least, kv::QaqRecordBytes(shape_));
}

TEST_P(QaqPage, BrokenRowsStayVisible) {
  Make({}, 6);
  rows_[5] = INFINITY;
  rows_[size_t(shape_.head_dim) + 1] = NAN;
  Pages().Seal(rows_.data(), 1, page_.data());
  const std::vector<float> got = Decode();
  for (int d = 0; d < shape_.head_dim; ++d) {
    EXPECT_TRUE(std::isnan(got[size_t(d)]) && std::isnan(got[size_t(shape_.head_dim + d)]));
    EXPECT_FALSE(std::isnan(got[size_t(2 * shape_.head_dim + d)]));
  }
}

INSTANTIATE_TEST_SUITE_P(HeadDims, QaqPage, testing::Values(8, 40, 64, 128, 256));

}  // namespace
}  // namespace nibble
