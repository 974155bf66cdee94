// SPDX-License-Identifier: Apache-2.0
// Invariants A1-A12 of SageAttention (sage_qserve notes, section 4.1) as properties of the definition over
// random shapes: 1 to 4096 tokens, head sizes 64, 80, 128, groups of 1 to 8 query heads.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "kernels/ref/sage.h"
#include "tests/support/ref_cases.h"

namespace nibble::ref {
namespace {

struct Shape {
  int queries, keys, dim;
};
constexpr Shape kShapes[] = {{1, 1, 64},    {5, 3, 80},     {1, 63, 128}, {64, 64, 64},
                             {130, 65, 80}, {33, 700, 128}, {2, 4096, 64}};
std::vector<Shape> Shapes(Random& random) {  // those, and random ones with a query a query head
  std::vector<Shape> shapes(std::begin(kShapes), std::end(kShapes));
  for (const RandomShape& s : RandomShapes(random, 12)) shapes.push_back({s.group, s.tokens, s.dim});
  return shapes;
}

struct Head {
  Matrix q, k, v;
};
Head RandomHead(Random& random, int queries, int keys, int dim) {
  Head h{RandomMatrix(random, queries, dim), RandomMatrix(random, keys, dim),
         RandomMatrix(random, keys, dim)};
  for (int d = 0; d < dim; d += 9)  // channels with a mean, for smoothing to remove
    for (int n = 0; n < keys; ++n) h.k[n][d] += 5;
  return h;
}

SageSpec Exact(int dim) {
  SageSpec spec;
  spec.quantize_qk = spec.smooth_k = false;
  spec.pv = PvFormat::kExact;
  spec.accumulator = {};
  spec.scale = 1 / std::sqrt(double(dim));
  return spec;
}

// The smoothings, alone and together, with a mean or with any other centre, are exact on unquantized values,
// and the LSE is that of the scores before smoothing. (A1, A2, A3, and the empty rows of DenseAttention.)
TEST(RefSageProperty, A1_A2_A3_SmoothingIsExactWithoutQuantization) {
  Random random(51);
  for (const Shape& s : Shapes(random))
    for (const Mask mask : {Mask::kFull, Mask::kCausal}) {
      const Head h = RandomHead(random, s.queries, s.keys, s.dim);
      const AttentionResult dense = DenseAttention(h.q, h.k, h.v, 1 / std::sqrt(double(s.dim)), mask);
      const std::vector<double> other = RowOf(RandomMatrix(random, 1, s.dim, 3), 0);
      for (int which = 0; which < 8; ++which) {
        SageSpec spec = Exact(s.dim);
        spec.mask = mask;
        spec.smooth_k = which & 1;
        spec.smooth_q = which & 2;
        spec.smooth_v = which & 4;
        if (which == 7) spec.k_center = &other;
        const SageResult got = SageAttention(h.q, h.k, h.v, spec);
        for (int r = 0; r < s.queries; ++r) {
          ExpectRow(got.out[r], RowOf(dense.out, r), 1e-11);
          if (std::isinf(dense.lse[size_t(r)])) {
            EXPECT_EQ(got.lse[size_t(r)], -INFINITY);
          } else {
            EXPECT_NEAR(got.lse[size_t(r)], dense.lse[size_t(r)], 1e-11);
          }
        }
      }
    }
}

// Without its correction the LSE is off by scale * q . mean(K): the broken variant.
TEST(RefSageProperty, A1_TheLseNeedsItsCorrection) {
  Random random(52);
  const Head h = RandomHead(random, 3, 200, 64);
  SageSpec spec = Exact(64);
  spec.mask = Mask::kFull;
  const SageResult plain = SageAttention(h.q, h.k, h.v, spec);
  spec.smooth_k = true;
  const SageResult smooth = SageAttention(h.q, h.k, h.v, spec);
  const std::vector<double> mean = RowMean(h.k);
  for (int r = 0; r < 3; ++r) {
    const double shift = (smooth.lse2[size_t(r)] - plain.lse2[size_t(r)]) * std::log(2.0);
    EXPECT_NEAR(shift, -spec.scale * Dot(h.q[r], mean.data(), 64), 1e-11);
    EXPECT_GT(std::abs(shift), 1e-3);
  }
}

TEST(RefSageProperty, A4_CodesAndSums) {
  Random random(53);
  for (const Shape& s : Shapes(random))
    for (const int levels : {127, 7})
      for (const Granularity g : {Granularity::kTensor, Granularity::kBlock, Granularity::kWarp,
                                  Granularity::kThread, Granularity::kToken}) {
        const Matrix k = RandomMatrix(random, s.keys, s.dim);
        const QuantizedRows k8 = QuantizeGroups(k, {KeyGroups(g), levels, Rounding::kEven, Storage::kExact});
        std::set<int> saturated, groups;
        for (int n = 0; n < s.keys; ++n) {
          groups.insert(k8.groups.Of(n));
          EXPECT_LT(k8.groups.Of(n), k8.groups.Count(s.keys));
          for (int d = 0; d < s.dim; ++d) {
            const int code = k8.codes[n][d];
            EXPECT_LE(std::abs(code), levels);
            EXPECT_LE(std::abs(code * k8.Scale(n) - k[n][d]), k8.Scale(n) * (.5 + 1e-9));
            if (std::abs(code) == levels) saturated.insert(k8.groups.Of(n));
          }
        }
        EXPECT_EQ(saturated, groups);  // the greatest value of every group takes the greatest code
      }
  const std::vector<int> largest(128, 127);
  EXPECT_EQ(IntDot(largest.data(), largest.data(), 128), 2064512);
  EXPECT_EQ(double(float(2064512)), 2064512);
}

// 64 products of 448 and 2.25 fit FP16; of 448 and 448 they do not, which is why V is narrowed in 2++.
TEST(RefSageProperty, A5_NarrowedVFitsTheF16Accumulator) {
  const int tokens = 200;
  Matrix q(1, 64), k(tokens, 64), v(tokens, 1);
  for (double& x : v.data) x = 3;
  SageSpec spec = Sage2PlusPlus(64);
  EXPECT_NEAR(SageAttention(q, k, v, spec).out[0][0], 3, .02);
  spec.v_max = 448;
  EXPECT_FALSE(std::isfinite(SageAttention(q, k, v, spec).out[0][0]));
  EXPECT_EQ(448 * 2.25 * 64, 64512);
}

TEST(RefSageProperty, A6_TokenPermutationOfFp8V) {
  const int slot_of[] = {0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15},
            token_in[] = {0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15};
  Random random(54);
  const Matrix p = RandomMatrix(random, 1, 16), v = RandomMatrix(random, 16, 1);
  double plain = 0, permuted = 0;
  for (int t = 0; t < 16; ++t) {
    EXPECT_EQ(VSlot(t), slot_of[t]);
    EXPECT_EQ(VSlot(token_in[t]), t);
    plain += p[0][t] * v[t][0];
    permuted += p[0][token_in[t]] * v[token_in[t]][0];
  }
  EXPECT_NEAR(plain, permuted, 1e-14);
}

TEST(RefSageProperty, A7_NumberOfScales) {
  EXPECT_EQ(QueryGroups(Granularity::kThread).Count(128), 32);
  EXPECT_EQ(KeyGroups(Granularity::kThread).Count(64), 4);
  EXPECT_EQ(QueryGroups(Granularity::kThread, 64, 16).Count(64), 32);  // Hopper
  EXPECT_EQ(KeyGroups(Granularity::kThread, 128).Count(128), 4);
  EXPECT_EQ(QueryGroups(Granularity::kWarp).Count(129), 8);
  EXPECT_EQ(KeyGroups(Granularity::kBlock).Count(65), 2);
  // A warp of 16 rows: only {g, g + 8} share a scale.
  const RowGroups hopper = QueryGroups(Granularity::kThread, 64, 16);
  for (int r = 0; r < 64; ++r) EXPECT_EQ(hopper.Of(r), r / 16 * 8 + r % 8);
}

TEST(RefSageProperty, A8_Fp8RoundsToNearestAndSaturates) {
  for (const double offset : {8.807, std::log2(448.0)})
    EXPECT_EQ(EncodeFp8(Fp8::kE4M3, std::exp2(offset)), 0x7e);
  for (const Fp8 format : {Fp8::kE4M3, Fp8::kE5M2}) {
    double last = -INFINITY;
    for (int code = 0; code < 128; ++code) {
      const double x = DecodeFp8(format, uint8_t(code));
      if (!std::isfinite(x)) continue;
      EXPECT_GT(x, last);
      EXPECT_EQ(EncodeFp8(format, x), code);
      EXPECT_EQ(EncodeFp8(format, -x), code | 0x80);
      if (code > 0) {  // between neighbours the nearer one wins, a tie goes to the even code
        const double middle = (x + last) / 2;
        EXPECT_EQ(EncodeFp8(format, std::nextafter(middle, 0)), code - 1);
        EXPECT_EQ(EncodeFp8(format, std::nextafter(middle, 1e9)), code);
        EXPECT_EQ(EncodeFp8(format, middle), code % 2 == 0 ? code : code - 1);
      }
      last = x;
    }
    EXPECT_EQ(last, MaxFp8(format));
    EXPECT_EQ(RoundToFp8(format, 1e30), MaxFp8(format));
    EXPECT_EQ(RoundToFp8(format, -INFINITY), -MaxFp8(format));
    EXPECT_EQ(EncodeFp8(format, NAN), 0x7f);
    EXPECT_TRUE(std::isnan(DecodeFp8(format, 0x7f)));
  }
  EXPECT_EQ(DecodeFp8(Fp8::kE5M2, 0x7c), INFINITY);
  EXPECT_EQ(DecodeFp8(Fp8::kE5M2, 1), 0x1p-16);
}

// With positive terms a tile of n steps loses less than n * 2^-13 of its sum, in one direction.
TEST(RefSageProperty, A9_TruncationLossOfATile) {
  Random random(55);
  const PvAccumulator fp22{PvAccumulator::Kind::kFp22, 32, true};
  for (int trial = 0; trial < 2000; ++trial)
    for (const int steps : {2, 4}) {
      double exact = 0, r = 0;
      for (int i = 0; i < steps; ++i) {
        double s = 0;
        for (int j = 0; j < 32; ++j) s += random.Uniform() * std::exp2(random.Below(12));
        exact += s;
        r = fp22.Round(r + s);
      }
      EXPECT_LE(r, exact);
      EXPECT_LT((exact - r) / exact, steps * 0x1p-13);
    }
}

TEST(RefSageProperty, A10_BottomRightIsTopLeftForSquaresOnly) {
  for (const int keys : {1, 63, 64, 65, 200, 4096})
    for (const int queries : {1, 64, 65, 200, 4096}) {
      bool same = true;
      for (int r = 0; r < queries; ++r)
        same &= VisibleKeys(Mask::kCausal, r, queries, keys) == std::min(r + 1, keys);
      EXPECT_EQ(same, queries == keys) << queries << " " << keys;
      EXPECT_EQ(VisibleKeys(Mask::kCausal, queries - 1, queries, keys), keys);
    }
}

// Packed sequences of grouped heads give bit for bit what every sequence and head gives alone, with repeated
// K and V, and every one with its own mean of K.
TEST(RefSageProperty, A11_GroupedHeadsAndPackedSequences) {
  Random random(56);
  for (const RandomShape& s : RandomShapes(random, 8)) {
    const int dim = s.dim, group = s.group, kv_heads = 2, heads = kv_heads * group;
    PackedHeads batch;
    batch.heads = heads;
    batch.kv_heads = kv_heads;
    // The second has no queries, the last sees fewer keys than it has rows.
    batch.q_offsets = {0, 1, 1, 3, 6};
    const int third = s.tokens + 5 + 1 + s.tokens / 2;
    batch.k_offsets = {0, s.tokens, s.tokens + 5, third, third + 2};
    const Matrix q = RandomMatrix(random, 6, heads * dim),
                 k = RandomMatrix(random, third + 2, kv_heads * dim, 2),
                 v = RandomMatrix(random, third + 2, kv_heads * dim);
    batch.q = q;
    batch.k = k;
    batch.v = v;
    for (const SageSpec& spec : {Sage2Int8(dim), Sage2Int4(dim), Sage1(dim)}) {
      const SageResult all = SageAttentionPacked(batch, spec);
      for (size_t i = 0; i + 1 < batch.q_offsets.size(); ++i)
        for (int h = 0; h < heads; ++h) {
          const int q0 = batch.q_offsets[i], k0 = batch.k_offsets[i], rows = batch.q_offsets[i + 1] - q0,
                    keys = batch.k_offsets[i + 1] - k0;
          Matrix q1(rows, dim), k1(keys, dim), v1(keys, dim);
          for (int r = 0; r < rows; ++r) std::copy_n(q[q0 + r] + h * dim, dim, q1[r]);
          for (int n = 0; n < keys; ++n) {
            std::copy_n(k[k0 + n] + h / group * dim, dim, k1[n]);
            std::copy_n(v[k0 + n] + h / group * dim, dim, v1[n]);
          }
          const SageResult alone = SageAttention(q1, k1, v1, spec);
          for (int r = 0; r < rows; ++r) {
            for (int d = 0; d < dim; ++d) ASSERT_EQ(all.out[q0 + r][h * dim + d], alone.out[r][d]);
            ASSERT_EQ(all.lse[size_t((q0 + r) * heads + h)], alone.lse[size_t(r)]);
          }
        }
    }
  }
}

TEST(RefSageProperty, A12_WhatLiesBesideTheRowsIsNotRead) {
  Random random(57);
  for (const RandomShape& shape : RandomShapes(random, 10)) {
    const int keys = shape.tokens, dim = shape.dim, stride = dim + 8, queries = 10 * shape.group;
    Matrix q(queries + 3, stride), k(keys + 3, stride), v(keys + 3, stride);
    for (Matrix* m : {&q, &k, &v}) std::fill(m->data.begin(), m->data.end(), NAN);
    const Head h = RandomHead(random, queries, keys, dim);
    for (int r = 0; r < queries; ++r) std::copy_n(h.q[r], dim, q[r]);
    for (int n = 0; n < keys; ++n) {
      std::copy_n(h.k[n], dim, k[n]);
      std::copy_n(h.v[n], dim, v[n]);
    }
    const auto view = [&](const Matrix& m, int rows) { return View{m.data.data(), rows, dim, stride}; };
    const SageSpec spec = Sage2Int8(dim);
    const SageResult inside = SageAttention(view(q, queries), view(k, keys), view(v, keys), spec),
                     alone = SageAttention(h.q, h.k, h.v, spec);
    EXPECT_EQ(inside.out.data, alone.out.data);
    EXPECT_EQ(inside.lse, alone.lse);
  }
}

TEST(RefSageProperty, EmptyRowsAndNoKeys) {
  Random random(58);
  const Head h = RandomHead(random, 5, 2, 64);
  SageSpec spec = Sage2Int8(64);
  spec.smooth_v = true;  // its mean must not leak into an empty row
  const SageResult got = SageAttention(h.q, h.k, h.v, spec);
  for (int r = 0; r < 3; ++r) {
    EXPECT_EQ(got.lse[size_t(r)], -INFINITY);
    for (int d = 0; d < 64; ++d) EXPECT_EQ(got.out[r][d], 0);
  }
  EXPECT_TRUE(std::isfinite(got.lse[3]));
  EXPECT_EQ(SageAttention(h.q, Matrix(0, 64), Matrix(0, 64), spec).lse[0], -INFINITY);
}

// Every generation is close to exact on plain data, in the order of the papers.
TEST(RefSageProperty, GenerationsAreClose) {
  Random random(59);
  for (const auto& s : {kShapes[3], kShapes[5], kShapes[6]}) {
    const Head h = RandomHead(random, s.queries, s.keys, s.dim);
    const AttentionResult dense = DenseAttention(h.q, h.k, h.v, 1 / std::sqrt(double(s.dim)), Mask::kCausal);
    const auto cosine = [&](const SageSpec& spec) {
      return Compare(dense.out, SageAttention(h.q, h.k, h.v, spec).out).cosine;
    };
    EXPECT_GT(cosine(Sage1(s.dim)), .9995);
    EXPECT_GT(cosine(Sage2Int8(s.dim)), .998);
    EXPECT_GT(cosine(Sage2PlusPlus(s.dim)), .998);
    EXPECT_GT(cosine(Sage1Int8Pv(s.dim)), .98);
    EXPECT_GT(cosine(Sage2Int4(s.dim)), .94);
    EXPECT_LT(cosine(Sage2Int4(s.dim)), cosine(Sage2Int8(s.dim)));
  }
}

}  // namespace
}  // namespace nibble::ref
