// SPDX-License-Identifier: Apache-2.0
// The definitions of FlashQ and SAS against vectors T1-T5 and T7-T9, and the exhaustive ranges and error caps
// of the second stage. The paper's INT2 must be seen to leave INT8.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>

#include "kernels/ref/flashq.h"
#include "kernels/ref/sas.h"
#include "tests/support/ref_cases.h"

namespace nibble::ref {
namespace {

void ExpectCodes(const Codes& got, const std::vector<std::vector<int>>& want) {
  for (int r = 0; r < got.rows; ++r) EXPECT_EQ(RowOf(got, r), want[size_t(r)]) << "row " << r;
}

TEST(RefFlashQ, T1_Stage1) {
  const std::vector<std::vector<int>> want = {
      {56, -15, 94, 75}, {-69, 44, -25, -81}, {94, 106, 13, -19}, {-6, -119, 100, 56}};
  for (const Rounding rounding : {Rounding::kEven, Rounding::kAway}) {
    const FlashBlock block = FlashStage1(BlockK(), 119, FlashScale::kBlock, Storage::kExact, rounding);
    EXPECT_NEAR(block.scale[0], .0079831933, 1e-10);
    ExpectCodes(block.codes, want);
    double worst = 0;
    for (int r = 0; r < 4; ++r)
      for (int d = 0; d < 4; ++d)
        worst = std::max(worst, std::abs(block.codes[r][d] * block.scale[0] - BlockK()[r][d]));
    EXPECT_NEAR(worst, .0037815, 1e-7);
  }
}

TEST(RefFlashQ, T1_TheStoredScaleMakesTheCodes) {
  const FlashBlock block = FlashStage1(BlockK(), 119, FlashScale::kBlock, Storage::kF16);
  EXPECT_NEAR(block.scale[0], .0079803467, 1e-10);
  ExpectCodes(block.codes, {{56, -15, 94, 75}, {-69, 44, -25, -81}, {94, 107, 13, -19}, {-6, -119, 100, 56}});
}

TEST(RefFlashQ, T1_RowScalesAndRange127) {
  ExpectCodes(FlashStage1(BlockK(), 119, FlashScale::kRow).codes,
              {{71, -19, 119, 95}, {-101, 64, -37, -119}, {105, 119, 14, -21}, {-6, -119, 100, 56}});
  ExpectCodes(FlashStage1(BlockK(), 127).codes,
              {{60, -16, 100, 80}, {-74, 47, -27, -87}, {100, 114, 13, -20}, {-7, -127, 107, 60}});
}

struct ChannelCase {
  int base, step;
  std::vector<int> codes, decoded;
};

void ExpectStage2(int bits, Stage2Form form, const std::vector<ChannelCase>& want) {
  const Codes q8 = FlashStage1(BlockK()).codes;
  for (const Rounding rounding : {Rounding::kEven, Rounding::kAway}) {
    const Stage2Block block = FlashStage2(q8, bits, form, rounding);
    const Codes decoded = ExpandStage2(block);
    for (size_t d = 0; d < 4; ++d) {
      EXPECT_EQ(block.channels[d].base, want[d].base) << d;
      EXPECT_EQ(block.channels[d].step, want[d].step) << d;
      for (int t = 0; t < 4; ++t) {
        EXPECT_EQ(block.codes[t][d], want[d].codes[size_t(t)]) << d << " " << t;
        EXPECT_EQ(decoded[t][d], want[d].decoded[size_t(t)]) << d << " " << t;
      }
    }
  }
}

TEST(RefFlashQ, T2_CanonicalInt2) {
  ExpectStage2(2, Stage2Form::kCanonical,
               {{-69, 54, {2, 0, 3, 1}, {39, -69, 93, -15}},
                {-119, 75, {1, 2, 3, 0}, {-44, 31, 106, -119}},
                {-25, 42, {3, 0, 1, 3}, {101, -25, 17, 101}},
                {-81, 52, {3, 0, 1, 3}, {75, -81, -29, 75}}});
}

TEST(RefFlashQ, T2_CeilInt4) {
  ExpectStage2(4, Stage2Form::kMinCeil,
               {{-69, 11, {11, 0, 15, 6}, {52, -69, 96, -3}},
                {-119, 15, {7, 11, 15, 0}, {-14, 46, 106, -119}},
                {-25, 9, {13, 0, 4, 14}, {92, -25, 11, 101}},
                {-81, 11, {14, 0, 6, 12}, {73, -81, -15, 51}}});
}

TEST(RefFlashQ, T2_CanonicalInt4) {
  ExpectStage2(4, Stage2Form::kCanonical,
               {{-6, 11, {11, 0, 15, 5}, {55, -66, 99, -11}},
                {-8, 15, {7, 11, 15, 0}, {-15, 45, 105, -120}},
                {-3, 8, {15, 0, 5, 15}, {96, -24, 16, 96}},
                {-8, 10, {15, 0, 6, 14}, {70, -80, -20, 60}}});
}

TEST(RefFlashQ, T2_PaperLiteralInt2LeavesInt8WithoutTheClamp) {
  const std::vector<ChannelCase> grid = {{-1, 54, {2, 0, 3, 1}, {54, -54, 108, 0}},
                                         {-2, 75, {2, 3, 3, 0}, {0, 75, 75, -150}},
                                         {-1, 42, {3, 0, 1, 3}, {84, -42, 0, 84}},
                                         {-2, 52, {3, 0, 2, 3}, {52, -104, 0, 52}}};
  ExpectStage2(2, Stage2Form::kGridZero, grid);
  std::vector<ChannelCase> clamped = grid;
  clamped[1].decoded[3] = -127;
  ExpectStage2(2, Stage2Form::kPaperLiteral, clamped);
}

struct Extent {
  int lo = 0, hi = 0, worst_error = 0;
};
// Over every pair of bounds in [-range, range]; every value between them when `dense`.
Extent Sweep(int range, int bits, Stage2Form form, Rounding rounding, bool dense) {
  Extent e;
  for (int lo = -range; lo <= range; ++lo)
    for (int hi = lo; hi <= range; ++hi) {
      const Stage2Channel c = FitStage2({lo, hi}, bits, form, rounding);
      for (int x = lo; x <= hi; x += dense || hi == lo ? 1 : hi - lo) {
        const int y = c.Decode(c.Encode(x));
        e.lo = std::min(e.lo, y);
        e.hi = std::max(e.hi, y);
        e.worst_error = std::max(e.worst_error, std::abs(y - x));
      }
    }
  return e;
}

bool Fits(const Extent& e) { return e.lo >= -128 && e.hi <= 127; }

TEST(RefFlashQ, T3_RangesOfTheThreeForms) {
  struct {
    int bits;
    Stage2Form form;
    int lo, hi;
  } const cases[] = {{4, Stage2Form::kGridZero, -126, 126}, {3, Stage2Form::kGridZero, -136, 136},
                     {2, Stage2Form::kGridZero, -158, 158}, {4, Stage2Form::kMinRound, -119, 126},
                     {3, Stage2Form::kMinRound, -119, 122}, {2, Stage2Form::kMinRound, -119, 120},
                     {4, Stage2Form::kMinCeil, -119, 127},  {3, Stage2Form::kMinCeil, -119, 125},
                     {2, Stage2Form::kMinCeil, -119, 121}};
  for (const auto& c : cases) {
    const Extent e = Sweep(119, c.bits, c.form, Rounding::kAway, false);
    EXPECT_EQ(e.lo, c.lo) << c.bits;
    EXPECT_EQ(e.hi, c.hi) << c.bits;
  }
}

TEST(RefFlashQ, T3_LargestSafeRangeOfGridZero) {
  const int bits[] = {4, 3, 2}, safe[] = {119, 111, 95};
  for (int i = 0; i < 3; ++i) {
    int range = 127;
    while (!Fits(Sweep(range, bits[i], Stage2Form::kGridZero, Rounding::kAway, false))) --range;
    EXPECT_EQ(range, safe[i]) << bits[i];
  }
}

TEST(RefFlashQ, CanonicalNeverLeavesInt8AndKeepsItsErrorCaps) {
  const int bits[] = {4, 3, 2}, caps[] = {14, 17, 39};
  for (const Rounding rounding : {Rounding::kEven, Rounding::kAway})
    for (int i = 0; i < 3; ++i) {
      const Extent e = Sweep(119, bits[i], Stage2Form::kCanonical, rounding, true);
      EXPECT_TRUE(Fits(e)) << bits[i];
      EXPECT_GE(e.lo, -126);
      EXPECT_LE(e.hi, 126);
      EXPECT_LE(e.worst_error, caps[i]) << bits[i];
      if (rounding == Rounding::kAway) {
        EXPECT_EQ(e.worst_error, caps[i]) << bits[i];
      }
    }
  const Stage2Channel worst = FitStage2({-119, 98}, 4, Stage2Form::kCanonical, Rounding::kAway);
  EXPECT_EQ(worst.step, 14);
  EXPECT_EQ(worst.base, -9);
  EXPECT_EQ(worst.Decode(15), 84);
}

// A step rounded up clips nothing: half of the widest INT4 step, 8. The search by squared error (s_search)
// trades that for the sum: it takes the narrower step and clips up to 13 where few values are at the end.
TEST(RefFlashQ, CeilCapsInt4AtEightAndSearchMinimisesTheSum) {
  int worst_ceil = 0, worst_search = 0;
  const auto errors = [](const Stage2Channel& c, const std::vector<int>& values, int* worst) {
    int64_t sum = 0;
    for (const int x : values) {
      const int e = std::abs(c.Decode(c.Encode(x)) - x);
      *worst = std::max(*worst, e);
      sum += e * e;
    }
    return sum;
  };
  for (int lo = -119; lo <= 119; ++lo)
    for (int hi = lo; hi <= 119; ++hi) {
      std::vector<int> all;
      for (int x = lo; x <= hi; ++x) all.push_back(x);
      int unused = 0;
      const int64_t ceil = errors(FitStage2(all, 4, Stage2Form::kMinCeil), all, &worst_ceil);
      const int64_t round = errors(FitStage2(all, 4, Stage2Form::kMinRound), all, &unused);
      EXPECT_LE(errors(FitStage2(all, 4, Stage2Form::kMinSearch), all, &worst_search), std::min(ceil, round));
    }
  EXPECT_EQ(worst_ceil, 8);
  EXPECT_EQ(worst_search, 13);
}

TEST(RefSas, T4_Values) {
  const double x[] = {0,  -.1,  -.25, -.4,  -.5,    -.75, -.999,   -1, -1.5,
                      -2, -2.7, -3.3, -5.6, -5.999, -6,   -6.0001, -8};
  const double want[] = {.9996,    .9049035, .7788609, .6701760, .6063375, .4724203,
                         .3678747, .3677323, .2230591, .1352811, .0672043, .0368826,
                         .0036969, .0024787, .0024778, 0,        0};
  for (int i = 0; i < 17; ++i) EXPECT_NEAR(SasExp({}, x[i]), want[i], 6e-8) << x[i];
  const double lut[] = {1, .367879441, .135335283, .049787068, .018315639, .006737947, .002478752};
  for (int i = 0; i < 7; ++i) EXPECT_NEAR(SasExp({}, -i) / .9996, lut[i], 1e-9);
  EXPECT_NEAR(SasExpF16(0), .9995117, 1e-7);
  EXPECT_NEAR(SasExpF16(-.5), .6064453, 1e-7);
  EXPECT_NEAR(SasExpF16(-1), .3676758, 1e-7);
  EXPECT_NEAR(SasExpF16(-1.5), .2231445, 1e-7);
  EXPECT_NEAR(SasExpF16(-6), .0024776, 1e-7);
}

struct Worst {
  double absolute = 0, relative = 0;
};
template <class Function>
Worst WorstError(Function&& function, double end, int steps) {
  Worst worst;
  for (int i = 0; i <= steps; ++i) {
    const double x = -end * i / steps, e = std::abs(function(x) - std::exp(x));
    worst.absolute = std::max(worst.absolute, e);
    worst.relative = std::max(worst.relative, e / std::exp(x));
  }
  return worst;
}

TEST(RefSas, T4_ErrorsOfThePolynomials) {
  const auto worst = [](SasPolynomial p, double end) {
    return WorstError([&](double x) { return SasExp({p, -16}, x); }, end, 60000);
  };
  EXPECT_NEAR(worst(SasPolynomial::kPaper, 6).absolute, 4.0e-4, 1e-6);
  EXPECT_NEAR(worst(SasPolynomial::kPaper, 6).relative, 1.03e-3, 1e-5);
  EXPECT_NEAR(worst(SasPolynomial::kMinimax, 6).absolute, 2.0e-4, 1e-5);
  EXPECT_NEAR(worst(SasPolynomial::kEndpointExact, 6).absolute, 3.3e-4, 1e-5);
  EXPECT_NEAR(worst(SasPolynomial::kBase2, 16).relative, 7.5e-5, 1e-6);
  const Worst f16 = WorstError([](double x) { return SasExpF16(x); }, 6, 6000);
  EXPECT_NEAR(f16.absolute, 7.7e-4, 1e-5);
  EXPECT_NEAR(f16.relative, 2.3e-3, 5e-5);
}

// The paper's cubic steps up at every integer; the endpoint-exact one does not. The first half is the broken
// variant that the second half's check must catch.
TEST(RefSas, T4_MonotoneAndContinuous) {
  const auto rises = [](SasPolynomial p) {
    double worst = 0;
    for (int i = 0; i < 160000; ++i)
      worst = std::max(worst, SasExp({p, -16}, -(i + 1) / 10000.0) - SasExp({p, -16}, -i / 10000.0));
    return worst;
  };
  EXPECT_GT(rises(SasPolynomial::kPaper), 0);
  const double below = SasExp({SasPolynomial::kPaper, -6}, std::nextafter(-1.0, 0.0));
  EXPECT_NEAR(SasExp({}, -1) - below, 2.3e-4, 1e-5);
  EXPECT_LE(rises(SasPolynomial::kEndpointExact), 1e-15);
  for (int i = 1; i < 16; ++i) {
    const SasSpec spec{SasPolynomial::kEndpointExact, -16};
    EXPECT_NEAR(SasExp(spec, -i), std::exp(-i), 1e-12);
    EXPECT_NEAR(SasExp(spec, std::nextafter(double(-i), 0.0)), std::exp(-i), 1e-12);
  }
}

TEST(RefSas, T4_Rows) {
  ExpectRow(SasSoftmax({}, {-1.2, -2.3, -.5, -6.2}), {.298270, .099308, .600412, .002010});
  ExpectRow(Softmax({-1.2, -2.3, -.5, -6.2}), {.298208, .099265, .600518, .002009});
  ExpectRow(SasSoftmax({}, {-.4, -1.5, -5.6, -8}), {.747078, .248798, .004124, 0});
  ExpectRow(Softmax({-.4, -1.5, -5.6, -8}), {.746888, .248618, .004120, .000374});
  const double shifted[] = {-.7, -1.8, 0, -5.7}, want[] = {.496577, .165334, .9996, .003346};
  double sum = 0;
  for (int i = 0; i < 4; ++i) {
    EXPECT_NEAR(SasExp({}, shifted[i]), want[i], 1e-6);
    sum += SasExp({}, shifted[i]);
  }
  EXPECT_NEAR(sum, 1.664856, 1e-6);
}

TEST(RefSas, ValuesLieInTheInterval) {
  for (int i = 0; i <= 100000; ++i) {
    const double y = SasExp({}, -i / 10000.0);
    EXPECT_TRUE(y == 0 || (y >= .00247 && y <= .9996)) << i;
  }
}

TEST(RefFlashQ, T5_HeadPriority) {
  const Matrix head0 = MatrixOf({{.1, -.2, .3, 0}, {.4, .1, -.1, .2}, {-.3, .2, .1, -.2}});
  const Matrix head1 = MatrixOf({{.1, -2, .3, 0}, {.4, 3, -.1, .2}, {-.3, .5, .1, -.2}});
  EXPECT_NEAR(HeadPriority(head0), .090933, 1e-6);
  EXPECT_NEAR(HeadPriority(head1), 9.762012, 1e-6);
  EXPECT_EQ(TwoBitHeads({HeadPriority(head0), HeadPriority(head1)}, 1), (std::vector<bool>{true, false}));
  EXPECT_EQ(TwoBitHeads({1, 1, 1, 1}, 2), (std::vector<bool>{false, false, true, true}));
}

TEST(RefFlashQ, T7_BufferClampsAndCounts) {
  const auto scale = float(FlashStage1(BlockK()).scale[0]);
  EXPECT_FLOAT_EQ(UniversalScale(.95f), scale);
  EXPECT_EQ(UniversalScale(0), 1e-6f);
  FlashBuffer buffer(scale, 4);
  const float first[] = {.5f, -.3f, .9f, .1f}, second[] = {1.3f, -.2f, -1.02f, .4f};
  buffer.Append(first);
  buffer.Append(second);
  EXPECT_EQ(RowOf(buffer.codes(), 0), (std::vector<int>{63, -38, 113, 13}));
  EXPECT_EQ(RowOf(buffer.codes(), 1), (std::vector<int>{119, -25, -119, 50}));
  EXPECT_EQ(buffer.clamped(), 2);
  const double decoded[] = {.95, -.1996, -.95, .3992};
  for (int d = 0; d < 4; ++d) EXPECT_NEAR(buffer.Decoded(1, d), decoded[d], 1e-4);
  EXPECT_EQ(buffer.greatest(), 1.3f);
}

// Two of eight values clamped: from the third token on the step is twice as wide, and what is in stays.
TEST(RefFlashQ, T7_BufferDoublesTheStepOfLaterTokens) {
  FlashBuffer buffer(UniversalScale(.95f), 4);
  const float first[] = {.5f, -.3f, .9f, .1f}, second[] = {1.3f, -.2f, -1.02f, .4f};
  for (const float* row : {first, second, first, first}) buffer.Append(row);
  EXPECT_EQ(buffer.exponents(), (std::vector<int>{0, 0, 1, 1}));
  EXPECT_EQ(RowOf(buffer.codes(), 0), (std::vector<int>{63, -38, 113, 13}));
  EXPECT_EQ(RowOf(buffer.codes(), 2), (std::vector<int>{31, -19, 56, 6}));
  EXPECT_EQ(RowOf(buffer.SealedCodes(), 0),
            (std::vector<int>{32, -19, 56, 6}));  // 31.5, 56.5, 6.5: ties to even
  EXPECT_EQ(RowOf(buffer.SealedCodes(), 3), RowOf(buffer.codes(), 3));
  EXPECT_EQ(buffer.SealedScale(), 2 * UniversalScale(.95f));
  const float beyond[] = {2.6f, 0, 0, NAN};  // 163 at the doubled step
  buffer.Append(beyond);
  EXPECT_EQ(RowOf(buffer.codes(), 4), (std::vector<int>{119, 0, 0, FlashBuffer::kBroken}));
  EXPECT_TRUE(std::isnan(buffer.Decoded(4, 3)));
  buffer.Append(first);
  EXPECT_EQ(buffer.exponents().back(), 2);
  EXPECT_EQ(buffer.clamped(), 3);
}

TEST(RefFlashQ, T8_BitsPerValue) {
  struct {
    double bits, meta8, meta16;
  } const cases[] = {{4, 4.252, 4.502}, {2, 2.252, 2.502}, {3, 3.252, 3.502}};
  for (const auto& c : cases) {
    EXPECT_NEAR(FlashBitsPerValue(c.bits, 8, 64, 128), c.meta8, 5e-4);
    EXPECT_NEAR(FlashBitsPerValue(c.bits, 16, 64, 128), c.meta16, 5e-4);
  }
  EXPECT_NEAR(16 / FlashBitsPerValue(3, 8, 64, 128), 4.92, 5e-3);
  EXPECT_NEAR(16 / FlashBitsPerValue(4, 8, 64, 128), 3.76, 5e-3);
}

TEST(RefSas, T9_FlatRowsLoseMass) {
  const int n[] = {63, 255, 1023, 4095, 32767};
  const double dropped[] = {.12, .36, .70, .90, .987};
  for (int i = 0; i < 5; ++i) {
    std::vector<double> scores(size_t(n[i]) + 1, -6.1);
    scores[0] = 0;
    const SasDropped d = DroppedBySas({}, scores);
    EXPECT_EQ(d.count, n[i]);
    EXPECT_NEAR(d.mass, dropped[i], 5e-3) << n[i];
    EXPECT_NEAR(d.mass, n[i] * std::exp(-6.1) / (1 + n[i] * std::exp(-6.1)), 1e-9);
  }
  EXPECT_NEAR(SasThreshold(1e-2, 1024), -11.5, .05);
  EXPECT_NEAR(SasThreshold(1e-2, 4096), -12.9, .05);
  EXPECT_NEAR(SasThreshold(1e-2, 32768), -15.0, .05);
  EXPECT_EQ(SasThreshold(1e-4, 32768), -16);
  // The threshold from eps and length does what it promises, whatever the row.
  for (const int tokens : {64, 1024, 32768}) {
    const SasSpec spec{SasPolynomial::kEndpointExact, SasThreshold(1e-2, tokens)};
    std::vector<double> scores(size_t(tokens), spec.threshold - 1e-9);
    scores[0] = 0;
    EXPECT_GT(DroppedBySas(spec, scores).count, 0);
    EXPECT_LE(DroppedBySas(spec, scores).mass, 1e-2);
  }
}

}  // namespace
}  // namespace nibble::ref
