// SPDX-License-Identifier: Apache-2.0
// Invariants of the SparQ definition over random shapes: 1 to 4096 tokens, head sizes 64, 80, 128, groups of
// 1 to 8 query heads.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "tests/support/ref_sparq.h"

namespace nibble::ref {
namespace {

struct RandomCase {
  Matrix q, k, v;
  SparqSpec spec;
};
RandomCase MakeCase(Random& random, int tokens, int dim, int group) {
  RandomCase c{RandomMatrix(random, group, dim, 2),
               RandomMatrix(random, tokens, dim),
               RandomMatrix(random, tokens, dim),
               {}};
  c.spec.r = 1 + random.Below(dim);
  c.spec.k = 1 + random.Below(tokens);
  c.spec.local = random.Below(c.spec.k + 1);
  c.spec.sinks = random.Below(c.spec.k - c.spec.local + 1);
  c.spec.reallocation = Reallocation(random.Below(6));
  c.spec.ranking = GroupRanking(random.Below(2));
  return c;
}
constexpr int kShapes = 14;  // random ones a test

TEST(RefSparqProperty, WeightsAlphaAndForcedTokens) {
  Random random(21);
  for (const RandomShape& shape : RandomShapes(random, kShapes)) {
    const RandomCase c = MakeCase(random, shape.tokens, shape.dim, shape.group);
    const SparqStep s = Decode(c.q, c.k, c.v, c.spec);
    EXPECT_EQ(int(s.tokens.size()), std::min(c.spec.k, shape.tokens));
    EXPECT_EQ(int(s.components.size()), c.spec.r);
    EXPECT_TRUE(std::is_sorted(s.tokens.begin(), s.tokens.end()));
    for (int h = 0; h < shape.group; ++h) {
      double sum = 0;
      for (int n = 0; n < shape.tokens; ++n) sum += s.weights[h][n];
      EXPECT_NEAR(sum, 1, 1e-12);
      EXPECT_GT(s.alpha[size_t(h)], 0);
      EXPECT_LE(s.alpha[size_t(h)], 1 + 1e-12);
      EXPECT_EQ(s.alpha[size_t(h)] == 1, int(s.tokens.size()) == shape.tokens);
    }
    for (int n = 0; n < shape.tokens; ++n)
      if (n < c.spec.sinks || n >= shape.tokens - c.spec.local) {
        EXPECT_TRUE(std::binary_search(s.tokens.begin(), s.tokens.end(), n)) << n;
      }
  }
}

// Every component of y lies between the extremes of the selected V rows and the mean.
TEST(RefSparqProperty, OutputLiesInTheHullOfSelectedRowsAndMean) {
  Random random(22);
  for (const RandomShape& shape : RandomShapes(random, kShapes)) {
    RandomCase c = MakeCase(random, shape.tokens, shape.dim, shape.group);
    c.spec.reallocation = Reallocation::kMean;
    const SparqStep s = Decode(c.q, c.k, c.v, c.spec);
    const std::vector<double> mean = RowMean(c.v);
    for (int d = 0; d < shape.dim; ++d) {
      double lo = mean[size_t(d)], hi = lo;
      for (const int n : s.tokens) {
        lo = std::min(lo, c.v[n][d]);
        hi = std::max(hi, c.v[n][d]);
      }
      for (int h = 0; h < shape.group; ++h) {
        EXPECT_GE(s.out[h][d], lo - 1e-12);
        EXPECT_LE(s.out[h][d], hi + 1e-12);
      }
    }
  }
}

TEST(RefSparqProperty, EverythingSelectedIsDense) {
  Random random(23);
  for (const RandomShape& shape : RandomShapes(random, kShapes)) {
    RandomCase c = MakeCase(random, shape.tokens, shape.dim, shape.group);
    c.spec.k = shape.tokens + random.Below(5);
    const SparqStep s = Decode(c.q, c.k, c.v, c.spec);
    const AttentionResult dense = Dense(c.q, c.k, c.v);
    for (int h = 0; h < shape.group; ++h) {
      EXPECT_EQ(s.alpha[size_t(h)], 1);
      ExpectRow(s.out[h], RowOf(dense.out, h), 1e-12);
    }
  }
}

TEST(RefSparqProperty, PermutingTokensThatAreNotLocalChangesNothing) {
  Random random(24);
  for (const RandomShape& shape : RandomShapes(random, kShapes)) {
    const int local = std::min(16, shape.tokens), rest = shape.tokens - local, dim = shape.dim;
    RandomCase c = MakeCase(random, shape.tokens, dim, shape.group);
    c.spec = Spec(24, std::min(64, shape.tokens), local);
    std::vector<int> order;
    for (int n = 0; n < rest; ++n) order.push_back(n);
    for (int n = rest; n-- > 1;) std::swap(order[size_t(n)], order[size_t(random.Below(n + 1))]);
    Matrix k = c.k, v = c.v;
    for (int n = 0; n < rest; ++n) {
      std::copy(c.k[n], c.k[n] + dim, k[order[size_t(n)]]);
      std::copy(c.v[n], c.v[n] + dim, v[order[size_t(n)]]);
    }
    const SparqStep a = Decode(c.q, c.k, c.v, c.spec), b = Decode(c.q, k, v, c.spec);
    for (int h = 0; h < shape.group; ++h) ExpectRow(a.out[h], RowOf(b.out, h), 1e-12);
  }
}

TEST(RefSparqProperty, MaskedTokensDoNotExist) {
  Random random(25);
  for (const RandomShape& shape : RandomShapes(random, kShapes)) {
    const int dim = shape.dim;
    RandomCase c = MakeCase(random, shape.tokens, dim, shape.group);
    std::vector<bool> visible;
    Matrix k(0, dim), v(0, dim);
    for (int n = 0; n < shape.tokens; ++n) {
      visible.push_back(n == 0 || random.Below(3) != 0);
      if (!visible.back()) {
        std::fill(c.k[n], c.k[n] + dim, NAN);
        std::fill(c.v[n], c.v[n] + dim, NAN);
        continue;
      }
      k.data.insert(k.data.end(), c.k[n], c.k[n] + dim);
      v.data.insert(v.data.end(), c.v[n], c.v[n] + dim);
      ++k.rows, ++v.rows;
    }
    for (const Reallocation how : {Reallocation::kOff, Reallocation::kMean, Reallocation::kUnselectedMean,
                                   Reallocation::kWeightedMean}) {
      c.spec = Spec(16, 40, 8);
      c.spec.reallocation = how;
      const SparqStep masked = SparqDecode(c.q, c.k, c.k, c.v, c.spec, &visible),
                      cut = Decode(c.q, k, v, c.spec);
      for (int h = 0; h < shape.group; ++h) {
        ExpectRow(masked.out[h], RowOf(cut.out, h), 1e-12);
        for (int n = 0; n < shape.tokens; ++n)
          if (!visible[size_t(n)]) {
            EXPECT_EQ(masked.weights[h][n], 0);
          }
      }
    }
  }
}

// A mean over the whole padded buffer, zeros included, as a released implementation has it: masking the
// padding restores the result, not masking it is seen.
TEST(RefSparqProperty, AMeanDilutedByPaddingIsCaught) {
  Random random(29);
  RandomCase c = MakeCase(random, 100, 64, 1);
  c.spec = Spec(16, 20, 0);
  for (double& x : c.v.data) x += 1;
  const SparqStep plain = Decode(c.q, c.k, c.v, c.spec);
  Matrix k(256, 64), v(256, 64);
  std::copy(c.k.data.begin(), c.k.data.end(), k.data.begin());
  std::copy(c.v.data.begin(), c.v.data.end(), v.data.begin());
  std::vector<bool> visible(256, false);
  std::fill(visible.begin(), visible.begin() + 100, true);
  ExpectRow(SparqDecode(c.q, k, k, v, c.spec, &visible).out[0], RowOf(plain.out, 0), 1e-13);
  EXPECT_GT(Distance(Decode(c.q, k, v, c.spec).out[0], plain.out[0], 64), .1);
}

TEST(RefSparqProperty, RunningMeanIsTheMean) {
  Random random(26);
  const Matrix v = RandomMatrix(random, 4096, 64, 10);
  RunningMean mean(64);
  for (int n = 0; n < v.rows; ++n) {
    mean.Append(v[n]);
    if (n % 911 == 0 || n == v.rows - 1) ExpectRow(mean.mean(), RowMean(v.Slice(0, n + 1)), 1e-11);
  }
}

// F-S3: tokens of a full group lie within half a step, those of an open one are f16.
TEST(RefSparqProperty, RankingKeysKeepTheirBound) {
  Random random(27);
  for (const RandomShape& shape : RandomShapes(random, kShapes)) {
    const int tokens = shape.tokens;
    const Matrix k = RandomMatrix(random, tokens, shape.dim);
    for (const KtFormat format : {KtFormat::kInt4, KtFormat::kInt8}) {
      const Matrix copy = RankingKeys(k, format, 32, Storage::kExact);
      const int levels = format == KtFormat::kInt4 ? 7 : 127;
      for (int n = 0; n < tokens; ++n)
        for (int d = 0; d < shape.dim; ++d) {
          if (n >= tokens / 32 * 32) {
            EXPECT_EQ(copy[n][d], RoundToF16(k[n][d]));
            continue;
          }
          double amax = 0;
          for (int i = n / 32 * 32; i < n / 32 * 32 + 32; ++i) amax = std::max(amax, std::abs(k[i][d]));
          EXPECT_LE(std::abs(copy[n][d] - k[n][d]), amax / levels / 2 + 1e-12);
        }
    }
  }
}

// F-S6: a needle that ranking places outside k is still found, once, when its chunk's best weight passes eps.
TEST(RefSparqProperty, ChunkBestsAndEscalation) {
  Random random(28);
  RandomCase c = MakeCase(random, 256, 64, 1);
  c.spec = Spec(8, 16, 4);
  const size_t plain = Decode(c.q, c.k, c.v, c.spec).tokens.size();
  c.spec.chunk = 32;
  const SparqStep chunks = Decode(c.q, c.k, c.v, c.spec);
  EXPECT_GT(chunks.tokens.size(), plain);
  for (int begin = 0; begin < 256; begin += 32) {
    const double* w = chunks.weights[0];
    const int best = int(std::max_element(w + begin, w + begin + 32) - w);
    EXPECT_TRUE(std::binary_search(chunks.tokens.begin(), chunks.tokens.end(), best) || begin == 224)
        << begin;
  }
  c.spec.chunk = 0;
  c.spec.alpha_min = 2;  // nothing reaches it
  const SparqStep dense = Decode(c.q, c.k, c.v, c.spec);
  EXPECT_EQ(dense.path, SparqStep::Path::kDense);
  ExpectRow(dense.out[0], RowOf(Dense(c.q, c.k, c.v).out, 0), 1e-12);
  c.spec.alpha_min = 1e-9;
  EXPECT_EQ(Decode(c.q, c.k, c.v, c.spec).path, SparqStep::Path::kSparse);
}

}  // namespace
}  // namespace nibble::ref
