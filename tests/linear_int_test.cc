// SPDX-License-Identifier: Apache-2.0
// W4A8 and W8A8 matmuls: every ISA against the definition to the bit, and the definition against a plain loop
// over the stored (unpacked) codes.
#include "kernels/ref/linear_int.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/half.h"
#include "kernels/cpu/kernels.h"
#include "kernels/ref/quantize_rows.h"
#include "quant/weight/pack.h"

namespace nibble {
namespace {

using weight::kGroup;
using weight::kPanel;
using weight::Layout;
using weight::Storage;

constexpr Storage kStorages[] = {Storage::kW4A8Group, Storage::kW4A8Channel, Storage::kW8A8};
constexpr float kSentinel = -12345.5f;

using LinearFn = void (*)(const LinearArgs&);

std::vector<const cpu::CpuKernels*> Isas() {
  std::vector<const cpu::CpuKernels*> isas;
  for (const cpu::CpuKernels* isa : cpu::AllIsas()) {
    if (isa->runs_here()) isas.push_back(isa);
  }
  return isas;
}

int Panels(int n) { return (n + kPanel - 1) / kPanel; }
int Groups(int k) { return (k + kGroup - 1) / kGroup; }

// A stored weight with its packed form.
struct Weights {
  Storage storage;
  int n, k;
  std::vector<uint8_t> codes;  // u4 pairs or s8, as a file holds them
  std::vector<uint16_t> scale;
  std::vector<uint8_t> group_scale, zero;
  std::vector<std::byte> memory;
  weight::PackedWeight packed;

  bool Is4Bit() const { return storage != Storage::kW8A8; }
  bool IsGrouped() const { return storage == Storage::kW4A8Group; }

  Weights(Storage s, int n_, int k_) : storage(s), n(n_), k(k_) {
    codes.resize(size_t(n) * size_t(k) / (Is4Bit() ? 2 : 1));
    scale.resize(size_t(n));
    if (IsGrouped()) group_scale.resize(size_t(n) * size_t(k / kGroup));
    if (Is4Bit()) zero.resize(IsGrouped() ? group_scale.size() : size_t(n));
  }
  static Weights Random(Storage s, int n, int k, uint32_t seed) {
    std::mt19937 rng(seed);
    Weights w(s, n, k);
    for (uint8_t& c : w.codes) c = uint8_t(rng());
    for (uint16_t& v : w.scale) v = FloatToHalf(0.001f + float(rng() % 1000) * 1e-5f);
    for (uint8_t& v : w.group_scale) v = uint8_t(1 + rng() % 16);
    for (uint8_t& v : w.zero) v = uint8_t(rng() % 16);
    w.Pack();
    return w;
  }
  void Pack() {
    const weight::WeightView view{
        storage,    n, k, reinterpret_cast<const std::byte*>(codes.data()), scale.data(), group_scale.data(),
        zero.data()};
    const Layout layout = weight::LayoutFor(storage, false);
    const size_t bytes = weight::PackedBytes(view, layout);
    memory.resize(bytes + 64);
    void* aligned = memory.data();
    size_t space = memory.size();
    packed = weight::Pack(view, layout, static_cast<std::byte*>(std::align(64, bytes, aligned, space)));
  }
  // The integer of output row `row`, input `i`, from the stored codes.
  int Value(int row, int i) const {
    const size_t at = size_t(row) * size_t(k) + size_t(i);
    if (!Is4Bit()) return int8_t(codes[at]);
    const int u = i % 2 == 0 ? codes[at / 2] & 15 : codes[at / 2] >> 4;
    if (!IsGrouped()) return u - zero[size_t(row)];
    const size_t group = size_t(row) * size_t(k / kGroup) + size_t(i / kGroup);
    return (u - zero[group]) * group_scale[group];
  }
};

// Quantized activations [rows, k].
struct Inputs {
  int rows, k;
  std::vector<int8_t> q;
  std::vector<float> scale;
  std::vector<int32_t> group_sum;

