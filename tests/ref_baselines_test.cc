// SPDX-License-Identifier: Apache-2.0
// The definitions of KIVI, GEAR, H2O, the window and TurboQuant against sections 6.4 and 6.5, and what must
// hold of them on random data.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/ref/dense.h"
#include "kernels/ref/gear.h"
#include "kernels/ref/h2o.h"
#include "kernels/ref/turboquant.h"
#include "tests/support/ref_cases.h"

namespace nibble::ref {
namespace {

Matrix Minus(View a, View b) {
  Matrix out = Copy(a);
  for (int r = 0; r < out.rows; ++r)
    for (int d = 0; d < out.dim; ++d) out[r][d] -= b[r][d];
  return out;
}

TEST(RefKivi, Vector) {
  const Matrix k = BlockK();
  const struct {
    double min, scale;
    std::vector<int> codes;
  } want[] = {{-.55, .433333, {2, 0, 3, 1}},
              {-.95, .6, {1, 2, 3, 0}},
              {-.2, .333333, {3, 0, 1, 3}},
              {-.65, .416667, {3, 0, 1, 3}}};
  for (int d = 0; d < 4; ++d) {
    const KiviGroup g = KiviQuantize({k[0][d], k[1][d], k[2][d], k[3][d]}, 2);
    EXPECT_NEAR(g.min, want[d].min, 1e-9);
    EXPECT_NEAR(g.scale, want[d].scale, 1e-6);
    EXPECT_EQ(g.codes, want[d].codes);
  }
}

TEST(RefGear, Vector) {
  const Matrix k = BlockK(), residual = Minus(k, KiviDecoded(k, 2, GroupAxis::kChannel, 4));
  EXPECT_NEAR(FrobeniusNorm(residual), .343770, 1e-6);
  const Matrix start = MatrixOf({{1}, {.5}, {.25}, {.125}});
  EXPECT_NEAR(FrobeniusNorm(Minus(residual, Product(PowerIteration(residual, start)))), .190298, 1e-6);
  GearSpec spec{.bits = 2, .axis = GroupAxis::kChannel, .group = 4, .rank = 1, .loops = 3, .sparse = 0};
  EXPECT_NEAR(FrobeniusNorm(Minus(k, GearDecoded(k, spec, start))), .190298, 1e-6);
  // Low rank of X itself and then quantization, the order that reviews of the paper give, is not GEAR.
  const Matrix low = Product(PowerIteration(k, start)), rest = Minus(k, low);
  const Matrix wrong = Minus(rest, KiviDecoded(rest, 2, GroupAxis::kChannel, 4));
  EXPECT_GT(std::abs(FrobeniusNorm(wrong) - .190298), 1e-3);
}

TEST(RefGear, EveryPartReducesTheError) {
  Random random(41);
  for (const int dim : {64, 80, 128})
    for (const GroupAxis axis : {GroupAxis::kChannel, GroupAxis::kToken}) {
      const Matrix x = RandomMatrix(random, 200, dim), start = RandomMatrix(random, dim, 4);
      GearSpec spec{.bits = 2, .axis = axis, .group = 0, .rank = 0, .sparse = 0};
      const double plain = FrobeniusNorm(Minus(x, GearDecoded(x, spec, start)));
      spec.rank = 4;
      const double low_rank = FrobeniusNorm(Minus(x, GearDecoded(x, spec, start)));
      spec.sparse = .04;
      const double all = FrobeniusNorm(Minus(x, GearDecoded(x, spec, start)));
      EXPECT_LT(low_rank, plain);
      EXPECT_LT(all, low_rank);
    }
}

TEST(RefGear, ARankOneResidualVanishesAndDegenerateStartsAreSafe) {
  Random random(42);
  const Matrix a = RandomMatrix(random, 30, 1), b = RandomMatrix(random, 1, 20);
  Matrix e(30, 20);
  for (int r = 0; r < 30; ++r)
    for (int d = 0; d < 20; ++d) e[r][d] = a[r][0] * b[0][d];
  const Matrix start = RandomMatrix(random, 20, 3);
  EXPECT_LT(FrobeniusNorm(Minus(e, Product(PowerIteration(e, start)))), 1e-9 * FrobeniusNorm(e));
  const Matrix zero = Product(PowerIteration(Matrix(5, 20), start));
  for (const double x : zero.data) EXPECT_EQ(x, 0);
}

TEST(RefKivi, ErrorsAreWithinHalfAStepAndConstantGroupsExact) {
  Random random(43);
  for (const int group : {0, 32, 48})
    for (const int bits : {2, 4, 8}) {
      const Matrix x = RandomMatrix(random, 77, 80);
      const Matrix by_token = KiviDecoded(x, bits, GroupAxis::kToken, group);
      for (int r = 0; r < x.rows; ++r) {
        const auto [lo, hi] = std::minmax_element(x[r], x[r] + x.dim);
        for (int d = 0; d < x.dim; ++d)
          EXPECT_LE(std::abs(by_token[r][d] - x[r][d]), (*hi - *lo) / ((1 << bits) - 1) / 2 * (1 + 1e-9));
      }
    }
  const KiviGroup flat = KiviQuantize({.7, .7, .7}, 2);
  EXPECT_EQ(flat.scale, 0);
  EXPECT_EQ(flat.min, .7);
}

TEST(RefH2o, Trace) {
  H2o cache(3, 1);
  const std::vector<std::vector<double>> prefill = {{1}, {.7, .3}, {.5, .1, .4}, {.4, .1, .3, .2}};
  for (const auto& row : prefill) cache.AddPrefillRow({row.data(), 1, int(row.size()), int64_t(row.size())});
  const double scores[] = {2.6, .5, .7, .2};
  for (int n = 0; n < 4; ++n) EXPECT_NEAR(cache.score(n), scores[n], 1e-12);
  const struct {
    std::vector<double> logits;
    std::vector<int> live;
    std::vector<double> weights;
  } steps[] = {{{2, .5, 1, .2, .8}, {0, 2, 3, 4}, {.54515, .20055, .09011, .16419}},
               {{.1, .5, 1.5, .2, .8, 1}, {0, 2, 4, 5}, {.10495, .42558, .21134, .25813}},
               {{0, 0, .3, .1, 2, .7, .9}, {0, 2, 5, 6}, {.14656, .19783, .29513, .36048}}};
  for (const auto& step : steps) {
    const Matrix w =
        cache.Step({step.logits.data(), 1, int(step.logits.size()), int64_t(step.logits.size())});
    EXPECT_EQ(cache.live(), step.live);
    ExpectRow(w[0], step.weights, 5e-6);
  }
  EXPECT_NEAR(cache.score(0), 3.39665, 5e-6);
  EXPECT_NEAR(cache.score(2), 1.52397, 5e-6);
  EXPECT_NEAR(cache.score(5), .55326, 5e-6);
  EXPECT_NEAR(cache.score(6), .36048, 5e-6);
}

TEST(RefH2o, BudgetsHoldAndEvictedTokensStayAway) {
  Random random(44);
  for (const int group : {1, 3, 8}) {
    const int k = 20, local = 5;
    H2o cache(k, local);
    std::vector<bool> gone(400, false);
    for (int n = 0; n < 64; ++n) {
      Matrix w(group, n + 1);
      for (double& x : w.data) x = random.Uniform() / (n + 1);
      cache.AddPrefillRow(w);
    }
    for (int t = 64; t < 300; ++t) {
      const Matrix w = cache.Step(RandomMatrix(random, group, t + 1));
      const std::vector<int>& live = cache.live();
      ASSERT_EQ(int(live.size()), k + 1);
      for (int h = 0; h < group; ++h) EXPECT_NEAR(std::accumulate(w[h], w[h] + w.dim, 0.0), 1, 1e-12);
      for (int n = 0; n <= t; ++n) {
        const bool here = std::binary_search(live.begin(), live.end(), n);
        EXPECT_FALSE(here && gone[size_t(n)]);
        gone[size_t(n)] = !here;
        EXPECT_TRUE(here || n < t - local);
      }
    }
  }
}

TEST(RefWindow, KeepsSinksAndTheNewest) {
  EXPECT_EQ(WindowTokens(10, 2, 5), (std::vector<int>{0, 1, 7, 8, 9}));
  EXPECT_EQ(WindowTokens(4, 2, 5), (std::vector<int>{0, 1, 2, 3}));
  for (const int tokens : {128, 129, 4096}) EXPECT_EQ(WindowTokens(tokens, 16, 128).size(), 128u);
}

TEST(RefTurboQuant, LloydMaxTables) {
  const struct {
    int bits;
    std::vector<double> levels, boundaries;
    double distortion;
  } want[] = {{1, {.7978846}, {}, .363380},
              {2, {.4527800, 1.5104176}, {.9815988}, .117482},
              {3, {.2450942, .7560053, 1.3439093, 2.1519457}, {.5005497, 1.0499573, 1.7479275}, .034548},
              {4,
               {.1283950, .3880483, .6567591, .9423405, 1.2562312, 1.6180464, 2.0690172, 2.7325896},
               {.2582217, .5224037, .7995498, 1.0992858, 1.4371388, 1.8435318, 2.4008034},
               .009501}};
  for (const auto& w : want) {
    const LloydMax table = LloydMaxNormal(w.bits);
    const size_t half = w.levels.size();
    ASSERT_EQ(table.levels.size(), 2 * half);
    for (size_t i = 0; i < half; ++i) {
      EXPECT_NEAR(table.levels[half + i], w.levels[i], 2e-7) << w.bits << " " << i;
      EXPECT_NEAR(table.levels[half - 1 - i], -w.levels[i], 2e-7);
    }
    EXPECT_NEAR(table.boundaries[half - 1], 0, 1e-9);
    for (size_t i = 0; i + 1 < half; ++i) EXPECT_NEAR(table.boundaries[half + i], w.boundaries[i], 2e-7);
    EXPECT_NEAR(table.distortion, w.distortion, 1e-6);
    EXPECT_LT(table.distortion, std::sqrt(3.0) * M_PI / 2 * std::pow(4.0, -w.bits));
    EXPECT_GT(table.distortion, std::pow(4.0, -w.bits));
  }
  EXPECT_NEAR(LloydMaxNormal(4).entropy, 3.7653, 1e-4);
}

TEST(RefTurboQuant, Demo) {
  const std::vector<double> x = {.45, -.12, .75, .6};
  const LloydMax table = LloydMaxNormal(2);
  const TurboQuantVector v = TurboQuantEncode(x, table);
  EXPECT_NEAR(v.norm, 1.0674268, 1e-7);
  EXPECT_EQ(v.index, (std::vector<int>{3, 2, 1, 2}));
  std::vector<double> y = x;
  for (double& c : y) c /= v.norm;
  Hadamard(y);
  ExpectRow(y, {.786939, .337260, -.477785, .196735});
  ExpectRow(TurboQuantDecode(v, table, NormCorrection::kOff), {.523892, .040583, .523892, .523892});
  ExpectRow(TurboQuantDecode(v, table, NormCorrection::kOn), {.615664, .047692, .615664, .615664});
}

TEST(RefTurboQuant, HadamardIsItsOwnInverseAndKeepsLengths) {
  Random random(45);
  for (const size_t n : {1u, 2u, 64u, 128u}) {
    std::vector<double> x;
    for (size_t i = 0; i < n; ++i) x.push_back(random.Normal());
    std::vector<double> y = x;
    Hadamard(y);
    EXPECT_NEAR(Dot(x.data(), x.data(), int(n)), Dot(y.data(), y.data(), int(n)), 1e-10);
    Hadamard(y);
    ExpectRow(y, x, 1e-12);
  }
}

// The relative error of a random vector is the table's distortion; without the rotation an outlier channel
// ruins it, which is why it is there.
TEST(RefTurboQuant, ErrorIsTheDistortionThanksToTheRotation) {
  Random random(46);
  for (const int bits : {2, 3, 4}) {
    const LloydMax table = LloydMaxNormal(bits);
    double error = 0, unrotated = 0;
    const int trials = 200;
    for (int i = 0; i < trials; ++i) {
      std::vector<double> x;
      for (int d = 0; d < 128; ++d) x.push_back(random.Normal() * (d % 32 == 7 ? 8 : 1));
      const auto relative = [](const std::vector<double>& a, const std::vector<double>& b) {
        const double distance = Distance(a.data(), b.data(), 128);
        return distance * distance / Dot(a.data(), a.data(), 128);
      };
      error +=
          relative(x, TurboQuantDecode(TurboQuantEncode(x, table), table, NormCorrection::kOff)) / trials;
      std::vector<double> back = x;  // encoding H x rotates it back to x: no rotation
      Hadamard(back);
      unrotated +=
          relative(back, TurboQuantDecode(TurboQuantEncode(back, table), table, NormCorrection::kOff)) /
          trials;
    }
    EXPECT_NEAR(error, table.distortion, .15 * table.distortion);
    EXPECT_GT(unrotated, 1.5 * error);
  }
}

}  // namespace
}  // namespace nibble::ref
