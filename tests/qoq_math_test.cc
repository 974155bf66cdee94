// SPDX-License-Identifier: Apache-2.0
// The dense arithmetic of QoQ: rotations, the inverse factor, grids and GPTQ, each against a slow or exact
// form.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "model/qoq/cholesky.h"
#include "model/qoq/gptq.h"
#include "model/qoq/hadamard.h"
#include "model/qoq/search.h"
#include "quant/weight/pack.h"

namespace nibble::qoq {
namespace {

using weight::Storage;

Matrix Random(int rows, int cols, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  Matrix m(rows, cols);
  for (float& x : m.v) x = normal(rng);
  return m;
}

// Inputs whose channels are correlated and of very different size, as activations are.
Matrix Activations(int rows, int cols, uint32_t seed) {
  Matrix x = Random(rows, cols, seed);
  for (int t = 0; t < rows; ++t)
    for (int c = 1; c < cols; ++c) x.Row(t)[c] = 0.7f * x.Row(t)[c - 1] + x.Row(t)[c];
  for (int t = 0; t < rows; ++t)
    for (int c = 0; c < cols; c += 17) x.Row(t)[c] *= 6;
  return x;
}

std::unique_ptr<Math> MakeMath(int threads = 2) { return *Math::Make(threads); }

double OutputError(const Matrix& w, const Matrix& q, const Matrix& x, Math& math) {
  return SquaredDistance(math.Product(x, w), math.Product(x, q));
}

TEST(QoqHadamard, HandVector) {
  const Hadamard r(4);
  float x[] = {3, 1, -2, 0.5f};
  r.Rotate(x);
  const float rotated[] = {1.25f, -0.25f, 2.75f, 2.25f};
  for (int i = 0; i < 4; ++i) EXPECT_FLOAT_EQ(x[i], rotated[i]);
}

// Why a LayerNorm cannot be rotated before its mean is folded away: the mean of the rotated vector is its
// first channel, and taking it off erases that channel. (Vector K.)
TEST(QoqHadamard, RemovingTheMeanErasesAChannel) {
  const Hadamard r(4);
  const float x[] = {3, 1, -2, 0.5f};
  float y[4];
  std::copy(x, x + 4, y);
  r.Rotate(y);
  const auto norm2 = [](const float* v) {
    double sum = 0;
    for (int i = 0; i < 4; ++i) sum += double(v[i]) * double(v[i]);
    return sum;
  };
  EXPECT_EQ(norm2(x), 14.25);
  EXPECT_EQ(norm2(y), 14.25);
  EXPECT_NEAR(std::sqrt(norm2(y) / 4), 1.88746, 1e-5);
  const float mean = (y[0] + y[1] + y[2] + y[3]) / 4;
  EXPECT_EQ(mean, x[0] / 2);
  for (float& f : y) f -= mean;
  EXPECT_NEAR(std::sqrt(norm2(y) / 4), 1.14564, 1e-5);
  r.Rotate(y);  // symmetric: its own inverse
  const float erased[] = {0, 1, -2, 0.5f};
  for (int i = 0; i < 4; ++i) EXPECT_FLOAT_EQ(y[i], erased[i]) << i;
}

TEST(QoqHadamard, PreservesNormsAndProducts) {
  for (const int n : {1, 2, 12, 20, 28, 36, 40, 64, 96, 128, 160, 384, 512, 896, 1536, 3584, 43, 11008}) {
    const Hadamard r(n);
    Matrix m = Random(3, n, uint32_t(n));
    m.Row(2)[n / 2] = 100;  // an outlier
    Matrix y = m;
    for (int i = 0; i < 3; ++i) r.Rotate(y.Row(i));
    for (int i = 0; i < 3; ++i)
      for (int j = 0; j < 3; ++j) {
        double before = 0, after = 0;
        for (int c = 0; c < n; ++c) {
          before += double(m.Row(i)[c]) * m.Row(j)[c];
          after += double(y.Row(i)[c]) * y.Row(j)[c];
        }
        EXPECT_NEAR(before, after, 1e-4 * n + 1e-5 * std::fabs(before)) << n;
      }
    if (r.block() == n && n >= 96) {  // spread over all channels
      EXPECT_LT(ColumnMax(SampleColumns(y, 0, n, 3), 0, n)[0], 30) << n;
    }
  }
  EXPECT_EQ(Hadamard(384).block(), 384);
  EXPECT_EQ(Hadamard(1536).block(), 1536);
  EXPECT_EQ(Hadamard(11008).block(), 256) << "43 * 256: no order known";
}

TEST(QoqHadamard, PaleyRowsAreOrthogonal) {
  for (const int n : {4, 8, 12, 20, 24, 28, 36, 44, 60}) {
    const std::vector<int8_t> h = PaleyHadamard(n);
    ASSERT_EQ(h.size(), size_t(n * n)) << n;
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < n; ++j) {
        int dot = 0;
        for (int c = 0; c < n; ++c) dot += h[size_t(i * n + c)] * h[size_t(j * n + c)];
        ASSERT_EQ(dot, i == j ? n : 0) << n << " " << i << " " << j;
      }
  }
  EXPECT_TRUE(PaleyHadamard(92).empty());
}

TEST(QoqCholesky, FactorInvertsTheMoment) {
  const auto math = MakeMath();
  for (const int n : {1, 7, 64, 150}) {
    const Matrix x = Activations(3 * n + 5, n, uint32_t(n));
    Matrix h = math->Gram(x);
    const Matrix u = InverseFactor(h, 0.01, *math);
    double mean = 0;
    for (int i = 0; i < n; ++i) mean += double(h.Row(i)[i]) / n;
    for (int i = 0; i < n; ++i) h.Row(i)[i] += float(0.01 * mean);
    // u h u^T must be the identity: H = U^-1 U^-T.
    const Matrix one = math->Product(math->Product(u, h), u);
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < n; ++j) {
        EXPECT_NEAR(one.Row(i)[j], i == j ? 1 : 0, 1e-3) << n;
        if (j < i) {
          EXPECT_EQ(u.Row(i)[j], 0);
        }
      }
  }
}