  Inputs(int rows_, int k_) : rows(rows_), k(k_), q(size_t(rows) * size_t(k)), scale(size_t(rows), 0.25f) {}
  void SumGroups() {
    group_sum.assign(size_t(rows) * size_t(Groups(k)), 0);
    for (int m = 0; m < rows; ++m) {
      for (int i = 0; i < k; ++i)
        group_sum[size_t(m * Groups(k) + i / kGroup)] += q[size_t(m) * size_t(k) + size_t(i)];
    }
  }
  static Inputs Random(int rows, int k, uint32_t seed) {
    std::mt19937 rng(seed);
    Inputs x(rows, k);
    for (int8_t& v : x.q) v = int8_t(int(rng() % 255) - 127);
    for (float& v : x.scale) v = 0.001f + float(rng() % 1000) * 1e-4f;
    x.SumGroups();
    return x;
  }
};

struct Options {
  int rows = 0;  // of the inputs, from the first
  int panel_begin = 0, panel_end = 0;
  const float* bias = nullptr;
  bool accumulate = false;
};

// y [rows, n] with 3 columns to the right and 64 floats at both ends that must not change.
struct Output {
  static constexpr int kGap = 3, kGuard = 64;
  int rows, n;
  std::vector<float> memory;
  Output(int rows_, int n_) : rows(rows_), n(n_), memory(size_t(rows * (n + kGap) + 2 * kGuard), kSentinel) {}
  int64_t stride() const { return n + kGap; }
  float* y() { return memory.data() + kGuard; }
  float at(int m, int i) const { return memory[size_t(kGuard + m * stride() + i)]; }
};

Output Multiply(LinearFn linear, const Weights& w, const Inputs& x, const Options& o) {
  Output out(o.rows, w.n);
  LinearArgs a{};
  a.w = w.packed;
  a.xq = x.q.data();
  a.x_scale = x.scale.data();
  a.group_sum = x.group_sum.data();
  a.bias = o.bias;
  a.y = out.y();
  a.x_stride = x.k;
  a.y_stride = out.stride();
  a.rows = o.rows;
  a.panel_begin = o.panel_begin;
  a.panel_end = o.panel_end;
  a.accumulate = o.accumulate;
  linear(a);
  return out;
}

// Every float of the memory, guards included, to the bit. Rows beyond the smaller output are not compared.
bool SameBits(const Output& a, const Output& b) {
  const int rows = std::min(a.rows, b.rows);
  const size_t floats = size_t(Output::kGuard + rows * a.stride());
  return std::memcmp(a.memory.data(), b.memory.data(), floats * sizeof(float)) == 0;
}
bool GuardIntact(const Output& a) {
  for (int i = 0; i < Output::kGuard; ++i) {
    if (a.memory[a.memory.size() - 1 - size_t(i)] != kSentinel) return false;
  }
  return true;
}

std::vector<int> InputSizes(Storage s) {
  if (s == Storage::kW4A8Group) return {128, 256, 384, 640, 1024};
  if (s == Storage::kW4A8Channel) return {8, 24, 40, 136, 512};
  return {4, 8, 24, 40, 136, 516};
}

TEST(LinearInt, EveryIsaGivesTheDefinitionsBits) {
  for (Storage s : kStorages) {
    for (int k : InputSizes(s)) {
      for (int n : {1, 15, 16, 17, 40, 384}) {
        const Weights w = Weights::Random(s, n, k, uint32_t(n + k));
        const Inputs x = Inputs::Random(33, k, uint32_t(k));
        const Output want = Multiply(&ref::LinearInt, w, x, {.rows = 33, .panel_end = Panels(n)});
        for (int rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 33}) {
          for (const auto* isa : Isas()) {
            const Output got = Multiply(isa->linear, w, x, {.rows = rows, .panel_end = Panels(n)});
            ASSERT_TRUE(SameBits(want, got))
                << isa->isa << " " << Name(s) << " " << rows << "x" << n << "x" << k;
            ASSERT_TRUE(GuardIntact(got))
                << isa->isa << " " << Name(s) << " " << rows << "x" << n << "x" << k;
          }
        }
      }
    }
  }
}

// Rows enough for the kernels that unpack: every size of tile, blocks of rows and what is left of them;
// chunks of inputs whole and cut, and panels that fill no block.
TEST(LinearInt, ManyRowsOfOddSizes) {
  for (Storage s : kStorages) {
    const std::vector<int> sizes = s == Storage::kW4A8Group     ? std::vector{128, 512, 1152}
                                   : s == Storage::kW4A8Channel ? std::vector{8, 264, 1000}
                                                                : std::vector{4, 252, 1028};
    for (int k : sizes) {
      for (int n : {16, 81, 112}) {
        const Weights w = Weights::Random(s, n, k, uint32_t(n + k));
        const Inputs x = Inputs::Random(263, k, uint32_t(k));
        const Output want = Multiply(&ref::LinearInt, w, x, {.rows = 263, .panel_end = Panels(n)});
        for (int rows : {7, 8, 9, 11, 12, 15, 16, 23, 24, 37, 127, 128, 129, 263}) {
          for (const auto* isa : Isas()) {
            const Output got = Multiply(isa->linear, w, x, {.rows = rows, .panel_end = Panels(n)});
            ASSERT_TRUE(SameBits(want, got) && GuardIntact(got))
                << isa->isa << " " << Name(s) << " " << rows << "x" << n << "x" << k;
          }
        }
      }
    }
  }
}

// The definition reads packed weights; this loop reads what was packed.
TEST(LinearInt, DefinitionAgreesWithStoredCodes) {
  for (Storage s : kStorages) {
    const int n = 35, k = 256, rows = 3;
    const Weights w = Weights::Random(s, n, k, 3);
    const Inputs x = Inputs::Random(rows, k, 4);
    const Output got = Multiply(&ref::LinearInt, w, x, {.rows = rows, .panel_end = Panels(n)});
    for (int m = 0; m < rows; ++m) {
      for (int r = 0; r < n; ++r) {
        double sum = 0;
        for (int i = 0; i < k; ++i) sum += w.Value(r, i) * x.q[size_t(m * k + i)];
        const double want = sum * double(HalfToFloat(w.scale[size_t(r)])) * double(x.scale[size_t(m)]);
        EXPECT_NEAR(got.at(m, r), want, std::abs(want) * 3e-7) << Name(s);
      }
    }
  }
}

TEST(LinearInt, PanelRangesTouchTheirColumnsOnly) {
  for (Storage s : kStorages) {
    const int n = 16 * 6 + 5, k = 128;
    const Weights w = Weights::Random(s, n, k, 5);
    const Inputs x = Inputs::Random(9, k, 6);
    for (int rows : {1, 3, 9}) {
      for (int begin = 0; begin <= 7; ++begin) {
        for (int end = begin; end <= 7; ++end) {
          const Options o{.rows = rows, .panel_begin = begin, .panel_end = end};
          const Output want = Multiply(&ref::LinearInt, w, x, o);
          for (const auto* isa : Isas()) {
            const Output got = Multiply(isa->linear, w, x, o);
            ASSERT_TRUE(SameBits(want, got) && GuardIntact(got))
                << isa->isa << " " << Name(s) << " " << rows << " rows, panels " << begin << " to " << end;
          }
        }
      }
    }
  }
}

TEST(LinearInt, BiasAndAccumulate) {
  for (Storage s : kStorages) {
    for (int n : {16, 40}) {
      const int k = 128, rows = 5;
      const Weights w = Weights::Random(s, n, k, 7);
      const Inputs x = Inputs::Random(rows, k, 8);
      std::vector<float> bias(size_t(n), 0);
      for (int i = 0; i < n; ++i) bias[size_t(i)] = float(i) * 0.37f - 3;
      const Output plain = Multiply(&ref::LinearInt, w, x, {.rows = rows, .panel_end = Panels(n)});
      for (bool accumulate : {false, true}) {
        for (const float* b : {static_cast<const float*>(nullptr), static_cast<const float*>(bias.data())}) {
          const Options o{.rows = rows, .panel_end = Panels(n), .bias = b, .accumulate = accumulate};
          const Output want = Multiply(&ref::LinearInt, w, x, o);
          const int i = n - 1;
          const float value = b == nullptr ? plain.at(2, i) : plain.at(2, i) + bias[size_t(i)];
          EXPECT_EQ(want.at(2, i), accumulate ? value + kSentinel : value);
          for (const auto* isa : Isas()) {
            const Output got = Multiply(isa->linear, w, x, o);
            EXPECT_TRUE(SameBits(want, got) && GuardIntact(got)) << isa->isa << " " << Name(s);
          }
        }
      }
    }
  }
}

// Every factor at its limit and every product of one sign: the largest sums that a model can make.
TEST(LinearInt, LargestSums) {
  struct Case {
    Storage storage;
    uint8_t code, zero;
    int x, k;
  };
  const Case cases[] = {
      {Storage::kW4A8Group, 0xff, 0, 127, 4096},    {Storage::kW4A8Group, 0xff, 0, -127, 4096},
      {Storage::kW4A8Group, 0x00, 15, 127, 4096},   {Storage::kW4A8Group, 0x00, 15, -127, 4096},
      {Storage::kW4A8Group, 0xff, 15, 127, 4096},   {Storage::kW4A8Group, 0xff, 0, 127, 65536},
      {Storage::kW4A8Channel, 0xff, 0, -127, 4096}, {Storage::kW4A8Channel, 0x00, 15, -127, 65536},
      {Storage::kW8A8, 0x7f, 0, 127, 4096},         {Storage::kW8A8, 0x81, 0, 127, 4096},
      {Storage::kW8A8, 0x80, 0, -127, 65536},       {Storage::kW8A8, 0x80, 0, 127, 65536},
      {Storage::kW8A8, 0x7f, 0, -127, 65536},
  };
  for (const Case& c : cases) {
    const int n = 17;
    Weights w(c.storage, n, c.k);
    for (uint8_t& v : w.codes) v = c.code;
    for (uint16_t& v : w.scale) v = FloatToHalf(1.0f);
    for (uint8_t& v : w.group_scale) v = 16;
    for (uint8_t& v : w.zero) v = c.zero;
    w.Pack();
    Inputs x(40, c.k);
    for (int8_t& v : x.q) v = int8_t(c.x);
    x.SumGroups();
    const double want = double(w.Value(0, 0)) * c.x * c.k * 0.25;
    ASSERT_LT(std::abs(want) * 4, 2147483648.0);
    for (int rows : {1, 9, 40}) {
      for (const auto* isa : Isas()) {
        const Output got = Multiply(isa->linear, w, x, {.rows = rows, .panel_end = Panels(n)});
        EXPECT_EQ(got.at(rows - 1, n - 1), float(want)) << isa->isa << " " << Name(c.storage) << " k " << c.k;
        EXPECT_EQ(got.at(0, 0), float(want)) << isa->isa << " " << Name(c.storage) << " k " << c.k;
      }
    }
  }
}

// A NaN scale is how QuantizeRows marks a row that was not finite: the whole row of y must show it.
TEST(LinearInt, NanScaleReachesTheWholeRow) {
  for (Storage s : kStorages) {
    const Weights w = Weights::Random(s, 40, 128, 11);
    Inputs x(3, 128);
    x.scale[1] = std::nanf("");
    x.SumGroups();
    for (const auto* isa : Isas()) {
      const Output got = Multiply(isa->linear, w, x, {.rows = 3, .panel_end = 3});
      for (int i = 0; i < 40; ++i) {
        EXPECT_EQ(got.at(0, i), 0.0f);
        EXPECT_TRUE(std::isnan(got.at(1, i)));
        EXPECT_EQ(got.at(2, i), 0.0f);
      }
    }
  }
}

// The worked example of the per-channel epilogue: 4 inputs (padded with zeros to the 8 that a layout takes).
Weights PublishedWeights() {
  Weights w(Storage::kW4A8Channel, 1, 8);
  w.codes = {0xf3, 0x90, 0, 0};  // u = 3 15 0 9
  w.scale = {FloatToHalf(.01f)};
  w.zero = {7};
  w.Pack();
  return w;
}

TEST(LinearInt, PublishedVector) {
  const Weights w = PublishedWeights();
  const std::vector<float> floats{.5f, -1.25f, 2, .75f, 0, 0, 0, 0};
  for (const auto* isa : Isas()) {
    Inputs x(1, 8);
    x.group_sum.resize(1);
    isa->quantize_rows({floats.data(), x.q.data(), x.scale.data(), x.group_sum.data(), 8, 1, 8});
    EXPECT_EQ(x.q, (std::vector<int8_t>{32, -79, 127, 48, 0, 0, 0, 0}));
    EXPECT_EQ(x.group_sum[0], 128);
    EXPECT_EQ(HalfToFloat(FloatToHalf(x.scale[0])), .0157470703125f);
    const float ours = Multiply(isa->linear, w, x, {.rows = 1, .panel_end = 1}).at(0, 0);
    EXPECT_NEAR(ours, -1553.0 * HalfToFloat(FloatToHalf(.01f)) * 2 / 127, 1e-7);
    x.scale[0] = .0157470703125f;  // the published figure uses the f16 scale
    EXPECT_NEAR(Multiply(isa->linear, w, x, {.rows = 1, .panel_end = 1}).at(0, 0), -0.2446042, 1e-7);
  }
}

// The other half of that example: 4096 inputs of 16.5, whose sum does not fit f16.
TEST(LinearInt, RowSumsBeyondHalfPrecision) {
  const int k = 4096;
  Weights w(Storage::kW4A8Channel, 1, k);
  for (uint8_t& c : w.codes) c = 0x88;
  w.scale = {FloatToHalf(1.0f)};
  w.zero = {7};
  w.Pack();
  const std::vector<float> floats(size_t(k), 16.5f);
  for (const auto* isa : Isas()) {
    Inputs x(1, k);
    x.group_sum.resize(size_t(Groups(k)));
    isa->quantize_rows({floats.data(), x.q.data(), x.scale.data(), x.group_sum.data(), k, 1, k});
    EXPECT_NEAR(Multiply(isa->linear, w, x, {.rows = 1, .panel_end = 1}).at(0, 0), 67584.0, 0.02);
  }
}

// Mistakes that a kernel could make; the comparison of the first test must see each of them.
TEST(LinearInt, BrokenVariantsAreCaught) {
  const int n = 40, k = 256;
  for (int rows : {3, 29})
    for (Storage s : kStorages) {
      const Options o{.rows = rows, .panel_end = Panels(n)};
      const Weights w = Weights::Random(s, n, k, 13);
      const Inputs x = Inputs::Random(rows, k, 14);
      const Output want = Multiply(&ref::LinearInt, w, x, o);
      for (const auto* isa : Isas()) {
        ASSERT_TRUE(SameBits(want, Multiply(isa->linear, w, x, o))) << isa->isa;
        Inputs moved = x;  // two inputs of one step swapped
        std::swap(moved.q[1], moved.q[2]);
        EXPECT_FALSE(SameBits(want, Multiply(isa->linear, w, moved, o))) << isa->isa;
        if (s == Storage::kW8A8) continue;
        Inputs ignored = x;  // the zero point of one group ignored, in the last row
        ignored.group_sum.back() = 0;
        EXPECT_FALSE(SameBits(want, Multiply(isa->linear, w, ignored, o))) << isa->isa;
        Weights off = w;  // one zero point of the last output off by one
        off.zero.back() ^= 1;
        off.Pack();
        EXPECT_FALSE(SameBits(want, Multiply(isa->linear, off, x, o))) << isa->isa;
      }
    }
}

TEST(LinearInt, NamesSayLayoutAndInstruction) {
  for (const auto* isa : Isas()) {
    const std::string dot = std::string(isa->isa) == "avx512" ? "vpdpbusd"
                            : std::string(isa->isa) == "avx2" ? "vpmaddubsw"
                                                              : "c";
    EXPECT_EQ(isa->linear_name(Layout::kI4Group, MatmulArith::kF32), "i4-group/" + dot);
    EXPECT_EQ(isa->linear_name(Layout::kI4Channel, MatmulArith::kF32), "i4-channel/" + dot);
    EXPECT_EQ(isa->linear_name(Layout::kI8Channel, MatmulArith::kF32), "i8-channel/" + dot);
  }
}

}  // namespace
}  // namespace nibble
