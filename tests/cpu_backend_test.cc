// SPDX-License-Identifier: Apache-2.0
// The CPU backend: every op against double precision, the same bytes for every thread count and batch, and
// its errors. That no op allocates: no_alloc_test.cc.
#include "backend/cpu_backend.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/cpu/kernels.h"
#include "quant/weight/pack.h"
#include "quant/weight/quantize.h"

namespace nibble {
namespace {

using weight::Storage;

std::vector<const cpu::CpuKernels*> Isas() {
  std::vector<const cpu::CpuKernels*> isas;
  for (const cpu::CpuKernels* isa : cpu::AllIsas())
    if (isa->runs_here()) isas.push_back(isa);
  return isas;
}

std::vector<float> Random(size_t n, uint32_t seed, float scale = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> x(n);
  for (float& f : x) f = normal(random);
  return x;
}

Tensor Matrix(std::vector<float>& x, int64_t rows) {
  return Tensor::Dense(x.data(), DType::kF32, Device::kCpu, {rows, int64_t(x.size()) / rows});
}

bool SameBytes(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// A random weight in any storage, with the memory its view borrows.
struct StoredWeight {
  std::vector<float> floats;
  std::vector<uint16_t> halves;
  weight::QuantizedWeight quantized;
  weight::WeightView view;

  StoredWeight(Storage storage, int n, int k, uint32_t seed) : floats(Random(size_t(n * k), seed)) {
    view = {.storage = storage, .n = n, .k = k};
    if (weight::IsQuantized(storage)) {
      auto q = weight::Quantize(floats.data(), n, k, storage);
      NIBBLE_CHECK(q.ok(), "Quantize");
      quantized = *std::move(q);
      view = quantized.View();
    } else if (storage == Storage::kF32) {
      view.codes = reinterpret_cast<const std::byte*>(floats.data());
    } else {
      for (float f : floats) halves.push_back(storage == Storage::kF16 ? FloatToHalf(f) : FloatToBf16(f));
      view.codes = reinterpret_cast<const std::byte*>(halves.data());
    }
  }
};

weight::PackedWeight MustPack(Backend& backend, const StoredWeight& w, MatmulArith arith) {
  auto packed = backend.Pack(w.view, arith);
  NIBBLE_CHECK(packed.ok(), packed.status().message().c_str());
  return *packed;
}

// x as the product of this layout sees it: as it is, rounded to bf16, or through its INT8 codes.
std::vector<double> SeenInput(const float* x, int k, weight::Layout layout, MatmulArith arith) {
  std::vector<double> seen(x, x + k);
  if (weight::IsInteger(layout)) {
    float amax = 0;
    for (int i = 0; i < k; ++i) amax = std::max(amax, std::fabs(x[i]));
    for (double& f : seen) f = double(RoundToInt(float(f) * (127.0f / amax))) * double(amax / 127.0f);
  } else if (arith == MatmulArith::kBF16) {
    for (double& f : seen) f = double(Bf16ToFloat(FloatToBf16(float(f))));
  }
  return seen;
}

// Three products that share their input: one with a bias, one that adds to y, sizes that are no multiple of a
// panel.
struct Trio {
  static constexpr int kK = 256, kN[3] = {200, 40, 7};
  std::vector<StoredWeight> stored;
  std::vector<float> bias = Random(40, 5), before;

  explicit Trio(std::array<Storage, 3> storages) {
    for (size_t i = 0; i < 3; ++i) stored.emplace_back(storages[i], kN[i], kK, uint32_t(10 + i));
  }

  std::vector<std::vector<float>> Run(CpuBackend& backend, std::vector<float> x, MatmulArith arith) const {
    const int64_t rows = int64_t(x.size()) / kK;
    std::vector<weight::PackedWeight> packed;
    std::vector<std::vector<float>> y;
    for (const StoredWeight& w : stored) {
      packed.push_back(MustPack(backend, w, arith));
      y.emplace_back(size_t(rows * w.view.n), 1.0f);
    }
    const LinearOut outs[] = {
        {.w = &packed[0], .bias = nullptr, .y = Matrix(y[0], rows)},
        {.w = &packed[1], .bias = bias.data(), .y = Matrix(y[1], rows)},
        {.w = &packed[2], .bias = nullptr, .y = Matrix(y[2], rows), .accumulate = true}};
    backend.Linear(Matrix(x, rows), outs, arith);
    return y;
  }

  // Largest difference from the product in double, against the size of its terms.
  double Error(CpuBackend& backend, const std::vector<float>& x, MatmulArith arith,
               double bias_factor) const {
    const auto y = Run(backend, x, arith);
    const int rows = int(x.size()) / kK;
    double worst = 0;
    std::vector<float> w(kK);
    for (size_t o = 0; o < 3; ++o) {
      const weight::PackedWeight packed = MustPack(backend, stored[o], arith);
      for (int n = 0; n < kN[o]; ++n) {
        weight::DecodeRow(packed, n, w.data());
        for (int r = 0; r < rows; ++r) {
          const auto seen = SeenInput(x.data() + r * kK, kK, packed.layout, arith);
          double sum = o == 1 ? bias_factor * double(bias[size_t(n)]) : o == 2 ? 1.0 : 0.0;
          for (int i = 0; i < kK; ++i) sum += seen[size_t(i)] * double(w[size_t(i)]);
          worst = std::max(worst, std::fabs(sum - double(y[o][size_t(r * kN[o] + n)])));
        }
      }
    }
    return worst / kK;
  }
};

constexpr std::array<Storage, 3> kStorageSets[] = {
    {Storage::kF32, Storage::kF32, Storage::kF32},
    {Storage::kF16, Storage::kBF16, Storage::kF32},
    {Storage::kW4A8Group, Storage::kW4A8Channel, Storage::kW8A8},
    {Storage::kW8A8, Storage::kBF16, Storage::kW4A8Group},  // x goes in as floats and as codes
};

constexpr int kMaxRows = 256;

void MustReserve(CpuBackend& backend) {
  NIBBLE_CHECK(backend.Reserve(kMaxRows, Trio::kK, 4, 2, 64).ok(), "Reserve");
}

TEST(CpuLinear, SeveralProductsOfOneInput) {
  constexpr double kTolerance = 3e-7;  // of one term; f32 sums of 256 terms of order 1
  for (const cpu::CpuKernels* isa : Isas()) {
    CpuBackend backend(*isa, 2);
    MustReserve(backend);
    for (const auto& storages : kStorageSets) {
      const Trio trio(storages);
      for (const MatmulArith arith : {MatmulArith::kF32, MatmulArith::kBF16}) {
        for (const size_t rows : {1, 5, 70}) {
          const auto x = Random(rows * Trio::kK, 77);
          EXPECT_LT(trio.Error(backend, x, arith, 1.0), kTolerance) << isa->isa << ", " << rows << " rows";
        }
      }
      // Seen to fail: a bias that is one percent off.
      EXPECT_GT(trio.Error(backend, Random(Trio::kK, 77), MatmulArith::kF32, 1.01), kTolerance);
    }
  }
}

TEST(CpuLinear, SameBytesForEveryThreadCountAndBatch) {
  for (const cpu::CpuKernels* isa : Isas()) {
    for (const auto& storages : kStorageSets) {
      const Trio trio(storages);
      for (const MatmulArith arith : {MatmulArith::kF32, MatmulArith::kBF16}) {
        for (const size_t rows : {1, 3, 64, 200}) {
          const auto x = Random(rows * Trio::kK, 78);
          CpuBackend one(*isa, 1);
          MustReserve(one);
          const auto expected = trio.Run(one, x, arith);
          for (int threads : {2, 3}) {
            CpuBackend backend(*isa, threads);
            MustReserve(backend);
            EXPECT_EQ(trio.Run(backend, x, arith), expected) << isa->isa << ", " << rows << " rows";
          }
          const size_t last = (rows - 1) * Trio::kK;  // the last row alone
          const auto alone = trio.Run(one, {x.begin() + int64_t(last), x.end()}, arith);
          for (size_t o = 0; o < 3; ++o)
            EXPECT_TRUE(SameBytes(alone[o], {expected[o].end() - Trio::kN[o], expected[o].end()}))
                << isa->isa;
        }
      }
    }
  }
}

TEST(CpuLinear, RowsWithStrides) {
  CpuBackend backend(*Isas().front(), 2);
  MustReserve(backend);
  const StoredWeight stored(Storage::kW8A8, 32, 64, 1);
  const auto w = MustPack(backend, stored, MatmulArith::kF32);
  auto x = Random(3 * 100, 2);  // rows of 64 inside rows of 100
  std::vector<float> packed_x, y(3 * 50, -7.0f), dense(3 * 32);
  for (int r = 0; r < 3; ++r) packed_x.insert(packed_x.end(), x.begin() + r * 100, x.begin() + r * 100 + 64);
  Tensor xt = Matrix(x, 3), yt = Matrix(y, 3);
  xt.dim[1] = 64, yt.dim[1] = 32;
  const LinearOut wide[] = {{.w = &w, .bias = nullptr, .y = yt}};
  const LinearOut tight[] = {{.w = &w, .bias = nullptr, .y = Matrix(dense, 3)}};
  backend.Linear(xt, wide, MatmulArith::kF32);
  backend.Linear(Matrix(packed_x, 3), tight, MatmulArith::kF32);
  for (int r = 0; r < 3; ++r) {
    EXPECT_TRUE(SameBytes({&y[size_t(r) * 50], &y[size_t(r) * 50 + 32]},
                          {&dense[size_t(r) * 32], &dense[size_t(r) * 32 + 32]}));
    for (int i = 32; i < 50; ++i) EXPECT_EQ(y[size_t(r * 50 + i)], -7.0f);  // nothing beyond n is touched
  }
}

// ---- Ops split by rows ----------------------------------------------------------------------------------

void ExpectNorm(CpuBackend& backend, int rows, int heads, int k) {
  auto x = Random(size_t(rows * heads * k), 3);
  const auto w = Random(size_t(k), 4);
  std::vector<float> y(x.size());
  const auto tensor = [&](std::vector<float>& t) {
    return heads == 1 ? Matrix(t, rows)
                      : Tensor::Dense(t.data(), DType::kF32, Device::kCpu, {rows, heads, k});
  };
  backend.Norm(tensor(x), w.data(), 1e-5f, tensor(y));
  for (size_t v = 0; v < size_t(rows * heads); ++v) {
    double square = 0;
    for (size_t i = 0; i < size_t(k); ++i) square += double(x[v * size_t(k) + i]) * x[v * size_t(k) + i];
    const double factor = 1 / std::sqrt(square / k + 1e-5);
    for (size_t i = 0; i < size_t(k); ++i)
      ASSERT_NEAR(y[v * size_t(k) + i], x[v * size_t(k) + i] * factor * w[i], 1e-5) << v << ", " << i;
  }
  const auto apart = y;
  backend.Norm(tensor(x), w.data(), 1e-5f, tensor(x));
  EXPECT_TRUE(SameBytes(x, apart)) << "in place";
}

TEST(CpuRows, NormOfRowsAndOfHeads) {
  for (const cpu::CpuKernels* isa : Isas()) {
    CpuBackend backend(*isa, 3);
    ExpectNorm(backend, 1, 1, 96);
    ExpectNorm(backend, 200, 1, 384);
    ExpectNorm(backend, 150, 6, 64);  // per-head Q and K norm
  }
}

TEST(CpuRows, RopeTurnsPairs) {
  constexpr int kRows = 130, kHeads = 3, kDim = 64;
  for (const cpu::CpuKernels* isa : Isas()) {
    CpuBackend backend(*isa, 2);
    std::vector<int32_t> positions;
    for (int r = 0; r < kRows; ++r) positions.push_back(r * 31);
    std::vector<float> inv_freq, cos(kRows * kDim / 2), sin(kRows * kDim / 2);
    for (int i = 0; i < kDim / 2; ++i) inv_freq.push_back(std::pow(10000.0f, -2.0f * float(i) / kDim));
    backend.RopeTable(positions, inv_freq.data(), Matrix(cos, kRows), Matrix(sin, kRows));
    const auto before = Random(kRows * kHeads * kDim, 8);
    auto x = before;
    backend.Rope(Tensor::Dense(x.data(), DType::kF32, Device::kCpu, {kRows, kHeads, kDim}),
                 Matrix(cos, kRows), Matrix(sin, kRows));
    for (int r = 0; r < kRows; ++r) {
      for (int i = 0; i < kDim / 2; ++i) {
        const double angle = double(float(positions[size_t(r)]) * inv_freq[size_t(i)]);
        const size_t at = size_t((r * kHeads + 1) * kDim + i);
        ASSERT_NEAR(x[at], before[at] * std::cos(angle) - before[at + kDim / 2] * std::sin(angle), 2e-6);
        ASSERT_NEAR(x[at + kDim / 2], before[at + kDim / 2] * std::cos(angle) + before[at] * std::sin(angle),
                    2e-6);
      }
    }
  }
}

TEST(CpuRows, GluAndLogSumExpAndEmbed) {
  constexpr int kRows = 90, kK = 200;
  for (const cpu::CpuKernels* isa : Isas()) {
    CpuBackend backend(*isa, 2);
    auto gate = Random(kRows * kK, 20), up = Random(kRows * kK, 21);
    std::vector<float> y(gate.size());
    backend.Glu(Matrix(gate, kRows), Matrix(up, kRows), Activation::kSilu, Matrix(y, kRows));
    for (size_t i = 0; i < y.size(); ++i)
      ASSERT_NEAR(y[i], double(gate[i]) / (1 + std::exp(-double(gate[i]))) * up[i], 3e-6);

    std::vector<float> max(kRows);
    std::vector<double> lse(kRows);
    std::vector<int32_t> argmax(kRows);
    backend.LogSumExp(Matrix(gate, kRows), {.max = max.data(), .lse = lse.data(), .argmax = argmax.data()});
    for (size_t r = 0; r < kRows; ++r) {
      const float* row = gate.data() + r * kK;
      double sum = 0;
      for (int i = 0; i < kK; ++i) sum += std::exp(double(row[i]));
      EXPECT_NEAR(lse[r], std::log(sum), 1e-6);
      EXPECT_EQ(argmax[r], std::max_element(row, row + kK) - row);
      EXPECT_EQ(max[r], row[argmax[r]]);
    }
    std::vector<int32_t> ids(kRows);
    backend.ArgMax(Matrix(gate, kRows), ids.data());
    EXPECT_EQ(ids, argmax);

    const StoredWeight table(Storage::kF32, 50, kK, 30);
    const auto packed = MustPack(backend, table, MatmulArith::kF32);
    std::vector<int32_t> tokens;
    for (int r = 0; r < kRows; ++r) tokens.push_back(r * 7 % 50);
    backend.Embed(tokens, packed, Matrix(y, kRows));
    for (size_t r = 0; r < kRows; ++r) {
      const float* row = &table.floats[size_t(tokens[r]) * kK];
      EXPECT_TRUE(SameBytes({&y[r * kK], &y[r * kK] + kK}, {row, row + kK}));
    }
  }
}

// ---- Memory, errors, names ------------------------------------------------------------------------------

TEST(CpuMemory, AllocIsAlignedZeroAndLazy) {
  CpuBackend backend(*Isas().front(), 1);
  const size_t half = backend.Info().memory_bytes / 2;  // more than this test could touch
  auto big = backend.Alloc(half);
  ASSERT_TRUE(big.ok()) << big.status().message();
  EXPECT_EQ(reinterpret_cast<uintptr_t>(big->data) % 64, 0u);
  EXPECT_EQ(big->data[half - 1], std::byte{0});
  backend.Upload("nibble", big->data + half - 6, 6);
  char back[7] = {};
  backend.Download(big->data + half - 6, back, 6);
  EXPECT_STREQ(back, "nibble");
  backend.Free(*big);
  const auto none = backend.Alloc(0);
  ASSERT_TRUE(none.ok());
  backend.Free(*none);
}

TEST(CpuMemory, TooMuchIsRefusedWithItsSize) {
  CpuBackend backend(*Isas().front(), 1);
  const auto huge = backend.Alloc(size_t{1} << 50);
  ASSERT_FALSE(huge.ok());
  EXPECT_EQ(huge.status().code(), Code::kOutOfMemory);
  EXPECT_NE(huge.status().message().find("1125899906842624"), std::string::npos) << huge.status().message();
}

TEST(CpuMemory, PackRefusesShapesWithoutAKernel) {
  CpuBackend backend(*Isas().front(), 1);
  const auto code = [&](Storage storage, int n, int k) {
    std::vector<std::byte> bytes(size_t(n * k * 4));
    std::vector<uint16_t> scale(size_t(n), 0);
    std::vector<uint8_t> zero(size_t(n * k), 0);
    return backend
        .Pack({.storage = storage,
               .n = n,
               .k = k,
               .codes = bytes.data(),
               .scale = scale.data(),
               .group_scale = zero.data(),
               .zero = zero.data()},
              MatmulArith::kF32)
        .status()
        .code();
  };
  EXPECT_EQ(code(Storage::kW4A8Group, 16, 192), Code::kUnsupported);
  EXPECT_EQ(code(Storage::kW4A8Channel, 16, 20), Code::kUnsupported);
  EXPECT_EQ(code(Storage::kW8A8, 16, 6), Code::kUnsupported);
  EXPECT_EQ(code(Storage::kF32, 16, 5), Code::kOk);
  EXPECT_EQ(code(Storage::kF32, 0, 5), Code::kInvalidArgument);
}

TEST(CpuNames, InfoAndExplain) {
  CpuBackend one(*Isas().back(), 1), two(*Isas().back(), 2);
  EXPECT_EQ(one.Info().name, "cpu generic, 1 thread");
  EXPECT_EQ(two.Info().name, "cpu generic, 2 threads");
  EXPECT_EQ(two.Info().threads, 2);
  EXPECT_GT(two.Info().memory_bytes, size_t{1} << 20);
  EXPECT_NE(one.ExplainLinear({.layout = weight::Layout::kI4Group}, MatmulArith::kF32).find("generic/"),
            std::string::npos);
  EXPECT_NE(one.ExplainAttention({}).find("generic/"), std::string::npos);
  const auto explain = [&](const char* recipe) {
    return one.ExplainAttention(*ParseRecipe(recipe, DType::kF32));
  };
  EXPECT_EQ(
      explain("sage2-4b"),
      "generic/tiled-flash/f32; sealed pages: INT4 QK in integers by c, Q and K smoothed, E4M3 PV in f32 "
      "with FP22 sums simulated");
  EXPECT_EQ(explain("qserve+sas pv=int8"),
            "generic/tiled-flash/int4-token; softmax by SAS; sealed pages: INT8 PV in integers by c");
}

TEST(CpuNames, TheForcedIsaIsTakenOrRefused) {
  const char* forced = std::getenv("NIBBLE_CPU");
  const std::string before = forced == nullptr ? "" : forced;
  setenv("NIBBLE_CPU", "generic", 1);
  auto generic = MakeCpuBackend(1);
  ASSERT_TRUE(generic.ok());
  EXPECT_EQ((*generic)->Info().name, "cpu generic, 1 thread");
  setenv("NIBBLE_CPU", "pentium", 1);
  const auto unknown = MakeCpuBackend(1);
  ASSERT_FALSE(unknown.ok());
  EXPECT_EQ(unknown.status().code(), Code::kInvalidArgument);
  EXPECT_NE(unknown.status().message().find("pentium"), std::string::npos);
  setenv("NIBBLE_CPU", before.c_str(), 1);
  auto all = MakeCpuBackend(0);
  ASSERT_TRUE(all.ok());
  EXPECT_EQ((*all)->Info().threads, AvailableCpus());
}

TEST(CpuDeathTest, OurBugsAreCaught) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  CpuBackend backend(*Isas().front(), 1);
  MustReserve(backend);
  const StoredWeight stored(Storage::kW8A8, 16, Trio::kK, 1);
  const auto w = MustPack(backend, stored, MatmulArith::kF32);
  std::vector<float> x(size_t(kMaxRows + 1) * Trio::kK), y(size_t(kMaxRows + 1) * 16), narrow(64);
  const LinearOut outs[] = {{.w = &w, .bias = nullptr, .y = Matrix(y, kMaxRows + 1)}};
  EXPECT_DEATH(backend.Linear(Matrix(x, kMaxRows + 1), outs, MatmulArith::kF32), "Reserve");
  EXPECT_DEATH(backend.Linear(Matrix(narrow, 1), outs, MatmulArith::kF32), "shapes");
  const int32_t outside[] = {16};
  EXPECT_DEATH(backend.Embed(outside, w, Matrix(narrow, 1)), "Embed");
}

}  // namespace
}  // namespace nibble