TEST(QoqCholesky, DampingGrowsUntilItIsDefinite) {
  const auto math = MakeMath();
  Matrix h(3, 3);  // rank 1, and an input that is never there
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 2; ++j) h.Row(i)[j] = -1;
  h.Row(0)[0] = h.Row(1)[1] = 0.5f;
  double used = 0;
  const Matrix u = InverseFactor(h, 1e-3, *math, &used);
  EXPECT_GT(used, 0.5);
  EXPECT_EQ(FindNotFinite(u), -1);
}

class QoqRound : public testing::TestWithParam<Storage> {};

TEST_P(QoqRound, EveryPassLowersTheOutputError) {
  const auto math = MakeMath();
  const Matrix w = Random(48, 384, 1), x = Activations(2048, 384, 2);
  const Matrix u = InverseFactor(math->Gram(x), 0.01, *math);
  Matrix nearest = w;
  RoundToNearest(GetParam(), *math, &nearest);
  double errors[2][2];
  for (const bool clip : {false, true})
    for (const bool gptq : {false, true}) {
      const auto r = Round(w, u, {GetParam(), clip, gptq}, *math);
      ASSERT_TRUE(r.ok()) << r.status().message();
      EXPECT_TRUE(weight::CheckRanges(r->codes.View(), "w").ok())
          << weight::CheckRanges(r->codes.View(), "w").message();
      errors[clip][gptq] = OutputError(w, r->w, x, *math);
    }
  const double rtn = OutputError(w, nearest, x, *math);
  EXPECT_NEAR(errors[0][0] / rtn, 1, 1e-6) << "nothing on is rounding to nearest";
  EXPECT_LT(errors[0][1], 0.75 * errors[0][0]);
  EXPECT_LE(errors[1][0], errors[0][0]);
  EXPECT_LT(errors[1][1], errors[0][1] * 1.02);
}

TEST_P(QoqRound, CodesStandForTheValues) {
  const auto math = MakeMath();
  const Matrix w = Random(20, 256, 3), x = Activations(512, 256, 4);
  const Matrix u = InverseFactor(math->Gram(x), 0.01, *math);
  const auto r = Round(w, u, {GetParam(), true, true}, *math);
  ASSERT_TRUE(r.ok());
  const weight::WeightView view = r->codes.View();
  const weight::Layout layout = weight::LayoutFor(GetParam(), false);
  std::vector<std::byte> memory(weight::PackedBytes(view, layout) + 64);
  auto* aligned = reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
  const weight::PackedWeight packed = weight::Pack(view, layout, aligned);
  std::vector<float> row(256);
  for (int i = 0; i < w.rows; ++i) {
    weight::DecodeRow(packed, i, row.data());
    for (int c = 0; c < w.cols; ++c) ASSERT_NEAR(row[size_t(c)], r->w.Row(i)[c], 1e-5) << i << " " << c;
  }
}

