// SPDX-License-Identifier: Apache-2.0
// The published orderings on synthetic heads with the structure of large models. Each comes with its negative
// control: on data that lacks the structure the gain must be absent, or the tensors would prove nothing.
#include "tests/support/synthetic.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/ref/gear.h"
#include "kernels/ref/sage.h"
#include "kernels/ref/sas.h"
#include "kernels/ref/sparq.h"

namespace nibble::ref {
namespace {

constexpr int kSeeds = 3;

SyntheticHead Head(const std::string& set, int seed, int tokens = 512) {
  SyntheticSpec spec = SyntheticSet(set);
  spec.seed = uint64_t(seed);
  spec.tokens = tokens;
  return MakeSynthetic(spec);
}

AttentionResult Exact(const SyntheticHead& h) {
  return DenseAttention(h.q, h.k, h.v, h.scale, Mask::kCausal);
}

// Cosine in percent of SageAttention with the exact P and V.
double Int4Cosine(const SyntheticHead& h, const AttentionResult& exact, Granularity granularity,
                  bool smooth) {
  SageSpec spec = Sage2Int4(h.q.dim);
  spec.q.groups = QueryGroups(granularity);
  spec.k.groups = KeyGroups(granularity);
  spec.smooth_k = spec.smooth_q = smooth;
  spec.pv = PvFormat::kExact;
  spec.accumulator = {};
  return 100 * Compare(exact.out, SageAttention(h.q, h.k, h.v, spec).out).cosine;
}

double PvCosine(const SyntheticHead& h, const AttentionResult& exact, PvFormat format) {
  SageSpec spec = Sage2Int8(h.q.dim);
  spec.quantize_qk = false;
  spec.pv = format;
  spec.accumulator = {};
  if (format == PvFormat::kInt8) spec.p_offset = 0;
  if (format == PvFormat::kE5M2) {
    spec.p_offset = std::log2(MaxFp8(Fp8::kE5M2));
    spec.v_max = MaxFp8(Fp8::kE5M2);
  }
  return 100 * Compare(exact.out, SageAttention(h.q, h.k, h.v, spec).out).cosine;
}

TEST(Synthetic, SeedsDetermineTheHead) {
  EXPECT_EQ(Head("S1 outliers", 1, 64).k.data, Head("S1 outliers", 1, 64).k.data);
  EXPECT_NE(Head("S1 outliers", 1, 64).k.data, Head("S1 outliers", 2, 64).k.data);
}

TEST(Synthetic, StructureIsThere) {
  for (int seed = 1; seed <= kSeeds; ++seed) {
    const SyntheticStructure gaussian = Structure(Head("S0 Gaussian", seed)),
                             base = Structure(Head("S1 outliers", seed)),
                             severe = Structure(Head("S2 severe", seed)),
                             sink = Structure(Head("S5 sink", seed)), flat = Structure(Head("S3 flat", seed));
    EXPECT_LT(gaussian.k_channel_ratio, 2);
    EXPECT_GT(base.k_channel_ratio, 4);
    EXPECT_GT(severe.k_channel_ratio, base.k_channel_ratio);
    EXPECT_GT(base.k_mean_ratio, 1.5);
    EXPECT_LT(gaussian.k_mean_ratio, .3);
    EXPECT_NEAR(base.sink_mass, .4, .2);
    EXPECT_NEAR(sink.sink_mass, .9, .06);
    EXPECT_GT(base.v_ratio, 20);
    EXPECT_LT(gaussian.v_ratio, 13);
    EXPECT_GT(flat.effective_tokens, 3 * base.effective_tokens);
  }
}

TEST(Synthetic, SmoothingLiftsInt4ByTenPointsOnOutliers) {
  for (int seed = 1; seed <= kSeeds; ++seed) {
    for (const char* set : {"S1 outliers", "S2 severe"}) {
      const SyntheticHead h = Head(set, seed);
      const AttentionResult exact = Exact(h);
      EXPECT_GE(Int4Cosine(h, exact, Granularity::kThread, true),
                Int4Cosine(h, exact, Granularity::kThread, false) + 10)
          << set << " seed " << seed;
    }
    const SyntheticHead plain = Head("S0 Gaussian", seed);
    const AttentionResult exact = Exact(plain);
    EXPECT_NEAR(Int4Cosine(plain, exact, Granularity::kThread, true),
                Int4Cosine(plain, exact, Granularity::kThread, false), 2);
  }
}

TEST(Synthetic, FinerScalesAreBetter) {
  for (int seed = 1; seed <= kSeeds; ++seed) {
    const SyntheticHead h = Head("S1 outliers", seed);
    const AttentionResult exact = Exact(h);
    const double thread = Int4Cosine(h, exact, Granularity::kThread, true),
                 block = Int4Cosine(h, exact, Granularity::kBlock, true),
                 tensor = Int4Cosine(h, exact, Granularity::kTensor, true);
    EXPECT_GT(thread, block) << seed;
    EXPECT_GT(block, tensor) << seed;
  }
}

TEST(Synthetic, E4M3BeatsE5M2BeatsInt8OnSinks) {
  for (int seed = 1; seed <= kSeeds; ++seed) {
    const SyntheticHead h = Head("S5 sink", seed);
    const AttentionResult exact = Exact(h);
    const double e4m3 = PvCosine(h, exact, PvFormat::kE4M3), e5m2 = PvCosine(h, exact, PvFormat::kE5M2),
                 int8 = PvCosine(h, exact, PvFormat::kInt8), f16 = PvCosine(h, exact, PvFormat::kF16);
    EXPECT_GT(f16, e4m3) << seed;
    EXPECT_GT(e4m3, e5m2) << seed;
    EXPECT_GT(e5m2, int8) << seed;
  }
}

// K by channel far above by token, V the other way where a sink shares its channel's step with the others.
TEST(Synthetic, KeysByChannelValuesByToken) {
  for (int seed = 1; seed <= kSeeds; ++seed) {
    const SyntheticHead h = Head("S1 outliers", seed), sink = Head("S5 sink", seed);
    const AttentionResult exact = Exact(h), exact_sink = Exact(sink);
    const auto cosine = [&](const Matrix& k, const Matrix& v) {
      return 100 * Compare(exact.out, DenseAttention(h.q, k, v, h.scale, Mask::kCausal).out).cosine;
    };
    const double by_channel = cosine(KiviDecoded(h.k, 4, GroupAxis::kChannel, 64), h.v),
                 by_token = cosine(KiviDecoded(h.k, 4, GroupAxis::kToken, 0), h.v);
    EXPECT_GT(by_channel, 98.3) << seed;
    EXPECT_LT(by_token, 85) << seed;
    const auto sink_cosine = [&](GroupAxis axis, int group) {
      const Matrix v = KiviDecoded(sink.v, 4, axis, group);
      return 100 *
             Compare(exact_sink.out, DenseAttention(sink.q, sink.k, v, sink.scale, Mask::kCausal).out).cosine;
    };
    EXPECT_GT(sink_cosine(GroupAxis::kToken, 0), sink_cosine(GroupAxis::kChannel, 64)) << seed;
  }
}

double SparqCosine(const SyntheticHead& h, Reallocation how) {
  SparqSpec spec;
  spec.r = 32;
  spec.k = 64;
  spec.local = 16;
  spec.reallocation = how;
  Matrix exact(0, h.v.dim), got(0, h.v.dim);
  for (int t = h.q.rows / 2; t < h.q.rows; t += 9) {
    const View q = h.q.Slice(t, t + 1), k = h.k.Slice(0, t + 1), v = h.v.Slice(0, t + 1);
    const Matrix dense = DenseAttention(q, k, v, h.scale, Mask::kFull).out,
                 sparse = SparqDecode(q, k, k, v, spec).out;
    exact.data.insert(exact.data.end(), dense.data.begin(), dense.data.end());
    got.data.insert(got.data.end(), sparse.data.begin(), sparse.data.end());
    exact.rows = ++got.rows;
  }
  return 100 * Compare(exact, got).cosine;
}

TEST(Synthetic, ReallocationHelpsFlatHeads) {
  for (int seed = 1; seed <= kSeeds; ++seed) {
    const SyntheticHead flat = Head("S3 flat", seed), peaky = Head("S4 peaky", seed);
    const double flat_gain = SparqCosine(flat, Reallocation::kMean) - SparqCosine(flat, Reallocation::kOff),
                 peaky_gain =
                     SparqCosine(peaky, Reallocation::kMean) - SparqCosine(peaky, Reallocation::kOff);
    EXPECT_GT(flat_gain, 1) << seed;
    EXPECT_GT(flat_gain, 5 * std::abs(peaky_gain)) << seed;
    EXPECT_GE(SparqCosine(flat, Reallocation::kWeightedMean), SparqCosine(flat, Reallocation::kMean)) << seed;
  }
}

double MeanDropped(const SyntheticHead& h, double threshold) {
  double mass = 0;
  int rows = 0;
  for (int t = h.q.rows / 2; t < h.q.rows; t += 7, ++rows) {
    std::vector<double> scores;
    for (int n = 0; n <= t; ++n) scores.push_back(h.scale * Dot(h.q[t], h.k[n], h.q.dim));
    mass += DroppedBySas({SasPolynomial::kPaper, threshold}, scores).mass;
  }
  return mass / rows;
}

// T9 on heads: what -6 drops grows as rows get flatter and longer; the threshold from eps and length holds.
TEST(Synthetic, SasDropsMassOnFlatRows) {
  for (int seed = 1; seed <= kSeeds; ++seed) {
    const SyntheticHead flat = Head("S3 flat", seed), peaky = Head("S4 peaky", seed),
                        longer = Head("S3 flat", seed, 2048);
    EXPECT_GT(MeanDropped(flat, -6), 1.2 * MeanDropped(peaky, -6)) << seed;
    EXPECT_GT(MeanDropped(longer, -6), MeanDropped(flat, -6)) << seed;
    EXPECT_GT(MeanDropped(longer, -4), MeanDropped(longer, -6)) << seed;
    EXPECT_LE(MeanDropped(longer, SasThreshold(1e-3, 2048)), 1e-3) << seed;
  }
}

// Two-level accumulation keeps what one FP22 accumulator loses, and smooth V helps where V is biased
// (SageAttention2, table 10). With a sink, whose V is all but zero, it does the opposite: the sink's V
// becomes minus the mean and its rounding error gets the sink's weight.
TEST(Synthetic, TwoLevelAccumulationAndSmoothV) {
  for (int seed = 1; seed <= kSeeds; ++seed) {
    SyntheticSpec with_sink = SyntheticSet("S7 biased V");
    with_sink.seed = uint64_t(seed);
    with_sink.tokens = 512;
    with_sink.sink_mass = .4;
    const SyntheticHead h = Head("S7 biased V", seed), sink = MakeSynthetic(with_sink);
    const auto error = [](const SyntheticHead& head, PvFormat format, bool two_level, bool smooth_v) {
      SageSpec spec = Sage2Int8(head.q.dim);
      spec.quantize_qk = false;
      spec.pv = format;
      spec.smooth_v = smooth_v;
      spec.accumulator.two_level = two_level;
      return Compare(Exact(head).out, SageAttention(head.q, head.k, head.v, spec).out).relative_l1;
    };
    EXPECT_LT(error(h, PvFormat::kExact, true, false), .5 * error(h, PvFormat::kExact, false, false)) << seed;
    const double left = error(h, PvFormat::kE4M3, true, true) / error(h, PvFormat::kE4M3, true, false),
                 left_with_sink =
                     error(sink, PvFormat::kE4M3, true, true) / error(sink, PvFormat::kE4M3, true, false);
    EXPECT_LT(left, .8) << seed;
    EXPECT_GT(left_with_sink, left) << seed;
  }
}

}  // namespace
}  // namespace nibble::ref
