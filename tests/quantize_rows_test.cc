// SPDX-License-Identifier: Apache-2.0
// Per-token INT8 activations: every ISA against the definition to the bit, and the definition against what
// quantization promises.
#include "kernels/ref/quantize_rows.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "base/half.h"
#include "kernels/cpu/kernels.h"

namespace nibble {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

std::vector<const cpu::CpuKernels*> Isas() {
  std::vector<const cpu::CpuKernels*> isas;
  for (const cpu::CpuKernels* isa : cpu::AllIsas()) {
    if (isa->runs_here()) isas.push_back(isa);
  }
  return isas;
}

struct Quantized {
  std::vector<int8_t> q;
  std::vector<float> scale;
  std::vector<int32_t> group_sum;
};

using Quantizer = void (*)(const QuantizeRowsArgs&);

// Quantizes x [rows, k] with guards behind each output; fails the test when one is overwritten.
Quantized Quantize(Quantizer quantize, const std::vector<float>& x, int rows, int k, int64_t stride) {
  const size_t groups = size_t(k + weight::kGroup - 1) / weight::kGroup, guard = 64;
  const size_t values = size_t(rows) * size_t(k), sums = size_t(rows) * groups;
  Quantized out{std::vector<int8_t>(values + guard, 77), std::vector<float>(size_t(rows) + guard, 77.0f),
                std::vector<int32_t>(sums + guard, 77)};
  quantize({x.data(), out.q.data(), out.scale.data(), out.group_sum.data(), stride, rows, k});
  for (size_t i = 0; i < guard; ++i) {
    EXPECT_EQ(out.q[values + i], 77);
    EXPECT_EQ(out.scale[size_t(rows) + i], 77.0f);
    EXPECT_EQ(out.group_sum[sums + i], 77);
  }
  out.q.resize(values);
  out.scale.resize(size_t(rows));
  out.group_sum.resize(sums);
  return out;
}

bool SameBits(const Quantized& a, const Quantized& b) {
  return a.q == b.q && a.group_sum == b.group_sum && a.scale.size() == b.scale.size() &&
         std::memcmp(a.scale.data(), b.scale.data(), a.scale.size() * sizeof(float)) == 0;
}

std::vector<float> Normal(size_t count, uint32_t seed, float deviation = 1.0f) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> x(count);
  for (float& v : x) v = normal(rng);
  return x;
}

TEST(QuantizeRows, EveryIsaGivesTheDefinitionsBits) {
  for (int k : {1, 3, 4, 8, 15, 16, 24, 40, 127, 128, 129, 136, 384, 640, 1000}) {
    for (int rows : {1, 2, 9}) {
      for (float deviation : {1e-30f, 1e-6f, 1.0f, 3e4f, 1e37f}) {
        const int64_t stride = k + 3;
        std::vector<float> x = Normal(size_t(stride * rows), uint32_t(k), deviation);
        x.resize(size_t(stride * (rows - 1) + k));  // the last row ends where the allocation does
        const Quantized want = Quantize(&ref::QuantizeRows, x, rows, k, stride);
        for (const auto* isa : Isas()) {
          EXPECT_TRUE(SameBits(want, Quantize(isa->quantize_rows, x, rows, k, stride)))
              << isa->isa << " rows " << rows << " k " << k << " deviation " << deviation;
        }
      }
    }
  }
}

// A row of multiples of half a step: every other value is a tie.
TEST(QuantizeRows, TiesGoToEven) {
  std::vector<float> x(512);
  for (int i = 0; i < 512; ++i) x[size_t(i)] = float(i % 509 - 254) * 0.5f;  // -127, -126.5 .. 127
  const Quantized want = Quantize(&ref::QuantizeRows, x, 1, 512, 512);
  EXPECT_EQ(want.q[0], -127);
  EXPECT_EQ(want.q[1], -126);   // -126.5
  EXPECT_EQ(want.q[253], 0);    // -0.5
  EXPECT_EQ(want.q[255], 0);    // 0.5
  EXPECT_EQ(want.q[257], 2);    // 1.5
  EXPECT_EQ(want.q[507], 126);  // 126.5
  for (const auto* isa : Isas()) {
    EXPECT_TRUE(SameBits(want, Quantize(isa->quantize_rows, x, 1, 512, 512))) << isa->isa;
  }
}

TEST(QuantizeRows, ErrorIsAtMostHalfAStepAndSumsAreExact) {
  const int rows = 16, k = 384;
  const std::vector<float> x = Normal(size_t(rows * k), 5);
  const Quantized got = Quantize(&ref::QuantizeRows, x, rows, k, k);
  for (int m = 0; m < rows; ++m) {
    const double step = got.scale[size_t(m)];
    int largest = 0;
    std::vector<int32_t> sums(3);
    for (int i = 0; i < k; ++i) {
      const size_t at = size_t(m * k + i);
      EXPECT_LE(std::abs(got.q[at] * step - double(x[at])), step * 0.50001);
      largest = std::max(largest, std::abs(int(got.q[at])));
      sums[size_t(i / 128)] += got.q[at];
    }
    EXPECT_EQ(largest, 127);
    for (size_t g = 0; g < 3; ++g) EXPECT_EQ(got.group_sum[size_t(m) * 3 + g], sums[g]);
  }
}

