// SPDX-License-Identifier: Apache-2.0
// fp8: E4M3 over all its codes and all ties between them, the page scale, broken pages. E5M2's step must be
// seen to break the bound.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "quant/kv/fp8.h"
#include "quant/kv/registry.h"

namespace nibble::kv {
namespace {

// By the definition: 4 bits of exponent with bias 7, 3 of mantissa, subnormals in units of 2^-9.
double Defined(int code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  const double magnitude =
      exponent == 0 ? mantissa * std::ldexp(1.0, -9) : std::ldexp(1 + mantissa / 8.0, exponent - 7);
  return (code & 0x80) != 0 ? -magnitude : magnitude;
}

TEST(Fp8, EveryCodeIsItsValueAndComesBack) {
  for (int code = 0; code < 256; ++code) {
    if ((code & 0x7f) == 0x7f) continue;  // NaN
    EXPECT_EQ(double(E4m3ToFloat(code)), Defined(code)) << code;
    EXPECT_EQ(FloatToE4m3(E4m3ToFloat(code)), code);
  }
  EXPECT_EQ(E4m3ToFloat(0x7e), kE4m3Max);
}

TEST(Fp8, RoundsToNearestEvenAndSaturates) {
  for (int code = 0; code < 0x7e; ++code) {
    const double tie = (Defined(code) + Defined(code + 1)) / 2;
    EXPECT_EQ(FloatToE4m3(float(tie)), code + (code & 1)) << code;
    EXPECT_EQ(FloatToE4m3(std::nextafter(float(tie), 0.0f)), code);
    EXPECT_EQ(FloatToE4m3(std::nextafter(float(-tie), -1000.0f)), 0x80 | (code + 1));
  }
  EXPECT_EQ(FloatToE4m3(449), 0x7e);
  EXPECT_EQ(FloatToE4m3(-3e38f), 0xfe);
  EXPECT_EQ(FloatToE4m3(1e-40f), 0);
}

std::vector<float> RoundTrip(PageShape s, const std::vector<float>& rows) {
  std::vector<std::byte> page(size_t(Fp8::PageBytes(s)));
  Fp8::EncodePage(s, rows.data(), page.data());
  std::vector<float> out(rows.size());
  for (int t = 0; t < s.tokens; ++t) DecodeRow<Fp8>(s, page.data(), t, &out[size_t(t * s.head_dim)]);
  return out;
}

TEST(Fp8, ErrorIsHalfAStepOfThreeBits) {
  std::mt19937 random(6);
  std::normal_distribution<float> normal;
  for (const float size : {1.0f, 1e-5f, 10000.0f})
    for (int head_dim : {8, 80, 128}) {
      const PageShape s{head_dim, kPageTokens};
      std::vector<float> rows(size_t(s.tokens * head_dim));
      for (float& v : rows) v = HalfToFloat(FloatToHalf(normal(random) * size));
      const float scale = Fp8::PageScale(s, rows.data());
      const auto back = RoundTrip(s, rows);
      int beyond_a_third_bit = 0;
      float greatest = 0;
      for (size_t i = 0; i < rows.size(); ++i) {
        const float error = std::fabs(back[i] - rows[i]), magnitude = std::fabs(rows[i]);
        ASSERT_LE(error, std::max(magnitude / 16, scale * 0x1p-10f) * 1.0001f);
        beyond_a_third_bit += error > magnitude / 32;
        greatest = std::max(greatest, magnitude);
      }
      EXPECT_GT(beyond_a_third_bit, 0) << "a bound of four bits of mantissa must fail";
      EXPECT_NEAR(scale * kE4m3Max, greatest, greatest * 1e-6f);
    }
}

TEST(Fp8, ZeroConstantAndGreatestPages) {
  const PageShape s{16, 4};
  for (float value : {0.0f, 1.0f, -3.5f, 65504.0f, 0x1p-24f}) {
    const auto back = RoundTrip(s, std::vector<float>(64, value));
    for (float v : back) EXPECT_NEAR(v, value, std::fabs(value) * 1e-6f);
  }
}

TEST(Fp8, BrokenPagesDecodeAsNan) {
  const PageShape s{16, 4};
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    std::vector<float> rows(64, 1.0f);
    rows[37] = bad;
    for (float v : RoundTrip(s, rows)) EXPECT_TRUE(std::isnan(v));
  }
}

}  // namespace
}  // namespace nibble::kv