TEST_P(QoqRound, ThreadsDoNotMatter) {
  const Matrix w = Random(33, 256, 5), x = Activations(700, 256, 6);
  std::vector<uint8_t> codes;
  for (const int threads : {1, 2, 5}) {
    const auto math = MakeMath(threads);
    const auto r = Round(w, InverseFactor(math->Gram(x), 0.01, *math), {GetParam(), true, true}, *math);
    ASSERT_TRUE(r.ok());
    if (threads == 1) codes = r->codes.codes;
    EXPECT_EQ(codes, r->codes.codes);
  }
}

TEST_P(QoqRound, ZeroRowsAndHugeRows) {
  const auto math = MakeMath();
  Matrix w = Random(4, 128, 7);
  for (int c = 0; c < 128; ++c) w.Row(1)[c] = 0;
  const Matrix u = InverseFactor(math->Gram(Activations(256, 128, 8)), 0.01, *math);
  auto r = Round(w, u, {GetParam(), true, true}, *math);
  ASSERT_TRUE(r.ok());
  for (int c = 0; c < 128; ++c) EXPECT_EQ(r->w.Row(1)[c], 0);
  EXPECT_TRUE(weight::CheckRanges(r->codes.View(), "w").ok());
  w.Row(2)[5] = 3e7f;
  r = Round(w, u, {GetParam(), true, true}, *math);
  ASSERT_FALSE(r.ok());
  EXPECT_NE(r.status().message().find("row 2"), std::string::npos) << r.status().message();
}

INSTANTIATE_TEST_SUITE_P(Formats, QoqRound,
                         testing::Values(Storage::kW4A8Group, Storage::kW4A8Channel, Storage::kW8A8));

// Vector N: 1, .99, .98, ..., .21, .20.
TEST(QoqGrid, ClipRatios) {
  EXPECT_EQ(kClipSteps, 81);
  const int steps[] = {0, 1, 2, 3, 79, 80};
  const float ratios[] = {1, .99f, .98f, .97f, .21f, .20f};
  for (int i = 0; i < 6; ++i) EXPECT_NEAR(ClipRatio(steps[i]), ratios[i], 1e-6) << i;
}

// GPTQ's rounding can push weights past the range that s1 was made for: the codes must stay in 8 bits.
TEST(QoqGrid, StaysInEightBitsWhateverTheWeights) {
  std::mt19937 rng(9);
  std::uniform_real_distribution<float> uniform(-150, 150);
  const std::vector<float> importance(128, 1.0f);
  for (int trial = 0; trial < 2000; ++trial) {
    std::vector<float> w(128);
    const float shift = uniform(rng), size = std::exp2(uniform(rng) / 20);
    for (float& x : w) x = shift + size * uniform(rng) / 150;
    for (const bool clip : {false, true}) {
      const Grid g =
          FitGroupGrid(w, 1.0f, clip ? std::span<const float>(importance) : std::span<const float>());
      ASSERT_TRUE(g.scale >= 1 && g.scale <= 16 && g.zero >= 0 && g.zero <= 15);
      for (const float x : w) {
        const int value = (g.Code(x) - g.zero) * g.scale;
        ASSERT_TRUE(value >= -128 && value <= 127) << value;
      }
    }
  }
}

TEST(QoqMakeUp, RecoversWeightsForScaledInputs) {
  const auto math = MakeMath();
  const Matrix w = Random(8, 32, 10), exact = Activations(4000, 32, 11);
  Matrix x = exact;  // what arrives is half as large
  for (float& f : x.v) f *= 0.5f;
  Matrix missing = exact;
  for (size_t i = 0; i < missing.v.size(); ++i) missing.v[i] -= x.v[i];
  const Matrix gap = math->Product(w, math->Cross(x, missing));
  const Matrix u = InverseFactor(math->Gram(x), 1e-6, *math);
  const Matrix fitted = MakeUpFor(w, gap, u, *math);
  for (size_t i = 0; i < w.v.size(); ++i) EXPECT_NEAR(fitted.v[i], 2 * w.v[i], 0.02);
}

}  // namespace
}  // namespace nibble::qoq
