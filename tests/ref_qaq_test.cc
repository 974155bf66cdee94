// SPDX-License-Identifier: Apache-2.0
// The definition of QAQ against vectors Q1-Q10, and its invariants. The released code's mean-centred
// quantizer must be seen to break the midpoint quantizer's bound and the nesting of planes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/ref/dense.h"
#include "kernels/ref/qaq.h"
#include "tests/support/ref_cases.h"

namespace nibble::ref {
namespace {

const std::vector<double> kQ4 = {-.9, -.4, -.35, -.2, -.1, -.05, 0, .02, .05, .1, .15, .2, .3, .35, .5, 3};
const std::vector<int> kQ4Outliers = {0, 15};

struct Errors {
  double worst = 0, rms = 0;
};
Errors InlierErrors(const std::vector<double>& x, const std::vector<double>& decoded,
                    const std::vector<int>& outliers) {
  Errors e;
  int n = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    if (std::find(outliers.begin(), outliers.end(), int(i)) != outliers.end()) continue;
    e.worst = std::max(e.worst, std::abs(x[i] - decoded[i]));
    e.rms += (x[i] - decoded[i]) * (x[i] - decoded[i]);
    ++n;
  }
  e.rms = std::sqrt(e.rms / n);
  return e;
}

// The released code: step = range / 2^bits, centred on the mean of the inliers.
std::vector<double> MeanCentred(const std::vector<double>& x, int bits, const std::vector<int>& outliers,
                                std::vector<int>* codes = nullptr) {
  const QaqVector fit = QaqEncode(x, bits, outliers);
  double mean = 0;
  for (size_t i = 0; i < x.size(); ++i)
    if (std::find(outliers.begin(), outliers.end(), int(i)) == outliers.end())
      mean += x[i] / double(x.size() - outliers.size());
  if (x == kQ4) {
    EXPECT_NEAR(mean, .040714, 1e-6);
  }
  const double step = std::ldexp(fit.range, -bits), half = std::ldexp(1.0, bits - 1);
  std::vector<double> decoded;
  for (const double v : x) {
    const double code = std::clamp(std::nearbyint((v - mean) / step), -half, half - 1);
    if (codes != nullptr) codes->push_back(int(code + half));
    decoded.push_back(code * step + mean);
  }
  return decoded;
}

TEST(RefQaq, Q1_ValueSigma) {
  EXPECT_NEAR(QaqValueSigma(9, .3, .01), .0111111, 1e-7);
  EXPECT_NEAR(QaqValueSigma(9, .2, .01), .0166667, 1e-7);
  EXPECT_NEAR(QaqValueSigma(9, .15, .01), .0222222, 1e-7);
}

TEST(RefQaq, Q2_KeySigma) {
  EXPECT_NEAR(QaqKeySigma(9, 1000, .01), .00301185, 1e-8);
  EXPECT_NEAR(std::pow(QaqKeySigma(9, 1000, .01), 2), 9.07123e-6, 1e-11);
  EXPECT_EQ(QaqKeySigma(1, 1000, .01), 0);
  EXPECT_EQ(QaqBits(1, QaqKeySigma(1, 1000, .01)), kQaqMaxBits);
}

TEST(RefQaq, Q3_BitsOfValues) {
  const struct {
    double sigma_x, attention;
    int paper, code;
  } cases[] = {{.01, .5, 11, 10}, {.01, .1, 9, 8}, {.01, .01, 6, 5}, {.1, .1, 6, 5}, {1, .5, 5, 4},
               {1, .1, 2, 2},     {1, .01, 0, 1},  {3, .5, 3, 3},    {10, .5, 1, 1}};
  for (const auto& c : cases) {
    const double sigma = QaqValueSigma(1024, c.attention, c.sigma_x);
    EXPECT_EQ(QaqBits(4, sigma, 0, 16), c.paper) << c.sigma_x << " " << c.attention;
    EXPECT_EQ(QaqCodeBits(4, sigma, 0, 16), c.code) << c.sigma_x << " " << c.attention;
  }
}

TEST(RefQaq, Q3_BitsOfKeys) {
  const struct {
    double norm2, sigma_s, sigma;
    int paper, code;
  } cases[] = {
      {300, .001, .048910, 6, 5}, {300, .01, .124674, 5, 4},          {300, 1, .214972, 4, 3},
      {300, 30, .262465, 4, 3},   {300.0 / 128, .001, .553349, 3, 2}, {300.0 / 128, .01, 1.410522, 1, 1}};
  for (const auto& c : cases) {
    const double sigma = QaqKeySigma(1024, c.norm2, c.sigma_s);
    EXPECT_NEAR(sigma, c.sigma, 1e-6);
    EXPECT_EQ(QaqBits(8, sigma), c.paper) << c.sigma_s;
    EXPECT_EQ(QaqCodeBits(8, sigma), c.code) << c.sigma_s;
  }
}

TEST(RefQaq, Q4_MidpointQuantizerAndOutliers) {
  EXPECT_EQ(QuantileOutliers(kQ4, .125), kQ4Outliers);
  EXPECT_EQ(QuantileOutliers(kQ4, 0), std::vector<int>());
  const struct {
    int bits;
    double rms, worst, centred_rms, centred_worst;
  } cases[] = {{1, .153797, 0, .187515, 0},
               {2, .073842, .1125, .086313, .234286},
               {3, .034984, .05625, .045074, .121786},
               {4, .018094, 0, .023953, 0}};
  for (const auto& c : cases) {
    const QaqVector v = QaqEncode(kQ4, c.bits, kQ4Outliers);
    EXPECT_EQ(v.min, -.4);
    EXPECT_NEAR(v.range, .9, 1e-15);
    const std::vector<double> decoded = QaqDecode(v);
    EXPECT_EQ(decoded[0], -.9);
    EXPECT_EQ(decoded[15], 3);
    const Errors e = InlierErrors(kQ4, decoded, kQ4Outliers);
    EXPECT_NEAR(e.rms, c.rms, 1e-6);
    EXPECT_LE(e.worst, v.range / std::ldexp(2.0, c.bits) + 1e-15);
    const Errors centred = InlierErrors(kQ4, MeanCentred(kQ4, c.bits, kQ4Outliers), kQ4Outliers);
    EXPECT_NEAR(centred.rms, c.centred_rms, 1e-6);
    if (c.worst == 0) continue;
    EXPECT_NEAR(e.worst, c.worst, 1e-6);
    EXPECT_NEAR(centred.worst, c.centred_worst, 1e-6);
    EXPECT_GT(centred.worst, v.range / std::ldexp(2.0, c.bits));  // the bound that it breaks
  }
  const QaqVector two = QaqEncode(kQ4, 2, kQ4Outliers);
  EXPECT_EQ(std::vector<int>(two.codes.begin() + 1, two.codes.end() - 1),
            (std::vector<int>{0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3}));
}

TEST(RefQaq, Q5_PaperRatio) {
  const double bits[] = {1.5, 2, 2.5, 3}, token[] = {9.725, 7.476, 6.072, 5.111},
               head[] = {8.443, 6.695, 5.546, 4.734};
  for (int i = 0; i < 4; ++i) {
    EXPECT_NEAR(QaqPaperRatio(bits[i], .01, QaqLevel::kToken, 32, 32, 4096), token[i], 5e-4);
    EXPECT_NEAR(QaqPaperRatio(bits[i], .01, QaqLevel::kHead, 32, 32, 4096), head[i], 5e-4);
  }
  // Section 2.6: what storage takes, at head size 128 with two outliers.
  EXPECT_NEAR(QaqHonestBits(2, 128, 2), 2.625, 1e-9);
  EXPECT_NEAR(QaqHonestBits(3, 128, 2), 3.61, 5e-3);
  EXPECT_NEAR(QaqHonestBits(4, 128, 2), 4.59, 5e-3);
  EXPECT_NEAR(16 / QaqHonestBits(2, 128, 2), 6.10, 5e-3);
}

// Q6: logits with the variance that the bound allows make weights with the deviation that it promises.
TEST(RefQaq, Q6_TheKeyBoundHolds) {
  Random random(31);
  for (const double sigma_s : {.01, .05}) {
    const double deviation = QaqKeySigma(9, 1, sigma_s);
    double sum = 0, sum2 = 0;
    const int trials = 40000;
    for (int i = 0; i < trials; ++i) {
      std::vector<double> logits;
      for (int t = 0; t < 9; ++t) logits.push_back(deviation * random.Normal());
      const double w = Softmax(logits)[0];
      sum += w / trials;
      sum2 += w * w / trials;
    }
    const double measured = std::sqrt(sum2 - sum * sum);
    EXPECT_LT(measured, sigma_s * 1.02);
    EXPECT_GT(measured, sigma_s * .94);
  }
}

TEST(RefQaq, Q7_Window) {
  const std::vector<std::vector<double>> rows = {{.5, .3, .2}, {.1, .6, .3}, {.2, .1, .7}, {.05, .05, .9}},
                                         want = {{.05, .05, .9}, {.2, .1, .9}, {.2, .6, .9}};
  for (int n = 1; n <= 3; ++n) {
    ImportanceWindow window(n);
    for (const auto& row : rows) window.Push(row);
    EXPECT_EQ(window.Importance(), want[size_t(n - 1)]);
  }
  ImportanceWindow growing(2);
  growing.Push({.5});
  growing.Push({.2, .8});
  EXPECT_EQ(growing.Importance(), (std::vector<double>{.5, .8}));
}

TEST(RefQaq, Q8_PlanesNest) {
  const QaqVector v = QaqEncode(kQ4, 8, kQ4Outliers);
  EXPECT_EQ(std::vector<int>(v.codes.begin() + 1, v.codes.end() - 1),
            (std::vector<int>{0, 14, 56, 85, 99, 113, 119, 128, 142, 156, 170, 199, 213, 255}));
  Random random(7);
  int centred_breaks = 0;
  for (int i = 0; i < 20000; ++i) {
    std::vector<double> x;
    for (int d = 0; d < 8; ++d) x.push_back(3 * (2 * random.Uniform() - 1));
    const QaqVector wide = QaqEncode(x, 8, {});
    for (int bits = 0; bits < 8; ++bits) {
      const QaqVector direct = QaqEncode(x, bits, {}), dropped = QaqNarrow(wide, bits);
      ASSERT_EQ(direct.codes, dropped.codes);
      ASSERT_EQ(QaqDecode(direct), QaqDecode(dropped));
      ASSERT_EQ(QaqNarrow(QaqNarrow(wide, std::max(bits, 5)), bits).codes, dropped.codes);
    }
    std::vector<int> codes8, codes3;
    MeanCentred(x, 8, {}, &codes8);
    MeanCentred(x, 3, {}, &codes3);
    for (size_t d = 0; d < 8; ++d) centred_breaks += codes3[d] != codes8[d] >> 5;
  }
  EXPECT_GT(centred_breaks, 0);
}

TEST(RefQaq, Q9_OutliersByCost) {
  std::vector<double> sorted = kQ4;
  std::sort(sorted.begin(), sorted.end());
  const struct {
    int low, high, bits;
    int64_t cost;
  } cases[] = {{0, 0, 5, 80}, {0, 1, 4, 84}, {0, 2, 3, 90}, {1, 1, 3, 90}};
  for (const auto& c : cases) {
    int bits = 0;
    EXPECT_EQ(OutlierCost(sorted, c.low, c.high, .05, 24, &bits), c.cost);
    EXPECT_EQ(bits, c.bits);
  }
  const OutlierChoice none = CheapestOutliers(kQ4, .05);
  EXPECT_EQ(none.low + none.high, 0);
  EXPECT_EQ(none.cost, 80);
  // At 128 elements an extreme pays as soon as it narrows the others.
  std::vector<double> wide;
  for (int i = 0; i < 8; ++i) wide.insert(wide.end(), kQ4.begin() + 1, kQ4.end() - 1);
  wide.push_back(3);
  const OutlierChoice one = CheapestOutliers(wide, .05);
  EXPECT_EQ(one.low, 0);
  EXPECT_EQ(one.high, 1);
  EXPECT_EQ(one.bits, 3);
}

TEST(RefQaq, Q10_GeneratedCase) {
  const CaseG g;
  const std::vector<double> importance = DenseWeights(g.q[0], g.k, 1 / std::sqrt(8.0));
  const int paper[] = {3, 2, 1, 2, 3, 2, 1, 4, 1, 1, 2, 2, 2, 5, 3, 3},
            code[] = {3, 2, 1, 2, 3, 2, 1, 3, 1, 1, 2, 2, 2, 4, 3, 2};
  double mean = 0, squared = 0;
  std::vector<double> error(8, 0.0);
  for (int n = 0; n < 16; ++n) {
    const std::vector<double> v = RowOf(g.v, n);
    const double range = *std::max_element(v.begin(), v.end()) - *std::min_element(v.begin(), v.end());
    const double sigma = QaqValueSigma(16, importance[size_t(n)], .02);
    const int bits = QaqBits(range, sigma);
    EXPECT_EQ(bits, paper[n]) << n;
    EXPECT_EQ(QaqCodeBits(range, sigma), code[n]) << n;
    mean += bits / 16.0;
    const std::vector<double> decoded = QaqDecode(QaqEncode(v, bits, {}));
    for (size_t d = 0; d < 8; ++d) error[d] += importance[size_t(n)] * (decoded[d] - v[d]);
  }
  EXPECT_NEAR(mean, 2.3125, 1e-12);
  for (const double e : error) squared += e * e;
  EXPECT_NEAR(std::sqrt(squared / 8), .0202, 5e-5);
  const double norm2 = Dot(g.q[0], g.q[0], 8);
  EXPECT_NEAR(norm2, 8.13556, 1e-5);
  const double raw = QaqKeySigma(16, norm2, .005), scaled = QaqKeySigma(16, norm2 / 8, .005);
  EXPECT_NEAR(raw, .02892, 1e-5);
  EXPECT_NEAR(scaled, .08179, 1e-5);
  for (int n = 0; n < 16; ++n) {
    const std::vector<double> k = RowOf(g.k, n);
    const double range = *std::max_element(k.begin(), k.end()) - *std::min_element(k.begin(), k.end());
    const int raw_bits = QaqBits(range, raw), scaled_bits = QaqBits(range, scaled);
    EXPECT_TRUE(raw_bits == 4 || raw_bits == 5) << n;
    EXPECT_TRUE(scaled_bits == 2 || scaled_bits == 3) << n;
  }
}

// ---- invariants ----

TEST(RefQaqProperty, BitsFallWithSigmaAndRiseWithAttention) {
  Random random(32);
  for (const int tokens : {1, 2, 65, 4096})
    for (int i = 0; i < 200; ++i) {
      const double range = 8 * random.Uniform(), low = random.Uniform(), high = low + random.Uniform();
      EXPECT_GE(QaqBits(range, low), QaqBits(range, high));
      EXPECT_LE(QaqBits(range, QaqValueSigma(tokens, low, .02)),
                QaqBits(range, QaqValueSigma(tokens, high, .02)));
      EXPECT_GE(QaqBits(range, QaqKeySigma(tokens, 3, low)), QaqBits(range, QaqKeySigma(tokens, 3, high)));
      EXPECT_LE(QaqBits(range, low, 2, 4), 4);
      EXPECT_GE(QaqBits(range, high, 2, 4), 2);
    }
}

TEST(RefQaqProperty, DecodeStaysWithinHalfASegmentAndOutliersAreExact) {
  Random random(33);
  for (const int dim : {64, 80, 128})
    for (int bits = 0; bits <= 8; ++bits)
      for (int i = 0; i < 20; ++i) {
        std::vector<double> x;
        for (int d = 0; d < dim; ++d) x.push_back(random.Normal() * (random.Below(40) == 0 ? 20 : 1));
        const std::vector<int> outliers = QuantileOutliers(x, .01);
        EXPECT_EQ(outliers.size(), 2u);
        const QaqVector v = QaqEncode(x, bits, outliers);
        const std::vector<double> decoded = QaqDecode(v);
        EXPECT_LE(InlierErrors(x, decoded, outliers).worst, v.range / std::ldexp(2.0, bits) * (1 + 1e-12));
        for (const int o : outliers) EXPECT_EQ(decoded[size_t(o)], x[size_t(o)]);
      }
}

// Bits chosen from a bound keep it: the midpoint error's deviation, half a segment / sqrt(3), is at most
// sigma.
TEST(RefQaqProperty, ChosenBitsKeepTheBound) {
  Random random(34);
  for (int i = 0; i < 500; ++i) {
    const double range = 10 * random.Uniform() + .1, sigma = range * (.001 + random.Uniform());
    const int bits = QaqBits(range, sigma, 0, 16);
    EXPECT_LE(range / std::ldexp(2.0, bits) / std::sqrt(3.0), sigma * (1 + 1e-12));
    if (bits > 0) {
      EXPECT_GT(range / std::ldexp(2.0, bits - 1) / std::sqrt(3.0), sigma);
    }
  }
}

TEST(RefQaqProperty, DecayedMaximumBoundsTheWindowFromBelow) {
  Random random(35);
  const double lambda = .8;
  const int n = 5;
  ImportanceWindow window(n);
  DecayedImportance decayed(lambda);
  for (int step = 0; step < 50; ++step) {
    std::vector<double> row;
    for (int t = 0; t <= step; ++t) row.push_back(random.Uniform());
    window.Push(row);
    decayed.Push(row);
    for (int t = 0; t <= step; ++t)
      EXPECT_GE(decayed.Importance()[size_t(t)], std::pow(lambda, n) * window.Importance()[size_t(t)]);
  }
}

TEST(RefQaq, HysteresisWaitsAndConstantVectorsTakeNoBits) {
  WidthHysteresis width(4, 3);
  EXPECT_EQ(width.Update(2), 4);
  EXPECT_EQ(width.Update(4), 4);  // back again: the count starts anew
  EXPECT_EQ(width.Update(2), 4);
  EXPECT_EQ(width.Update(3), 4);
  EXPECT_EQ(width.Update(3), 3);
  EXPECT_EQ(QaqBits(0, .1), 0);
  const QaqVector flat = QaqEncode({2.5, 2.5, 2.5}, 0, {});
  EXPECT_EQ(QaqDecode(flat), (std::vector<double>{2.5, 2.5, 2.5}));
  EXPECT_EQ(QaqDecode(QaqEncode({1, 3}, 0, {})), (std::vector<double>{2, 2}));
  EXPECT_EQ(UpperQuantile({5, 1, 4, 2, 3, 6, 7, 8, 9, 10}, .9), 9);
}

// Honest bits are what a vector takes; the paper's formula by head counts less.
TEST(RefQaqProperty, HonestBitsExceedThePaperFormula) {
  for (const int dim : {64, 80, 128})
    for (int bits = 1; bits <= 8; ++bits)
      EXPECT_GT(QaqHonestBits(bits, dim, 2), 16 / QaqPaperRatio(bits, 2.0 / dim, QaqLevel::kHead, 1, 1, dim));
}

}  // namespace
}  // namespace nibble::ref