TEST(QuantizeRows, SpecialRows) {
  struct Case {
    float x[4];
    float scale;
    int8_t q[4];
  };
  const float nan = std::nanf(""), max = std::numeric_limits<float>::max(), tiny = 0x1p-119f;
  const Case cases[] = {
      {{0, -0.0f, 0, 0}, 0, {0, 0, 0, 0}},
      {{1, nan, 2, 3}, nan, {0, 0, 0, 0}},
      {{-nan, 0, 0, 0}, nan, {0, 0, 0, 0}},
      {{1, 2, kInf, 3}, nan, {0, 0, 0, 0}},
      {{1, 2, 3, -kInf}, nan, {0, 0, 0, 0}},
      {{nan, kInf, 0, 0}, nan, {0, 0, 0, 0}},
      {{max, -max, max / 2, 0}, max / 127.0f, {127, -127, 64, 0}},
      {{tiny, -tiny, 0, tiny / 4}, tiny / 127.0f, {127, -127, 0, 32}},
      {{std::nextafter(tiny, 0.0f), -tiny / 2, 0, 0}, 0, {0, 0, 0, 0}},
      {{0x1p-149f, 0, 0, 0}, 0, {0, 0, 0, 0}},
  };
  std::vector<Quantizer> all{&ref::QuantizeRows};
  for (const auto* isa : Isas()) all.push_back(isa->quantize_rows);
  for (Quantizer quantize : all) {
    for (const Case& c : cases) {
      const Quantized got = Quantize(quantize, std::vector<float>(c.x, c.x + 4), 1, 4, 4);
      if (std::isnan(c.scale)) {
        EXPECT_TRUE(std::isnan(got.scale[0]));
      } else {
        EXPECT_EQ(got.scale[0], c.scale);
      }
      for (size_t i = 0; i < 4; ++i) EXPECT_EQ(got.q[i], c.q[i]) << c.x[0] << " " << c.x[1] << " at " << i;
      EXPECT_EQ(got.group_sum[0], c.q[0] + c.q[1] + c.q[2] + c.q[3]);
    }
  }
}

// A row that holds a NaN says nothing about the rows beside it.
TEST(QuantizeRows, SpecialRowsStayAlone) {
  const int k = 136;
  std::vector<float> x = Normal(3 * k, 9);
  const Quantized before = Quantize(&ref::QuantizeRows, x, 3, k, k);
  x[size_t(k) + 130] = std::nanf("");
  for (const auto* isa : Isas()) {
    const Quantized got = Quantize(isa->quantize_rows, x, 3, k, k);
    EXPECT_TRUE(std::isnan(got.scale[1]));
    for (size_t i : {size_t{0}, size_t{2}}) {
      EXPECT_EQ(got.scale[i], before.scale[i]);
      EXPECT_EQ(0, std::memcmp(&got.q[i * size_t(k)], &before.q[i * size_t(k)], size_t(k)));
    }
  }
}

// QServe stores an f16 scale; ours is f32 (docs/decisions). The codes and the rounded scale still agree.
TEST(QuantizeRows, PublishedVector) {
  for (const auto* isa : Isas()) {
    const Quantized got = Quantize(isa->quantize_rows, {1, -2, .5f, 1.984375f}, 1, 4, 4);
    EXPECT_EQ(got.q, (std::vector<int8_t>{64, -127, 32, 126}));
    EXPECT_EQ(HalfToFloat(FloatToHalf(got.scale[0])), .0157470703125f);
    const Quantized zero = Quantize(isa->quantize_rows, {0, 0, 0, 0}, 1, 4, 4);
    EXPECT_EQ(HalfToFloat(FloatToHalf(zero.scale[0])), 0.0f);
    EXPECT_EQ(zero.q, (std::vector<int8_t>{0, 0, 0, 0}));
  }
}

// Two near misses that the comparison must see: rounding ties away from zero, and 128 as the divisor.
void RoundsAway(const QuantizeRowsArgs& a) {
  ref::QuantizeRows(a);
  for (int i = 0; i < a.k; ++i) a.q[i] = int8_t(std::round(a.x[i] * (1.0f / a.scale[0])));
}
void DividesBy128(const QuantizeRowsArgs& a) {
  ref::QuantizeRows(a);
  for (int m = 0; m < a.rows; ++m) a.scale[m] *= 127.0f / 128.0f;
}
TEST(QuantizeRows, BrokenVariantsAreCaught) {
  std::vector<float> x(256);
  for (int i = 0; i < 256; ++i)
    x[size_t(i)] = float(i % 255 - 127) + (i % 255 == 0 || i % 255 == 254 ? 0 : .5f);
  const Quantized want = Quantize(&ref::QuantizeRows, x, 1, 256, 256);
  EXPECT_TRUE(SameBits(want, Quantize(&ref::QuantizeRows, x, 1, 256, 256)));
  EXPECT_FALSE(SameBits(want, Quantize(&RoundsAway, x, 1, 256, 256)));
  EXPECT_FALSE(SameBits(want, Quantize(&DividesBy128, x, 1, 256, 256)));
}

}  // namespace
}  // namespace nibble
