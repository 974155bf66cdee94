// SPDX-License-Identifier: Apache-2.0
// The definition of SparQ against vectors S1-S10, G1, G2 and G4. Its invariants are in
// ref_sparq_invariants_test.cc.
#include "tests/support/ref_sparq.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/ref/sparq.h"

namespace nibble::ref {
namespace {

Matrix FromDMajor(const Matrix& m) {
  Matrix t(m.dim, m.rows);
  for (int r = 0; r < m.rows; ++r)
    for (int d = 0; d < m.dim; ++d) t[d][r] = m[r][d];
  return t;
}
Matrix KeysS1() {
  return FromDMajor(
      MatrixOf({{.1, -.2, .8, .3}, {-.4, 1.5, -.6, 1.1}, {.9, -.7, .5, -.1}, {-.3, .6, .4, -.8}}));
}

TEST(RefSparq, S1_Steps) {
  const Matrix k = KeysS1(), v = BlockV(), q = BlockQ();
  const AttentionResult dense = Dense(q, k, v);
  ExpectRow(dense.out[0], {.024961, .237313, .125127, .083727});
  for (const int local : {0, 1}) {
    const SparqStep s = Decode(q, k, v, Spec(2, 2, local));
    EXPECT_EQ(s.components, (std::vector<int>{2, 3}));
    EXPECT_NEAR(s.tau[0], 1.632993, 1e-6);
    ExpectRow(s.weights[0], {.427315, .084848, .226027, .261811});
    EXPECT_EQ(s.tokens, (std::vector<int>{0, 3}));
    EXPECT_NEAR(s.alpha[0], .689126, 1e-6);
    ExpectRow(s.out[0], {.343025, .140118, .073608, .066816});
    EXPECT_NEAR(Distance(s.out[0], dense.out[0], 4), .336974, 1e-6);
  }
  SparqSpec off = Spec(2, 2, 0);
  off.reallocation = Reallocation::kOff;
  EXPECT_NEAR(Distance(Decode(q, k, v, off).out[0], dense.out[0], 4), .437044, 1e-6);
  const SparqStep three = Decode(q, k, v, Spec(2, 3, 1));
  EXPECT_EQ(three.tokens, (std::vector<int>{0, 2, 3}));
  EXPECT_NEAR(three.alpha[0], .915152, 1e-6);
  ExpectRow(three.out[0], {-.002694, .285787, .084885, .094428});
  const SparqStep all = Decode(q, k, v, Spec(4, 4, 0));
  EXPECT_EQ(all.alpha[0], 1);
  ExpectRow(all.out[0], RowOf(dense.out, 0), 1e-15);
}

TEST(RefSparq, S2_PaperFigure5) {
  const Matrix q = MatrixOf({{.8, -.2, -1.3, .4}});
  const Matrix k =
      FromDMajor(MatrixOf({{.2, 1.5, -.7, .6}, {-1.2, .4, 1.3, -.3}, {.5, -.8, .9, .1}, {1.1, -1, .2, 1.4}}));
  const SparqStep s = Decode(q, k, BlockV(), Spec(2, 2, 0));
  EXPECT_EQ(s.components, (std::vector<int>{0, 2}));
  EXPECT_NEAR(s.tau[0], 1.763834, 1e-6);
  ExpectRow(s.weights[0], {.128106, .602219, .063424, .206251});
  EXPECT_EQ(s.tokens, (std::vector<int>{1, 3}));
  EXPECT_NEAR(s.alpha[0], .80847, 1e-6);
  ExpectRow(s.out[0], {.583684, -.591268, .782668, -.231566});
  ExpectRow(Dense(q, k, BlockV()).out[0], {.474583, -.351670, .564075, -.118398});
}

TEST(RefSparq, S3_OneComponentForTheGroup) {
  const Matrix first = MatrixOf({{1, 10}, {-20, 2}}), second = MatrixOf({{30, 3}, {4, 40}});
  EXPECT_EQ(SparqComponents(first, 1), (std::vector<int>{0}));
  EXPECT_EQ(SparqComponents(second, 1), (std::vector<int>{1}));
  EXPECT_NEAR(SparqTemperature(first[0], 2, {0}), .426401, 1e-6);
  EXPECT_NEAR(SparqTemperature(first[1], 2, {0}), 1.3484, 1e-5);
  EXPECT_NEAR(SparqTemperature(second[0], 2, {1}), .426401, 1e-6);
  EXPECT_NEAR(SparqTemperature(second[1], 2, {1}), 1.3484, 1e-5);
}

// Logits [4,0,3] and [-6,0,-.5] made through keys of two components, r = d = 2: tau = sqrt(2).
TEST(RefSparq, S4_SumOfSoftmaxAndSumOfLogitsDisagree) {
  const double t = std::sqrt(2.0);
  const Matrix q = MatrixOf({{t, 0}, {0, t}}), k = MatrixOf({{4, -6}, {0, 0}, {3, -.5}});
  SparqSpec spec = Spec(2, 1, 0);
  const SparqStep softmax = Decode(q, k, k, spec);
  EXPECT_EQ(softmax.tokens, (std::vector<int>{0}));
  const double sums[] = {.722940, .634713, .642347};
  for (int n = 0; n < 3; ++n) EXPECT_NEAR(softmax.weights[0][n] + softmax.weights[1][n], sums[n], 1e-6);
  spec.ranking = GroupRanking::kSumLogits;
  EXPECT_EQ(Decode(q, k, k, spec).tokens, (std::vector<int>{2}));
}

TEST(RefSparq, S5_Transfers) {
  EXPECT_EQ(DenseTransfer(4096, 128), 1048832);
  EXPECT_EQ(SparqTransfer(4096, 128, 32, 128), 164352);
  EXPECT_EQ(H2oTransfer(4096, 128, 128), 41216);
  EXPECT_EQ(WindowTransfer(128, 128), 33024);
  EXPECT_EQ(TopVTransfer(4096, 128, 128), 540928);
  EXPECT_EQ(DenseTransfer(131072, 128), 33554688);
  EXPECT_EQ(SparqTransfer(131072, 128, 10, 10922), 4107264);
  const auto speedup = [](int64_t s, int64_t r, int64_t k) {
    return double(DenseTransfer(s, 128)) / double(SparqTransfer(s, 128, r, k));
  };
  EXPECT_NEAR(speedup(4096, 32, 128), 6.382, 1e-3);
  EXPECT_NEAR(speedup(131072, 10, 10922), 8.170, 1e-3);
  EXPECT_NEAR(speedup(2048, 32, 128), 5.31, 5e-3);
  EXPECT_NEAR(speedup(2048, 16, 128), 7.94, 5e-3);
  EXPECT_NEAR(speedup(4096, 16, 128), 10.61, 5e-3);
  EXPECT_NEAR(speedup(16384, 32, 128), 7.52, 5e-3);
  EXPECT_NEAR(speedup(131072, 32, 128), 7.94, 5e-3);
  const double dense_bytes = 2.0 * double(DenseTransfer(4096, 128));
  EXPECT_NEAR(dense_bytes / SparqTransferBytes(4096, 128, 32, 128, 4.5), 14.95, .25);
  EXPECT_NEAR(dense_bytes / SparqTransferBytes(4096, 128, 32, 128, 8.25), 10.4, .1);
}

TEST(RefSparq, S6_RunningMean) {
  const Matrix v = BlockV();
  const std::vector<std::vector<double>> want = {
      {.2, .7, -.5, .4}, {.4, -.05, .25, .1}, {-.033333, .133333, .266667, .1}, {.175, -.05, .375, -.025}};
  RunningMean mean(4);
  for (int n = 0; n < 4; ++n) {
    mean.Append(v[n]);
    ExpectRow(mean.mean(), want[size_t(n)]);
  }
}

struct CaseGWant {
  int r, k, local;
  std::vector<int> components, tokens;
  double tau, alpha, mean, off, unselected, weighted, block, block_unselected, int4_shift;
};
const CaseGWant kCaseG[] = {{2,
                             4,
                             1,
                             {1, 5},
                             {7, 13, 14, 15},
                             2.132522,
                             .499238,
                             .143411,
                             .446289,
                             .126506,
                             .075832,
                             .151065,
                             .133025,
                             .005991},
                            {4,
                             4,
                             1,
                             {0, 1, 4, 5},
                             {0, 13, 14, 15},
                             2.646781,
                             .522546,
                             .191630,
                             .563915,
                             .137108,
                             .020777,
                             .113418,
                             .126939,
                             .008141},
                            {4,
                             8,
                             2,
                             {0, 1, 4, 5},
                             {0, 1, 4, 7, 11, 13, 14, 15},
                             2.646781,
                             .790064,
                             .066638,
                             .149673,
                             .026181,
                             .014495,
                             .071646,
                             .017431,
                             .008141}};

double ErrorG(const CaseG& g, SparqSpec spec, Reallocation how) {
  spec.reallocation = how;
  spec.mean_block = 4;
  return Distance(Decode(g.q, g.k, g.v, spec).out[0], Dense(g.q, g.k, g.v).out[0], 8);
}

TEST(RefSparq, G1_G2_S8_GeneratedCase) {
  const CaseG g;
  ExpectRow(g.q[0], {-.959195, -.966904, .345246, .269808, .820059, -2.325230, -.008221, .096698});
  for (const CaseGWant& w : kCaseG) {
    const SparqSpec spec = Spec(w.r, w.k, w.local);
    const SparqStep s = Decode(g.q, g.k, g.v, spec);
    EXPECT_EQ(s.components, w.components);
    EXPECT_EQ(s.tokens, w.tokens);
    EXPECT_NEAR(s.tau[0], w.tau, 1e-6);
    EXPECT_NEAR(s.alpha[0], w.alpha, 1e-6);
    EXPECT_NEAR(ErrorG(g, spec, Reallocation::kMean), w.mean, 1e-6);
    EXPECT_NEAR(ErrorG(g, spec, Reallocation::kOff), w.off, 1e-6);
    EXPECT_NEAR(ErrorG(g, spec, Reallocation::kUnselectedMean), w.unselected, 1e-6);
    EXPECT_NEAR(ErrorG(g, spec, Reallocation::kWeightedMean), w.weighted, 1e-6);
    EXPECT_NEAR(ErrorG(g, spec, Reallocation::kBlockMean), w.block, 1e-6);
    EXPECT_NEAR(ErrorG(g, spec, Reallocation::kBlockUnselectedMean), w.block_unselected, 1e-6);
  }
  ExpectRow(Decode(g.q, g.k, g.v, Spec(2, 4, 1)).out[0],
            {.095333, -.358244, .293050, .063072, .143920, -.154118, -.123155, -.236574});
  ExpectRow(Decode(g.q, g.k, g.v, Spec(8, 16, 0)).out[0], RowOf(Dense(g.q, g.k, g.v).out, 0), 1e-15);
}

TEST(RefSparq, G4_Int4CopyOfTheKeys) {
  const CaseG g;
  const Matrix int4 = RankingKeys(g.k, KtFormat::kInt4, 8, Storage::kExact);
  for (const CaseGWant& w : kCaseG) {
    const SparqSpec spec = Spec(w.r, w.k, w.local);
    const SparqStep exact = Decode(g.q, g.k, g.v, spec), approximate = SparqDecode(g.q, g.k, int4, g.v, spec);
    EXPECT_EQ(approximate.tokens, exact.tokens);
    double worst = 0;
    for (int n = 0; n < 16; ++n)
      worst = std::max(worst, std::abs(approximate.weights[0][n] - exact.weights[0][n]));
    EXPECT_NEAR(worst, w.int4_shift, 1e-6);
  }
}

TEST(RefSparq, S9_AdaptiveK) {
  const CaseG g;
  const struct {
    double target;
    int k;
    double alpha;
  } cases[] = {{.5, 4, .522546}, {.75, 7, .750962}, {.9, 12, .920899}};
  for (const auto& c : cases) {
    SparqSpec spec = Spec(4, 0, 1);
    spec.alpha_target = c.target;
    const SparqStep s = Decode(g.q, g.k, g.v, spec);
    EXPECT_EQ(int(s.tokens.size()), c.k);
    EXPECT_NEAR(s.alpha[0], c.alpha, 1e-6);
    if (c.k == 7) {
      EXPECT_EQ(s.tokens, (std::vector<int>{0, 4, 7, 11, 13, 14, 15}));
    }
    spec.k_max = 3;
    EXPECT_EQ(Decode(g.q, g.k, g.v, spec).tokens.size(), 3u);
  }
}

TEST(RefSparq, S10_AdaptiveR) {
  const CaseG g;
  const double coverage[] = {.4015, .5685, .7341, .8757, .9353, .9819, .9986, 1};
  double all = 0;
  for (int d = 0; d < 8; ++d) all += std::abs(g.q[0][d]);
  for (int r = 1; r <= 8; ++r) {
    double held = 0;
    for (const int d : SparqComponents(g.q, r)) held += std::abs(g.q[0][d]);
    EXPECT_NEAR(held / all, coverage[r - 1], 5e-5) << r;
  }
  SparqSpec spec;
  spec.r_min = spec.r_step = 1;
  spec.r_max = 8;
  const double rho[] = {.5, .7, .85, .95};
  const int r[] = {2, 3, 4, 6};
  for (int i = 0; i < 4; ++i) {
    spec.coverage = rho[i];
    EXPECT_EQ(SparqAdaptiveR(g.q, spec), r[i]);
  }
}

TEST(RefSparq, TemperatureLimits) {
  const std::vector<double> flat(64, .5), none(64, 0.0);
  std::vector<double> one(64, 0.0);
  one[5] = 3;
  EXPECT_NEAR(SparqTemperature(flat.data(), 64, {0, 1, 2, 3, 4, 5, 6, 7}), std::sqrt(8.0), 1e-12);
  EXPECT_NEAR(SparqTemperature(one.data(), 64, {5}), 8, 1e-12);
  EXPECT_NEAR(SparqTemperature(none.data(), 64, {0}), 8, 1e-12);
}

// The "+1 for local tokens" trick on a summed score: with a group of more than one a sum of weights passes 1
// and a local token is lost. Forced selection must not lose it.
TEST(RefSparq, AddingOneForLocalTokensIsCaught) {
  const double t = std::sqrt(2.0);
  const Matrix q = MatrixOf({{t, 0}, {0, t}}), k = MatrixOf({{9, 9}, {0, 0}, {-9, -9}});
  const SparqStep s = Decode(q, k, k, Spec(2, 1, 1));
  EXPECT_EQ(s.tokens, (std::vector<int>{2}));
  std::vector<double> score;
  for (int n = 0; n < 3; ++n) score.push_back(s.weights[0][n] + s.weights[1][n] + (n == 2 ? 1 : 0));
  EXPECT_EQ(std::max_element(score.begin(), score.end()) - score.begin(), 0);
}

}  // namespace
}  // namespace nibble::ref
