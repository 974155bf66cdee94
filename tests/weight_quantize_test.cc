// SPDX-License-Identifier: Apache-2.0
// The weight quantizers: the papers' vectors, the protective range over every pair of extremes, rows that are
// zero, tiny, constant, one-sided, broken, and codes made by an independent simulation.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "base/half.h"
#include "golden_hex.h"
#include "quant/weight/pack.h"
#include "quant/weight/quantize.h"

namespace nibble::weight {
namespace {

constexpr Storage kQuantized[] = {Storage::kW4A8Group, Storage::kW4A8Channel, Storage::kW8A8};

int CodeAt(const QuantizedWeight& q, int row, int i) {
  const size_t at = size_t(int64_t{row} * q.k + i);
  if (q.storage == Storage::kW8A8) return int8_t(q.codes[at]);
  return q.codes[at / 2] >> (i % 2 == 0 ? 0 : 4) & 15;
}

// What a code means, from docs/formats/weights.md: independent of the packed layouts.
float ValueAt(const QuantizedWeight& q, int row, int i) {
  const float scale = HalfToFloat(q.scale[size_t(row)]);
  const int code = CodeAt(q, row, i);
  if (q.storage == Storage::kW8A8) return float(code) * scale;
  if (q.storage == Storage::kW4A8Channel) return float(code - q.zero[size_t(row)]) * scale;
  const size_t group = size_t(row * (q.k / kGroup) + i / kGroup);
  return float((code - q.zero[group]) * q.group_scale[group]) * scale;
}

QuantizedWeight Must(Result<QuantizedWeight> q) {
  EXPECT_TRUE(q.ok()) << q.status().message();
  return *std::move(q);
}

// One row whose level-1 scale is exactly 2^-7: group 0 holds the row's 119, group 1 the codes to look at.
std::vector<float> RowOfCodes(const std::vector<int>& codes) {
  std::vector<float> w(2 * kGroup, 0.0f);
  w[0] = 119 * 0x1p-7f;
  for (size_t i = 0; i < codes.size(); ++i) w[size_t(kGroup) + i] = float(codes[i]) * 0x1p-7f;
  return w;
}

// Vector B: two rows of eight weights, zeros after them.
struct VectorB {
  float w[8];
  uint16_t s1;
  int q8[8], s2, z, u[8];
  uint32_t product[2], sum[2];  // packed bytes after * s2 and after adding -z * s2
};
constexpr VectorB kVectorB[] = {
    {{.50f, -.25f, .10f, 1.19f, -1.19f, 0, .33f, -.77f},
     0x211F,
     {50, -25, 10, 119, -119, 0, 33, -77},
     16,
     7,
     {10, 5, 8, 14, 0, 7, 9, 2},
     {0xE08050A0, 0x20907000},
     {0x7010E030, 0xB0200090}},
    {{2.38f, .02f, -.40f, 1.00f, .50f, -.06f, 1.90f, .70f},
     0x251F,
     {119, 1, -20, 50, 25, -3, 95, 35},
     9,
     2,
     {15, 2, 0, 8, 5, 2, 13, 6},
     {0x48001287, 0x3675122D},
     {0x36EE0075, 0x2463001B}},
};

uint32_t AddBytes(uint32_t a, uint32_t b) {  // vadd4: every byte modulo 256
  return ((a & 0x7f7f7f7f) + (b & 0x7f7f7f7f)) ^ ((a ^ b) & 0x80808080);
}

TEST(WeightQuantizeTest, ProgressiveVector) {
  for (const VectorB& v : kVectorB) {
    std::vector<float> w(kGroup, 0.0f);
    for (int i = 0; i < 8; ++i) w[size_t(i)] = v.w[i];
    const auto q = Must(Quantize(w.data(), 1, kGroup, Storage::kW4A8Group));
    EXPECT_EQ(q.scale[0], v.s1);
    EXPECT_EQ(q.group_scale[0], v.s2);
    EXPECT_EQ(q.zero[0], v.z);
    uint32_t words[2] = {};
    for (int i = 0; i < 8; ++i) {
      EXPECT_EQ(CodeAt(q, 0, i), v.u[i]) << i;
      EXPECT_EQ(GroupCode(v.q8[i], {v.s2, v.z}), v.u[i]) << i;
      words[i / 4] |= uint32_t(CodeAt(q, 0, i)) << (8 * (i % 4));
    }
    for (int j = 0; j < 2; ++j) {
      const uint32_t product = words[j] * uint32_t(v.s2);
      EXPECT_EQ(product, v.product[j]);
      EXPECT_EQ(AddBytes(product, uint32_t(uint8_t(-v.z * v.s2)) * 0x01010101u), v.sum[j]);
    }
  }
}

// The last line of vector B's row 1: the weights that come back.
TEST(WeightQuantizeTest, ProgressiveVectorDecodes) {
  std::vector<float> w(kGroup, 0.0f);
  std::copy_n(kVectorB[1].w, 8, w.begin());
  const auto q = Must(Quantize(w.data(), 1, kGroup, Storage::kW4A8Group));
  const float want[] = {2.3405f, 0, -.3601f, 1.0802f, .5401f, 0, 1.9804f, .7202f};
  for (int i = 0; i < 8; ++i) EXPECT_NEAR(ValueAt(q, 0, i), want[i], 5e-5) << i;
}

// Vector C, the choice of s2: range -> s2, and by how much the top is cut (-1: rounded up past it).
TEST(WeightQuantizeTest, GroupScaleSelection) {
  struct {
    int lo, hi, s2, cut;
  } const cases[] = {{0, 15, 1, 0},      {0, 22, 1, 7}, {0, 23, 2, -1},    {0, 37, 2, 7},     {0, 38, 3, -1},
                     {-119, 119, 16, 7}, {0, 0, 1, 0},  {119, 119, 8, -1}, {-119, -119, 8, 1}};
  for (const auto& c : cases) {
    std::vector<int> codes(kGroup, c.lo);
    codes[5] = c.hi;
    const auto w = RowOfCodes(codes);
    const auto q = Must(Quantize(w.data(), 1, 2 * kGroup, Storage::kW4A8Group));
    EXPECT_EQ(q.scale[0], FloatToHalf(0x1p-7f));
    EXPECT_EQ(q.group_scale[1], c.s2) << c.lo << ".." << c.hi;
    EXPECT_EQ(float(c.hi) - ValueAt(q, 0, kGroup + 5) * 128, float(c.cut)) << c.lo << ".." << c.hi;
  }
}

// B1 over every pair of extremes and every code between, at level-1 range `range`. Counts what leaves s8.
struct ProtectiveRange {
  int lo = 0, hi = 0, outside = 0;
};
ProtectiveRange Exhaust(int range) {
  ProtectiveRange r;
  for (int lo = -range; lo <= range; ++lo)
    for (int hi = lo; hi <= range; ++hi) {
      const GroupParams p = FitGroup(lo, hi);
      EXPECT_TRUE(p.scale >= 1 && p.scale <= 17 && p.zero >= 0 && p.zero <= 15);
      for (int q = lo; q <= hi; ++q) {
        const int u = GroupCode(q, p), value = (u - p.zero) * p.scale;
        EXPECT_TRUE(u >= 0 && u <= 15);
        r.lo = std::min(r.lo, value);
        r.hi = std::max(r.hi, value);
        r.outside += value < -128 || value > 127;
      }
    }
  return r;
}

TEST(WeightQuantizeTest, ProtectiveRangeHolds) {
  const ProtectiveRange r = Exhaust(kProtectiveRange);
  EXPECT_EQ(r.outside, 0);
  EXPECT_EQ(r.lo, -121);
  EXPECT_EQ(r.hi, 121);
}

TEST(WeightQuantizeTest, WiderRangesFail) {
  EXPECT_GT(Exhaust(120).outside, 0);
  EXPECT_GT(Exhaust(127).outside, 0);
  const GroupParams p = FitGroup(-113, 120);  // the paper's example
  EXPECT_EQ(p.scale, 16);
  EXPECT_EQ(p.zero, 7);
  EXPECT_EQ((GroupCode(120, p) - p.zero) * p.scale, 128);
}

// B2: four codes times s2 in one 32-bit multiplication, and -z * s2 added bytewise, are the scalar values.
TEST(WeightQuantizeTest, PackedBytesMultiplyWithoutCarry) {
  for (uint32_t s2 = 1; s2 <= 16; ++s2)
    for (uint32_t codes = 0; codes < 0x10000; ++codes) {
      uint32_t word = 0, want = 0;
      for (int j = 0; j < 4; ++j) {
        const uint32_t u = codes >> (4 * j) & 15;
        word |= u << (8 * j);
        want |= (u * s2) << (8 * j);
      }
      ASSERT_EQ(word * s2, want);
      const uint32_t z = codes % 16, minus = uint8_t(-int(z * s2));
      for (int j = 0; j < 4; ++j)
        ASSERT_EQ(uint8_t(AddBytes(want, minus * 0x01010101u) >> (8 * j)),
                  uint8_t(int((codes >> (4 * j) & 15) * s2) - int(z * s2)));
    }
}

// Vector N: the weight part has the activation's rule (symmetric, f16 scale, stored scale used).
TEST(WeightQuantizeTest, SymmetricVector) {
  const float w[] = {1, -2, .5f, 1.984375f, 0, 0, 0, 0};
  const auto q = Must(Quantize(w, 2, 4, Storage::kW8A8));
  EXPECT_EQ(HalfToFloat(q.scale[0]), .0157470703125f);
  const int want[] = {64, -127, 32, 126};
  for (int i = 0; i < 4; ++i) EXPECT_EQ(CodeAt(q, 0, i), want[i]);
  EXPECT_EQ(q.scale[1], 0);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(CodeAt(q, 1, i), 0);
}

TEST(WeightQuantizeTest, ChannelFormByHand) {
  // min -1, max 2: s = f16(.2), z = 5, codes 0 5 15 10 | range of one sign includes 0: z = 0 or 15.
  const float w[] = {-1, 0, 2, 1, -1, 0, 2, 1, 1.5f, 3, 3, 3, 3, 3, 3, 3, -3, -3, -3, -1, -3, -3, -3, -3};
  const auto q = Must(Quantize(w, 3, 8, Storage::kW4A8Channel));
  EXPECT_EQ(q.scale[0], FloatToHalf(.2f));
  EXPECT_EQ(std::vector<uint8_t>(q.codes.begin(), q.codes.begin() + 4),
            (std::vector<uint8_t>{0x50, 0xAF, 0x50, 0xAF}));
  EXPECT_EQ(q.zero, (std::vector<uint8_t>{5, 0, 15}));
  EXPECT_EQ(CodeAt(q, 1, 1), 15);
  EXPECT_EQ(CodeAt(q, 1, 0), 8);  // 7.5 to even
  EXPECT_EQ(CodeAt(q, 2, 0), 0);
  EXPECT_EQ(CodeAt(q, 2, 3), 10);
}

std::vector<float> RandomWeights(int n, int k, float sd, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, sd);
  std::vector<float> w(size_t(n) * size_t(k));
  for (float& x : w) x = normal(random);
  return w;
}

// The worst error of a row in units of what the format allows: 1.5 of its largest step (rounding half a step,
// cutting at the top up to seven eighths where s2 is rounded down). Constant and one-sided rows included.
float WorstInSteps(const std::vector<float>& w, const QuantizedWeight& q, int row) {
  const float scale = HalfToFloat(q.scale[size_t(row)]);
  float worst = 0;
  for (int i = 0; i < q.k; ++i) {
    float step = scale;
    if (q.storage == Storage::kW4A8Group) {
      const int s2 = q.group_scale[size_t(row * (q.k / kGroup) + i / kGroup)];
      step = scale * (s2 == 1 ? 7.5f : float(s2) * 2.5f);  // 22 - 15 at s2 = 1, 37 - 30 at s2 = 2, and so on
    }
    worst = std::max(worst, std::fabs(w[size_t(row * q.k + i)] - ValueAt(q, row, i)) / step);
  }
  return worst;
}

TEST(WeightQuantizeTest, ErrorsStayWithinTheSteps) {
  const int n = 7, k = 512;
  for (Storage storage : kQuantized)
    for (float sd : {1e-7f, 3e-6f, 1e-3f, 0.02f, 1.0f, 500.0f}) {
      auto w = RandomWeights(n, k, sd, 3);
      for (int i = 0; i < k; ++i) {
        w[size_t(k + i)] = std::fabs(w[size_t(k + i)]);
        w[size_t(2 * k + i)] = -sd;
      }
      w[size_t(3 * k + 100)] = 40 * sd;  // one outlier
      const auto q = Must(Quantize(w.data(), n, k, storage));
      for (int row = 0; row < n; ++row)
        EXPECT_LE(WorstInSteps(w, q, row), 1.01f) << Name(storage) << " sd " << sd << " row " << row;
      EXPECT_TRUE(CheckRanges(q.View(), "w").ok());
    }
}

TEST(WeightQuantizeTest, ZeroAndTinyRows) {
  for (Storage storage : kQuantized) {
    std::vector<float> w(4 * 128, 0.0f);
    for (int i = 0; i < 128; ++i) {
      w[size_t(128 + i)] = -0.0f;
      w[size_t(256 + i)] = i % 2 == 0 ? 1e-30f : -1e-30f;
      w[size_t(384 + i)] = i % 2 == 0 ? 1e-45f : 0;
    }
    const auto q = Must(Quantize(w.data(), 4, 128, storage));
    EXPECT_EQ(q.scale[0], 0);
    EXPECT_EQ(q.scale[1], 0);
    EXPECT_EQ(q.scale[2], 1) << "the floor of the scale is 2^-24";
    EXPECT_EQ(q.scale[3], 1);
    for (int row = 0; row < 4; ++row)
      for (int i = 0; i < 128; ++i) EXPECT_EQ(ValueAt(q, row, i), 0);
    EXPECT_TRUE(CheckRanges(q.View(), "w").ok()) << CheckRanges(q.View(), "w").message();
  }
}

TEST(WeightQuantizeTest, RefusesWhatItCannotHold) {
  const float inf = std::numeric_limits<float>::infinity();
  for (Storage storage : kQuantized)
    for (float bad : {inf, -inf, std::numeric_limits<float>::quiet_NaN(), 3e38f, -2e6f}) {
      auto w = RandomWeights(3, 128, 1, 1);
      w[2 * 128 + 77] = bad;
      const auto q = Quantize(w.data(), 3, 128, storage);
      ASSERT_FALSE(q.ok()) << bad;
      EXPECT_EQ(q.status().code(), Code::kInvalidArgument);
      EXPECT_NE(q.status().message().find("row 2"), std::string::npos) << q.status().message();
      if (!std::isfinite(bad)) {
        EXPECT_NE(q.status().message().find("column 77"), std::string::npos);
      }
    }
}

TEST(WeightQuantizeTest, RefusesShapes) {
  const struct {
    Storage storage;
    int n, k;
    const char* part;
  } cases[] = {
      {Storage::kW4A8Group, 4, 192, "n=4, k=192"}, {Storage::kW4A8Channel, 4, 12, "multiple of 8"},
      {Storage::kW8A8, 4, 6, "multiple of 4"},     {Storage::kW8A8, 4, 132108, "132104"},
      {Storage::kW4A8Group, 0, 128, "n=0"},        {Storage::kF16, 4, 128, "f16 is not a quantized"}};
  for (const auto& c : cases) {
    const auto q = AllocateQuantized(c.n, c.k, c.storage);
    ASSERT_FALSE(q.ok()) << c.part;
    EXPECT_NE(q.status().message().find(c.part), std::string::npos) << q.status().message();
  }
  EXPECT_TRUE(CheckShape(Storage::kW8A8, 1, 132104).ok());
  static_assert(int64_t{kMaxK} * 127 * 128 <= INT32_MAX && int64_t{kMaxK + 1} * 127 * 128 > INT32_MAX);
}

// Rows cut anywhere give the bytes of the whole.
TEST(WeightQuantizeTest, RowRangesAgreeWithTheWhole) {
  const int n = 11, k = 256;
  const auto w = RandomWeights(n, k, 0.05f, 8);
  for (Storage storage : kQuantized) {
    const auto whole = Must(Quantize(w.data(), n, k, storage));
    auto parts = Must(AllocateQuantized(n, k, storage));
    for (int begin : {5, 0, 9}) {
      const int end = begin == 0 ? 5 : (begin == 5 ? 9 : 11);
      EXPECT_TRUE(QuantizeRows(&w[size_t(begin * k)], begin, end, &parts).ok());
    }
    EXPECT_EQ(parts.codes, whole.codes);
    EXPECT_EQ(parts.scale, whole.scale);
    EXPECT_EQ(parts.group_scale, whole.group_scale);
    EXPECT_EQ(parts.zero, whole.zero);
  }
}

int CountDifferent(const QuantizedWeight& q, const nlohmann::json& want) {
  int different = 0;
  const auto compare = [&](const char* part, const auto& got) {
    using T = typename std::decay_t<decltype(got)>::value_type;
    const auto expected = want.contains(part) ? FromHex<T>(want[part].get<std::string>()) : std::vector<T>();
    EXPECT_EQ(got.size(), expected.size()) << part;
    for (size_t i = 0; i < std::min(got.size(), expected.size()); ++i) different += got[i] != expected[i];
  };
  compare("codes", q.codes);
  compare("scale", q.scale);
  compare("group_scale", q.group_scale);
  compare("zero", q.zero);
  return different;
}

TEST(WeightQuantizeTest, MatchesIndependentSimulation) {
  const auto golden = ReadGolden("quant.json")["weights"];
  const auto w = FromHex<float>(golden["f32"].get<std::string>());
  const int n = golden["n"].get<int>(), k = golden["k"].get<int>();
  for (Storage storage : kQuantized) {
    const auto& want = golden["formats"][Name(storage)];
    auto q = Must(Quantize(w.data(), n, k, storage));
    EXPECT_EQ(CountDifferent(q, want), 0) << Name(storage);
    q.codes[700] ^= 0x10;  // the comparison must be able to fail
    EXPECT_EQ(CountDifferent(q, want), 1);
  }
}

}  // namespace
}  // namespace nibble::weight
