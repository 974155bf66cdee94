// SPDX-License-Identifier: Apache-2.0
// TurboAttention's integer attention against vector T6 and section 6.6 (case G), and its invariants over
// random shapes: the folded affine form, split KV, permuted tokens, flushes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <tuple>
#include <utility>

#include "kernels/ref/turbo.h"
#include "tests/support/ref_cases.h"

namespace nibble::ref {
namespace {

TurboSpec Spec(int bits, int dim, int block = 64) {
  TurboSpec spec;
  spec.block_tokens = block;
  spec.k_bits = spec.v_bits = bits;
  spec.rounding = Rounding::kAway;  // as the vectors were made; codes of these cases have no ties
  spec.scale = 1 / std::sqrt(double(dim));
  return spec;
}

TurboPartial Decode(View q, View k, View v, const TurboSpec& spec) {
  const FlashBlock q8 = FlashStage1(q, kFlashRange, FlashScale::kBlock, spec.storage, spec.rounding);
  return TurboAttendRow(q8.codes[0], q8.Scale(0), TurboQuantize(k, v, spec), k.rows, spec);
}

TEST(RefTurbo, T6_Stages) {
  const FlashBlock q = FlashStage1(BlockQ()), k = FlashStage1(BlockK()), v = FlashStage1(BlockV());
  EXPECT_EQ(RowOf(q.codes, 0), (std::vector<int>{69, -30, 119, -79}));
  EXPECT_NEAR(q.scale[0], .0100840336, 1e-10);
  EXPECT_NEAR(v.scale[0], .0084033614, 1e-10);
  EXPECT_EQ(RowOf(v.codes, 0), (std::vector<int>{24, 83, -60, 48}));
  EXPECT_EQ(RowOf(v.codes, 1), (std::vector<int>{71, -95, 119, -24}));
  EXPECT_EQ(RowOf(v.codes, 2), (std::vector<int>{-107, 60, 36, 12}));
  EXPECT_EQ(RowOf(v.codes, 3), (std::vector<int>{95, -71, 83, -48}));
  const int64_t qk[] = {9575, -2657, 6354, 10632};
  const double scores[] = {.385407, -.106948, .255757, .427953}, p[] = {.958216, .585543, .841941, .9996};
  for (int n = 0; n < 4; ++n) {
    const int64_t s = IntDot(q.codes[0], k.codes[n], 4);
    EXPECT_EQ(s, qk[n]);
    EXPECT_NEAR(double(s) * q.scale[0] * k.scale[0] / 2, scores[n], 1e-6);
    EXPECT_NEAR(SasExp({}, scores[n] - scores[3]), p[n], 2e-6);
  }
  const int codes[] = {114, 70, 100, 119};
  const int64_t pv[] = {8311, 363, 14967, -720};
  for (int d = 0; d < 4; ++d) {
    int64_t sum = 0;
    for (int n = 0; n < 4; ++n) sum += codes[n] * v.codes[n][d];
    EXPECT_EQ(sum, pv[d]);
  }
}

TEST(RefTurbo, T6_Outputs) {
  struct {
    int bits;
    std::vector<int> p;
    double sum;
    std::vector<double> y;
    double worst;
  } const cases[] = {{8, {114, 70, 100, 119}, 3.3852995, {.173296, .007569, .312083, -.015013}, 6.2e-4},
                     {4, {119, 72, 106, 116}, 3.464754, {.148847, .022248, .306821, -.020903}, .0239},
                     {2, {119, 72, 107, 112}, 3.451799, {.185274, .021513, .299384, .018323}, .0327}};
  const AttentionResult dense = DenseAttention(BlockQ(), BlockK(), BlockV(), .5, Mask::kFull);
  ExpectRow(dense.out[0], {.172716, .007024, .312673, -.014394});
  for (const auto& c : cases) {
    const TurboPartial got = Decode(BlockQ(), BlockK(), BlockV(), Spec(c.bits, 4));
    EXPECT_EQ(got.p_codes[0], c.p) << c.bits;
    EXPECT_NEAR(got.sum, c.sum, 1e-6) << c.bits;
    const std::vector<double> y = Finish(got);
    ExpectRow(y, c.y);
    double worst = 0;
    for (size_t d = 0; d < 4; ++d) worst = std::max(worst, std::abs(y[d] - dense.out[0][d]));
    EXPECT_NEAR(worst, c.worst, c.worst * 1e-2) << c.bits;
  }
  TurboSpec codes_sum = Spec(8, 4);
  codes_sum.l_from_codes = true;
  ExpectRow(Finish(Decode(BlockQ(), BlockK(), BlockV(), codes_sum)), {.173301, .007569, .312092, -.015013});
  TurboSpec literal = Spec(2, 4);
  literal.form = Stage2Form::kPaperLiteral;
  const std::vector<double> y = Finish(Decode(BlockQ(), BlockK(), BlockV(), literal));
  double worst = 0;
  for (size_t d = 0; d < 4; ++d) worst = std::max(worst, std::abs(y[d] - dense.out[0][d]));
  EXPECT_NEAR(worst, .168114, 1e-6);
  // Published as .170, which is what a clamp to [-128, 127] gives; the text says [-127, 127].
  literal.form = Stage2Form::kGridZero;
  TurboCache cache = TurboQuantize(BlockK(), BlockV(), literal);
  for (Codes* codes : {&cache.k[0].codes, &cache.v[0].codes})
    for (int t = 0; t < 4; ++t)
      for (int d = 0; d < 4; ++d) (*codes)[t][d] = std::clamp((*codes)[t][d], -128, 127);
  const FlashBlock q8 = FlashStage1(BlockQ());
  const std::vector<double> published = Finish(TurboAttendRow(q8.codes[0], q8.Scale(0), cache, 4, literal));
  worst = 0;
  for (size_t d = 0; d < 4; ++d) worst = std::max(worst, std::abs(published[d] - dense.out[0][d]));
  EXPECT_NEAR(worst, .170, 5e-4);
}

TEST(RefTurbo, T6_Stage2OfV) {
  const Codes v8 = FlashStage1(BlockV()).codes;
  const Stage2Block int4 = FlashStage2(v8, 4, Stage2Form::kCanonical, Rounding::kAway),
                    int2 = FlashStage2(v8, 2, Stage2Form::kCanonical, Rounding::kAway);
  const int base4[] = {-8, -8, -5, -8}, step4[] = {13, 12, 12, 6}, base2[] = {-107, -95, -60, -48},
            step2[] = {67, 59, 60, 32};
  for (size_t d = 0; d < 4; ++d) {
    EXPECT_EQ(int4.channels[d].base, base4[d]);
    EXPECT_EQ(int4.channels[d].step, step4[d]);
    EXPECT_EQ(int2.channels[d].base, base2[d]);
    EXPECT_EQ(int2.channels[d].step, step2[d]);
  }
  const std::vector<std::vector<int>> codes4 = {{10, 15, 0, 15},
                                                {13, 0, 15, 4},
                                                {0, 13, 8, 10},
                                                {15, 2, 12, 0}},
                                      codes2 = {{2, 3, 0, 3}, {3, 0, 3, 1}, {0, 3, 2, 2}, {3, 0, 2, 0}};
  for (int t = 0; t < 4; ++t) {
    EXPECT_EQ(RowOf(int4.codes, t), codes4[size_t(t)]);
    EXPECT_EQ(RowOf(int2.codes, t), codes2[size_t(t)]);
  }
}

TEST(RefTurbo, CaseG_PaperLiteral) {
  const CaseG g;
  const AttentionResult dense = DenseAttention(g.q, g.k, g.v, 1 / std::sqrt(8.0), Mask::kFull);
  ExpectRow(dense.out[0], {.079664, -.325233, .273880, .007622, .127365, -.198195, -.008309, -.217000});
  struct {
    int bits;
    std::vector<double> y;
    double l2;
  } const cases[] = {
      {8, {.081407, -.326768, .274741, .005272, .129233, -.199086, -.007989, -.215899}, .004154},
      {4, {.075241, -.335067, .271863, -.010687, .128683, -.202931, .012011, -.219944}, .030022},
      {2, {}, .074115}};
  for (const auto& c : cases) {
    TurboSpec spec = Spec(c.bits, 8, 8);
    spec.form = Stage2Form::kPaperLiteral;
    spec.sas_correction = true;
    const TurboPartial got = Decode(g.q, g.k, g.v, spec);
    const std::vector<double> y = Finish(got);
    if (!c.y.empty()) ExpectRow(y, c.y);
    EXPECT_NEAR(Distance(y.data(), dense.out[0], 8), c.l2, 1e-6) << c.bits;
    if (c.bits != 8) continue;
    EXPECT_EQ(got.p_codes[0], (std::vector<int>{114, 51, 30, 37, 87, 35, 27, 119}));
    EXPECT_EQ(got.p_codes[1], (std::vector<int>{9, 12, 21, 33, 22, 119, 83, 36}));
    const TurboCache cache = TurboQuantize(g.k, g.v, spec);
    EXPECT_NEAR(cache.k[0].scale[0], .00829711, 1e-8);
    EXPECT_NEAR(cache.k[1].scale[0], .00840212, 1e-8);
    EXPECT_NEAR(cache.v[0].scale[0], .0083828, 1e-7);
    EXPECT_NEAR(cache.v[1].scale[0], .00828068, 1e-8);
  }
}

TEST(RefTurbo, CaseG_Canonical) {
  const CaseG g;
  const AttentionResult dense = DenseAttention(g.q, g.k, g.v, 1 / std::sqrt(8.0), Mask::kFull);
  struct {
    int bits;
    std::vector<double> y;
    double l2;
    std::vector<int> p0, p1;
  } const cases[] = {{8,
                      {.081427, -.326776, .274747, .005283, .129255, -.199091, -.008007, -.215892},
                      .004172,
                      {114, 51, 30, 37, 87, 35, 27, 119},
                      {9, 12, 21, 33, 22, 119, 83, 36}},
                     {4,
                      {.075242, -.335067, .271863, -.010687, .128684, -.202932, .012010, -.219944},
                      .030022,
                      {109, 48, 31, 37, 87, 33, 27, 119},
                      {9, 12, 22, 32, 22, 119, 83, 35}},
                     {2,
                      {.001625, -.320459, .269230, -.026012, .078531, -.242582, -.035748, -.198902},
                      .112700,
                      {111, 51, 21, 40, 94, 37, 21, 119},
                      {8, 11, 18, 29, 17, 119, 84, 38}}};
  for (const auto& c : cases) {
    const TurboPartial got = Decode(g.q, g.k, g.v, Spec(c.bits, 8, 8));
    const std::vector<double> y = Finish(got);
    ExpectRow(y, c.y);
    EXPECT_NEAR(Distance(y.data(), dense.out[0], 8), c.l2, 1e-6) << c.bits;
    EXPECT_EQ(got.p_codes[0], c.p0) << c.bits;
    EXPECT_EQ(got.p_codes[1], c.p1) << c.bits;
  }
  const TurboPartial int8 = Decode(g.q, g.k, g.v, Spec(8, 8, 8));
  EXPECT_NEAR(int8.sum, 4.782842, 1e-6);
  EXPECT_NEAR(int8.max, 1.446126, 1e-6);
  TurboSpec codes_sum = Spec(8, 8, 8);
  codes_sum.l_from_codes = true;
  EXPECT_NEAR(Distance(Finish(Decode(g.q, g.k, g.v, codes_sum)).data(), dense.out[0], 8), .003807, 1e-6);
}

TEST(RefTurbo, CaseG_SplitKvMergesExactly) {
  const CaseG g;
  const TurboSpec spec = Spec(8, 8, 8);
  const TurboPartial merged = MergePartials(Decode(g.q, g.k.Slice(0, 8), g.v.Slice(0, 8), spec),
                                            Decode(g.q, g.k.Slice(8, 16), g.v.Slice(8, 16), spec));
  ExpectRow(Finish(merged), Finish(Decode(g.q, g.k, g.v, spec)), 1e-16);
  // With the paper's SAS in the correction factors it is not exact: the difference this test would see.
  TurboSpec literal = spec;
  literal.sas_correction = true;
  EXPECT_GT(Distance(Finish(Decode(g.q, g.k, g.v, literal)).data(), Finish(merged).data(), 8), 1e-6);
}

// Merging is exact for any cut with the exact softmax. With SAS it is exact where the maximum lies in the
// later part, as in case G; elsewhere a part's own maximum shifts the arguments of the cubic, which is not
// multiplicative, and the two agree to its error.
TEST(RefTurboProperty, SplitKvMergesForAnyCut) {
  Random random(11);
  for (const RandomShape& shape : RandomShapes(random, 14)) {
    const int tokens = shape.tokens, dim = shape.dim;
    if (tokens <= 64) continue;  // one block
    const int cut = 64 * (1 + random.Below((tokens - 1) / 64));
    const Matrix q = RandomMatrix(random, 1, dim), k = RandomMatrix(random, tokens, dim),
                 v = RandomMatrix(random, tokens, dim);
    for (const int bits : {8, 4, 2})
      for (const bool exact : {true, false}) {
        TurboSpec spec = Spec(bits, dim);
        spec.softmax.exact = exact;
        const TurboPartial merged =
            MergePartials(Decode(q, k.Slice(0, cut), v.Slice(0, cut), spec),
                          Decode(q, k.Slice(cut, tokens), v.Slice(cut, tokens), spec));
        ExpectRow(Finish(merged), Finish(Decode(q, k, v, spec)), exact ? 1e-12 : 5e-3);
      }
  }
}

TEST(RefTurboProperty, AffineFoldsOutOfPv) {
  Random random(12);
  for (const int tokens : {1, 3, 63, 64})
    for (const int bits : {2, 3, 4})
      for (const Stage2Form form : {Stage2Form::kCanonical, Stage2Form::kGridZero, Stage2Form::kMinSearch}) {
        const int dim = tokens == 3 ? 64 : (tokens == 63 ? 128 : 80);
        const Codes v8 = FlashStage1(RandomMatrix(random, tokens, dim)).codes;
        const Stage2Block block = FlashStage2(v8, bits, form);
        const Codes expanded = ExpandStage2(block);
        std::vector<int> p;
        for (int n = 0; n < tokens; ++n) p.push_back(random.Below(120));
        for (int d = 0; d < dim; ++d) {
          int64_t sum = 0;
          for (int n = 0; n < tokens; ++n) sum += p[size_t(n)] * expanded[n][d];
          EXPECT_EQ(FoldedPv(p.data(), block, d), sum);
        }
      }
}

TEST(RefTurboProperty, PermutingTokensOfABlockChangesNothing) {
  Random random(13);
  for (const auto& [tokens, dim] : {std::pair{5, 64}, {64, 64}, {41, 80}, {64, 128}}) {
    const Matrix q = RandomMatrix(random, 1, dim), k = RandomMatrix(random, tokens, dim),
                 v = RandomMatrix(random, tokens, dim);
    Matrix k2(tokens, dim), v2(tokens, dim);
    for (int n = 0; n < tokens; ++n) {
      const int to = (n * 3 + 1) % tokens;  // 3 divides none of the lengths
      std::copy(k[n], k[n] + dim, k2[to]);
      std::copy(v[n], v[n] + dim, v2[to]);
    }
    for (const int bits : {8, 4, 2}) {
      const TurboPartial a = Decode(q, k, v, Spec(bits, dim)), b = Decode(q, k2, v2, Spec(bits, dim));
      ExpectRow(Finish(a), Finish(b), 1e-12);
      std::vector<int> codes_a = a.p_codes[0], codes_b = b.p_codes[0];
      std::sort(codes_a.begin(), codes_a.end());
      std::sort(codes_b.begin(), codes_b.end());
      EXPECT_EQ(codes_a, codes_b);
    }
  }
}

// A flush puts the buffer's INT8 codes through stage 2 under the same scale: no value moves by more than
// scale * the cap of stage 2, and the output by no more than that bound predicts.
TEST(RefTurboProperty, AFlushKeepsTheBound) {
  Random random(14);
  const int caps[] = {14, 17, 39};
  for (const auto& [dim, bits] : {std::pair{80, 4}, {80, 3}, {80, 2}, {64, 4}, {64, 2}, {128, 4}, {128, 2}}) {
    const Matrix last = RandomMatrix(random, 64, dim), rows = RandomMatrix(random, 64, dim, .9);
    FlashBuffer buffer(UniversalScale(float(AbsMax(last))), dim);
    for (int n = 0; n < 64; ++n) buffer.Append(std::vector<float>(rows[n], rows[n] + dim).data());
    const Codes codes = buffer.SealedCodes();
    const double scale = buffer.SealedScale();
    const Codes flushed = ExpandStage2(FlashStage2(codes, bits, Stage2Form::kCanonical));
    int worst = 0;
    std::vector<double> p, before(size_t(dim), 0.0), after(size_t(dim), 0.0);
    for (int n = 0; n < 64; ++n) p.push_back(random.Normal());
    p = Softmax(p);
    for (int n = 0; n < 64; ++n)
      for (int d = 0; d < dim; ++d) {
        worst = std::max(worst, std::abs(flushed[n][d] - codes[n][d]));
        before[size_t(d)] += p[size_t(n)] * buffer.Decoded(n, d);
        after[size_t(d)] += p[size_t(n)] * flushed[n][d] * scale;
      }
    EXPECT_LE(worst, caps[4 - bits]);
    EXPECT_GT(worst, 0);
    for (size_t d = 0; d < size_t(dim); ++d)
      EXPECT_LE(std::abs(before[d] - after[d]), (caps[4 - bits] + .5) * scale);  // .5: codes of a half step
  }
}

// |decoded - x| <= scale / 2 + scale * cap, and the codes of a decode step never meet int32's end.
TEST(RefTurboProperty, StageErrorsAndIntegerBounds) {
  Random random(15);
  const int caps[] = {14, 17, 39};
  for (const auto& [tokens, dim] : {std::pair{1, 128}, {7, 64}, {33, 80}, {64, 64}, {64, 80}, {64, 128}})
    for (int bits = 4; bits >= 2; --bits) {
      const Matrix x = RandomMatrix(random, tokens, dim, 3);
      const FlashBlock block = FlashStage1(x, 119, FlashScale::kBlock, Storage::kF16);
      const Codes decoded = ExpandStage2(FlashStage2(block.codes, bits, Stage2Form::kCanonical));
      const double scale = block.scale[0];
      for (int n = 0; n < tokens; ++n)
        for (int d = 0; d < dim; ++d) {
          // A stored scale that was rounded down clamps the greatest value by up to 119 * 2^-11 of a step.
          EXPECT_LE(std::abs(block.codes[n][d] * scale - x[n][d]), scale * (.5 + .06));
          EXPECT_LE(std::abs(decoded[n][d] * scale - x[n][d]), scale * (.56 + caps[4 - bits]));
          EXPECT_LE(std::abs(decoded[n][d]), 126);
        }
    }
}

TEST(RefTurboProperty, PrefillIsCloseAndGradedByBits) {
  Random random(16);
  for (const auto& [keys, queries, dim] :
       {std::tuple{150, 120, 64}, {187, 187, 128}, {700, 70, 80}, {4096, 8, 64}}) {
    const Matrix q = RandomMatrix(random, queries, dim), k = RandomMatrix(random, keys, dim),
                 v = RandomMatrix(random, keys, dim);
    const AttentionResult dense = DenseAttention(q, k, v, 1 / std::sqrt(double(dim)), Mask::kCausal);
    double error[3];
    for (const int i : {0, 1, 2}) {
      const int bits = i == 0 ? 8 : (i == 1 ? 4 : 2);
      error[i] = Compare(dense.out, TurboAttention(q, k, v, Spec(bits, dim)).out).relative_l1;
    }
    EXPECT_LT(error[0], .03);
    EXPECT_LT(error[0], error[1]);
    EXPECT_LT(error[1], error[2]);
    TurboSpec exact = Spec(8, dim);
    exact.softmax.exact = true;
    const AttentionResult got = TurboAttention(q, k, v, exact);
    for (size_t r = 0; r < got.lse.size(); ++r) EXPECT_NEAR(got.lse[r], dense.lse[r], .05);
  }
}

TEST(RefTurbo, RowsThatSeeNothing) {
  Random random(17);
  const Matrix q = RandomMatrix(random, 4, 64), k = RandomMatrix(random, 2, 64),
               v = RandomMatrix(random, 2, 64);
  const AttentionResult got = TurboAttention(q, k, v, Spec(8, 64));
  for (const int r : {0, 1}) {
    EXPECT_EQ(got.lse[size_t(r)], -INFINITY);
    for (int d = 0; d < 64; ++d) EXPECT_EQ(got.out[r][d], 0);
  }
  EXPECT_TRUE(std::isfinite(got.lse[2]));
}

}  // namespace
}  // namespace nibble::ref
