// SPDX-License-Identifier: Apache-2.0
// The definition of SageAttention against the published vectors A, H, I, J, L and M, each named in its test.
// Its invariants over random shapes are in ref_sage_invariants_test.cc.
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "kernels/ref/sage.h"
#include "tests/support/ref_cases.h"

namespace nibble::ref {
namespace {

Matrix VectorK() {
  return MatrixOf({{1, 2, -3, .5}, {.5, 2.5, -2, 0}, {1.5, 1.5, -2.5, 1}, {1, 2, -2.5, -1.5}});
}
Matrix VectorQ() { return MatrixOf({{.2, -.4, 1, .8}, {1.1, .3, -.6, .05}}); }
Matrix VectorV() { return MatrixOf({{1, -.5}, {2, .25}, {-1, 3}, {.5, -2}}); }

SageSpec VectorSpec() {
  SageSpec spec;
  spec.q.groups = QueryGroups(Granularity::kBlock);
  spec.k.groups = KeyGroups(Granularity::kBlock);
  spec.pv = PvFormat::kExact;
  spec.accumulator = {};
  spec.scale = .5;
  spec.mask = Mask::kFull;
  return spec;
}

TEST(RefSage, VectorA_Rounding) {
  const double x[] = {.5, 1.5, 2.5, -.5, -1.5, -2.5, 126.5};
  const double even[] = {0, 2, 2, 0, -2, -2, 126}, away[] = {1, 2, 3, -1, -2, -3, 127};
  for (int i = 0; i < 7; ++i) {
    EXPECT_EQ(Round(x[i], Rounding::kEven), even[i]);
    EXPECT_EQ(Round(x[i], Rounding::kAway), away[i]);
  }
}

TEST(RefSage, VectorH_Int8Codes) {
  const Matrix k = VectorK(), q = VectorQ();
  const std::vector<double> mean = RowMean(k);
  ExpectRow(mean, {1, 2, -2.5, 0});
  const QuantizerSpec spec{KeyGroups(Granularity::kBlock)};
  const QuantizedRows k8 = QuantizeGroups(MinusRow(k, mean), spec);
  EXPECT_NEAR(k8.scale[0], .0118110236, 1e-10);
  EXPECT_EQ(RowOf(k8.codes, 0), (std::vector<int>{0, 0, -42, 42}));
  EXPECT_EQ(RowOf(k8.codes, 1), (std::vector<int>{-42, 42, 42, 0}));
  EXPECT_EQ(RowOf(k8.codes, 2), (std::vector<int>{42, -42, 0, 85}));
  EXPECT_EQ(RowOf(k8.codes, 3), (std::vector<int>{0, 0, 0, -127}));
  const QuantizedRows plain = QuantizeGroups(k, spec);
  EXPECT_NEAR(plain.scale[0], .0236220, 1e-6);
  EXPECT_EQ(RowOf(plain.codes, 0), (std::vector<int>{42, 85, -127, 21}));
  const QuantizedRows q8 = QuantizeGroups(q, {QueryGroups(Granularity::kBlock)});
  EXPECT_NEAR(q8.scale[0], .00866141732, 1e-11);
  EXPECT_EQ(RowOf(q8.codes, 0), (std::vector<int>{23, -46, 115, 92}));
  EXPECT_EQ(RowOf(q8.codes, 1), (std::vector<int>{127, 35, -69, 6}));
  const int64_t s32[2][4] = {{-966, 1932, 10718, -11684}, {3150, -6762, 4374, -762}};
  const double s[2][4] = {{-.09882, .19764, 1.09645, -1.19528}, {.32225, -.69175, .44746, -.07795}};
  for (int r = 0; r < 2; ++r)
    for (int n = 0; n < 4; ++n) {
      const int64_t sum = IntDot(q8.codes[r], k8.codes[n], 4);
      EXPECT_EQ(sum, s32[r][n]);
      EXPECT_NEAR(double(sum) * q8.Scale(r) * k8.Scale(n), s[r][n], 6e-6);
    }
}

// P itself is read through V = identity.
TEST(RefSage, VectorH_WeightsAndLse) {
  const Matrix identity = MatrixOf({{1, 0, 0, 0}, {0, 1, 0, 0}, {0, 0, 1, 0}, {0, 0, 0, 1}});
  SageSpec spec = VectorSpec();
  const SageResult int8 = SageAttention(VectorQ(), VectorK(), identity, spec);
  ExpectRow(int8.out[0], {.219511, .254585, .399032, .126872});
  ExpectRow(int8.out[1], {.286898, .172799, .305434, .234869});
  ExpectRow(int8.lse2, {2.116349, 2.033841});
  spec.quantize_qk = false;
  const SageResult exact = SageAttention(VectorQ(), VectorK(), identity, spec);
  ExpectRow(exact.out[0], {.219255, .254738, .399508, .126499});
  ExpectRow(exact.out[1], {.287173, .172016, .305694, .235117});
  ExpectRow(exact.lse, {-.082479, 3.010170});
  EXPECT_NEAR(exact.lse2[0] / std::numbers::log2e, 1.467521, 1e-6);
  EXPECT_NEAR(exact.lse2[1] / std::numbers::log2e, 1.410170, 1e-6);
}

TEST(RefSage, VectorH_SmoothQueriesAndInt4) {
  const Matrix k = MinusRow(VectorK(), RowMean(VectorK())), q = VectorQ();
  const std::vector<double> mean = RowMean(q);
  ExpectRow(mean, {.65, -.05, .2, .425});
  const Matrix rest = MinusRow(q, mean);
  const double delta[] = {.1125, -.25, .775, -.6375}, row0[] = {-.2125, .45, .325, -.5625},
               sum[] = {-.1, .2, 1.1, -1.2};
  for (int n = 0; n < 4; ++n) {
    EXPECT_NEAR(Dot(mean.data(), k[n], 4), delta[n], 1e-12);
    EXPECT_NEAR(Dot(rest[0], k[n], 4), row0[n], 1e-12);
    EXPECT_NEAR(row0[n] + delta[n], sum[n], 1e-12);
  }
  const QuantizedRows q4 = QuantizeGroups(rest, {QueryGroups(Granularity::kBlock), 7});
  EXPECT_NEAR(q4.scale[0], .1142857, 1e-7);
  EXPECT_EQ(RowOf(q4.codes, 0), (std::vector<int>{-4, -3, 7, 3}));
  EXPECT_EQ(RowOf(q4.codes, 1), (std::vector<int>{4, 3, -7, -3}));
  const QuantizedRows k4 = QuantizeGroups(k, {KeyGroups(Granularity::kBlock), 7});
  EXPECT_NEAR(k4.scale[0], .2142857, 1e-7);
  EXPECT_EQ(RowOf(k4.codes, 0), (std::vector<int>{0, 0, -2, 2}));
  EXPECT_EQ(RowOf(k4.codes, 1), (std::vector<int>{-2, 2, 2, 0}));
  EXPECT_EQ(RowOf(k4.codes, 2), (std::vector<int>{2, -2, 0, 5}));
  EXPECT_EQ(RowOf(k4.codes, 3), (std::vector<int>{0, 0, 0, -7}));
}

TEST(RefSage, VectorI_Fp8Pv) {
  SageSpec spec = VectorSpec();
  spec.pv = PvFormat::kE4M3;
  spec.p_offset = 8.807;
  const SageValues v448 = QuantizeValues(VectorV(), spec);
  const double want448[4][2] = {{224, -72}, {448, 36}, {-224, 448}, {112, -288}};
  const double want225[4][2] = {{1.125, -.375}, {2.25, .1875}, {-1.125, 2.25}, {.5625, -1.5}};
  SageSpec narrow = spec;
  narrow.v_max = 2.25;
  const SageValues v225 = QuantizeValues(VectorV(), narrow);
  for (int n = 0; n < 4; ++n)
    for (int d = 0; d < 2; ++d) {
      EXPECT_EQ(v448.value[n][d], want448[n][d]);
      EXPECT_EQ(v225.value[n][d], want225[n][d]);
    }
  const auto expect_out = [](const SageSpec& s, const std::vector<double>& row0,
                             const std::vector<double>& row1) {
    const SageResult result = SageAttention(VectorQ(), VectorK(), VectorV(), s);
    ExpectRow(result.out[0], row0);
    ExpectRow(result.out[1], row1);
  };
  expect_out(spec, {.392003, .908733}, {.447353, .358896});
  expect_out(narrow, {.392003, .898042}, {.447353, .338243});
  spec.p_offset = 8;
  expect_out(spec, {.386562, .908510}, {.439062, .377873});
  spec.pv = PvFormat::kExact;
  spec.quantize_qk = false;
  expect_out(spec, {.392472, .899584}, {.443069, .346265});
}

TEST(RefSage, VectorI_P) {
  const double s[2][4] = {{-966, 1932, 10718, -11684}, {3150, -6762, 4374, -762}};
  const double p[2][4] = {{246.3885, 285.7572, 447.8898, 142.4061}, {420.7082, 253.3925, 447.8898, 344.4126}};
  const double p8[2][4] = {{240, 288, 448, 144}, {416, 256, 448, 352}}, sums[2] = {1122.4415, 1466.4031};
  const double f = (1.1 / 127) * (1.5 / 127) * .5 * std::numbers::log2e;
  for (int r = 0; r < 2; ++r) {
    double sum = 0;
    for (int n = 0; n < 4; ++n) {
      const double x = std::exp2(f * (s[r][n] - s[r][2]) + 8.807);
      EXPECT_NEAR(x, p[r][n], 1e-4);
      EXPECT_EQ(RoundToFp8(Fp8::kE4M3, x), p8[r][n]);
      sum += x;
    }
    EXPECT_NEAR(sum, sums[r], 1e-4);
  }
}

TEST(RefSage, VectorI_E4M3) {
  const struct {
    double x, value;
    int code;
  } cases[] = {{447.9, 448, 0x7e},
               {500, 448, 0x7e},
               {17, 16, 0x58},
               {18, 18, 0x59},
               {19, 20, 0x5a},
               {.3, .3125, 0x2a},
               {-3.3, -3.25, 0xc5},
               {0x1p-6, 0x1p-6, 0x08},
               {0x1p-9, 0x1p-9, 0x01},
               {0x1p-10, 0, 0x00},
               {1.1 * 0x1p-10, 0x1p-9, 0x01}};
  for (const auto& c : cases) {
    EXPECT_EQ(EncodeFp8(Fp8::kE4M3, c.x), c.code) << c.x;
    EXPECT_EQ(DecodeFp8(Fp8::kE4M3, uint8_t(c.code)), c.value) << c.x;
    EXPECT_EQ(RoundToFp8(Fp8::kE4M3, c.x), c.value) << c.x;
  }
}

TEST(RefSage, VectorJ_CausalIsBottomRight) {
  const int five[2] = {4, 5}, two[4] = {0, 0, 1, 2};
  for (int r = 0; r < 2; ++r) EXPECT_EQ(VisibleKeys(Mask::kCausal, r, 2, 5), five[r]);
  for (int r = 0; r < 4; ++r) EXPECT_EQ(VisibleKeys(Mask::kCausal, r, 4, 2), two[r]);
  EXPECT_EQ(VisibleKeys(Mask::kFull, 0, 4, 2), 2);
  EXPECT_EQ(ScaleOffsets({0, 100, 300}, 128), (std::vector<int>{0, 1, 3}));
  EXPECT_EQ(ScaleOffsets({0, 100, 300}, 64), (std::vector<int>{0, 2, 6}));
}

// A bias of -1 on the second of two equal keys, as one more component of q and k, weighs e^-1; added in the
// base-2 domain of the kernels it would weigh 2^-1.
TEST(RefSage, VectorJ_BiasesAreNatural) {
  SageSpec spec = VectorSpec();
  spec.quantize_qk = false;
  const Matrix identity = MatrixOf({{1, 0}, {0, 1}});
  const SageResult got =
      SageAttention(MatrixOf({{1, 1}}), MatrixOf({{3, 0}, {3, -1 / spec.scale}}), identity, spec);
  EXPECT_NEAR(got.out[0][1] / got.out[0][0], .3679, 5e-5);
  EXPECT_GT(std::abs(got.out[0][1] / got.out[0][0] - std::exp2(-1)), .1);
}

double Accumulate(const PvAccumulator& a, int tile) {
  std::vector<double> terms;
  for (int i = 0; i < 16384; ++i) terms.push_back(.1 + .001 * double((int64_t{37} * i) % 11));
  double out = 0, r = 0;
  for (int begin = 0; begin < 16384; begin += a.step) {
    double s = 0;
    for (int i = begin; i < begin + a.step; ++i) s += terms[size_t(i)];
    r = a.Round(r + s);
    if (a.two_level && (begin + a.step) % tile == 0) {
      out = RoundToF32(out + r);
      r = 0;
    }
  }
  return out + r;
}

TEST(RefSage, VectorL_Fp22) {
  EXPECT_EQ(TruncateToFp22(1 + 0x1p-13), 1.0001220703125);
  EXPECT_EQ(TruncateToFp22(1 + 0x1p-14), 1);
  EXPECT_EQ(TruncateToFp22(-(1 + 0x1p-13 + 0x1p-14)), -1.0001220703125);
  const PvAccumulator one{PvAccumulator::Kind::kFp22, 32, false}, two{PvAccumulator::Kind::kFp22, 32, true};
  EXPECT_NEAR(Accumulate(one, 64), 1688.875, 1e-6);
  EXPECT_NEAR(Accumulate(two, 64), 1720.24316, 1e-5);
  EXPECT_NEAR(Accumulate(two, 128), 1720.11816, 1e-5);
  EXPECT_NEAR(Accumulate({}, 64), 1720.313, 1e-3);
}

// The same sums through the attention itself: uniform P (all keys equal) and V = the terms of the vector. The
// exact mean is 1720.313 / 16384 and each mode loses what the vector says.
TEST(RefSage, VectorL_ThroughAttention) {
  const int tokens = 16384;
  Matrix q(1, 4), k(tokens, 4), v(tokens, 1);
  for (int n = 0; n < tokens; ++n) v[n][0] = .1 + .001 * double((int64_t{37} * n) % 11);
  SageSpec spec = VectorSpec();
  spec.p_offset = 0;
  const double exact = 1720.313 / tokens;
  const auto relative_error = [&](bool two_level, int tile) {
    spec.accumulator = {PvAccumulator::Kind::kFp22, 32, two_level};
    spec.tile_tokens = tile;
    return SageAttention(q, k, v, spec).out[0][0] / exact - 1;
  };
  EXPECT_NEAR(relative_error(false, 64), -1.8e-2, 1e-3);
  EXPECT_NEAR(relative_error(true, 64), -4.1e-5, 1e-6);
  EXPECT_NEAR(relative_error(true, 128), -1.1e-4, 1e-5);
}

TEST(RefSage, VectorM_ThreadGroups) {
  const RowGroups q = QueryGroups(Granularity::kThread), k = KeyGroups(Granularity::kThread);
  for (const int g : {0, 3, 7})
    for (const int j : {0, 1, 2, 3}) EXPECT_EQ(q.Of(g + 8 * j), g);
  EXPECT_EQ(q.Of(33), 9);
  EXPECT_EQ(q.Of(77), 21);
  EXPECT_EQ(q.Of(127), 31);
  for (int j = 0; j < 8; ++j)
    for (const int g : {0, 3})
      for (const int b : {0, 1}) EXPECT_EQ(k.Of(8 * j + 2 * g + b), g);
  EXPECT_EQ(k.Of(13), 2);
  EXPECT_EQ(k.Of(46), 3);
}

// The published equation 8 without the group's index: every row of a warp in one group. It must be seen.
TEST(RefSage, VectorM_ThePublishedEquationIsCaught) {
  const auto published = [](int row) { return row / 32 * 8; };
  const RowGroups q = QueryGroups(Granularity::kThread);
  int equal = 0;
  for (int row = 0; row < 128; ++row) equal += published(row) == q.Of(row);
  EXPECT_EQ(equal, 16);  // rows of group 0 alone
}

}  // namespace
}  // namespace nibble::ref
