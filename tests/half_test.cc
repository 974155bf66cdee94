// SPDX-License-Identifier: Apache-2.0
// Conversions between f32 and f16, bf16: every 16-bit value, every tie between neighbours and its two
// neighbours in f32, and the processor's own conversion where it has one. Truncation must be caught.
#include "base/half.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace nibble {
namespace {

using Narrow = uint16_t (*)(float);
using Widen = float (*)(uint16_t);

uint16_t ToHalf(float f) { return FloatToHalf(f); }
float FromHalf(uint16_t h) { return HalfToFloat(h); }
uint16_t ToBf16(float f) { return FloatToBf16(f); }
float FromBf16(uint16_t b) { return Bf16ToFloat(b); }

// Finite values of a 16-bit type are in order by their bits. Counts the values, midpoints and neighbours of
// midpoints that do not convert to the nearest, ties to even.
int CountWrong(Narrow narrow, Widen widen, uint16_t infinity) {
  int wrong = 0;
  const auto expect = [&](float f, uint16_t bits) {
    wrong += narrow(f) != bits;
    wrong += narrow(-f) != (bits | 0x8000);
  };
  for (uint16_t h = 0; h + 1 < infinity; ++h) {
    const float a = widen(h), b = widen(uint16_t(h + 1));
    const auto middle = float((double(a) + double(b)) / 2);
    expect(a, h);
    expect(middle, uint16_t(h + (h & 1)));
    expect(std::nextafter(middle, a), h);
    expect(std::nextafter(middle, b), uint16_t(h + 1));
  }
  return wrong;
}

TEST(HalfTest, WidensAsDefined) {
  for (int h = 0; h < 0x7c00; ++h) {
    const int exponent = h >> 10, mantissa = h & 0x3ff;
    const double want =
        exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    ASSERT_EQ(double(HalfToFloat(uint16_t(h))), want) << h;
    ASSERT_EQ(double(HalfToFloat(uint16_t(h | 0x8000))), -want) << h;
  }
  EXPECT_TRUE(std::signbit(HalfToFloat(0x8000)));
  EXPECT_EQ(HalfToFloat(0x7bff), kHalfMax);
  EXPECT_EQ(HalfToFloat(0x7c00), std::numeric_limits<float>::infinity());
  EXPECT_EQ(HalfToFloat(0xfc00), -std::numeric_limits<float>::infinity());
}

TEST(HalfTest, NarrowsToNearestEven) {
  EXPECT_EQ(CountWrong(ToHalf, FromHalf, 0x7c00), 0);
  EXPECT_EQ(CountWrong(ToBf16, FromBf16, 0x7f80), 0);
}

TEST(HalfTest, CheckerCatchesOtherRoundings) {
  EXPECT_GT(CountWrong([](float f) { return uint16_t(FloatToBits(f) >> 16); }, FromBf16, 0x7f80), 0);
  const Narrow half_up = [](float f) { return uint16_t((FloatToBits(f) + 0x8000) >> 16); };
  EXPECT_GT(CountWrong(half_up, FromBf16, 0x7f80), 0);
}

TEST(HalfTest, OverflowAndSpecials) {
  const float inf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(FloatToHalf(65504.0f), 0x7bff);
  EXPECT_EQ(FloatToHalf(std::nextafter(65520.0f, 0.0f)), 0x7bff);
  EXPECT_EQ(FloatToHalf(65520.0f), 0x7c00);
  EXPECT_EQ(FloatToHalf(-1e30f), 0xfc00);
  EXPECT_EQ(FloatToHalf(inf), 0x7c00);
  EXPECT_EQ(FloatToBf16(-inf), 0xff80);
  EXPECT_EQ(FloatToBf16(std::numeric_limits<float>::max()), 0x7f80);
  for (uint32_t bits : {0x7fc00000u, 0x7f800001u, 0xffffffffu, 0xff812345u}) {
    const float nan = BitsToFloat(bits);
    EXPECT_TRUE(std::isnan(HalfToFloat(FloatToHalf(nan)))) << bits;
    EXPECT_TRUE(std::isnan(Bf16ToFloat(FloatToBf16(nan)))) << bits;
    EXPECT_EQ(FloatToHalf(nan) >> 15, bits >> 31);
    EXPECT_EQ(FloatToBf16(nan) >> 15, bits >> 31);
    EXPECT_TRUE(FloatToHalf(nan) & 0x200) << "quiet";
  }
  EXPECT_EQ(FloatToBf16(BitsToFloat(0x00010000)), 0x0001) << "subnormals are kept";
}

// Vector A of the rounding rules, and a sweep over quarters.
TEST(HalfTest, RoundToIntIsNearestEven) {
  const float in[] = {0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, 126.5f};
  const int want[] = {0, 2, 2, 0, -2, -2, 126};
  for (size_t i = 0; i < std::size(in); ++i) EXPECT_EQ(RoundToInt(in[i]), want[i]) << in[i];
  for (int i = -40000; i <= 40000; ++i) {
    const float x = float(i) / 4;
    ASSERT_EQ(RoundToInt(x), int(std::nearbyint(x))) << x;
    ASSERT_EQ(RoundToInt(std::nextafter(x, 1e9f)), int(std::nearbyint(std::nextafter(x, 1e9f)))) << x;
  }
  EXPECT_EQ(RoundToInt(4194304.0f), 4194304);
  EXPECT_EQ(RoundToInt(-4194304.0f), -4194304);
}

#if defined(__x86_64__)
__attribute__((target("f16c"))) uint16_t HardwareToHalf(float f) {
  return uint16_t(_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(f), _MM_FROUND_TO_NEAREST_INT)));
}

TEST(HalfTest, AgreesWithTheProcessor) {
  if (!__builtin_cpu_supports("avx2")) GTEST_SKIP() << "no F16C here, which every processor with AVX2 has";
  std::mt19937 random(5);
  for (int i = 0; i < 2000000; ++i) {
    const float f = BitsToFloat(uint32_t(random()));
    ASSERT_EQ(FloatToHalf(f), HardwareToHalf(f)) << FloatToBits(f);
  }
}
#endif

}  // namespace
}  // namespace nibble
