// SPDX-License-Identifier: Apache-2.0
// The CUDA backend against the CPU backend, op by op and page by page. Where there is no GPU the tests say so
// and skip; NIBBLE_TEST_GPU=1 makes that a failure.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "quant/weight/quantize.h"
#include "tests/support/cuda.h"

namespace nibble {
namespace {

using test::Difference;
using test::Random;
using weight::Storage;

// A backend with the arrays that a test has put on it.
class Side {
 public:
  explicit Side(Backend& backend) : backend_(backend) {
    NIBBLE_CHECK(backend.Reserve(300, 1024, 8, 2, 64).ok(), "Reserve");
  }
  ~Side() {
    for (const Buffer& b : buffers_) backend_.Free(b);
  }
  template <class T>
  T* Put(const std::vector<T>& values) {
    const Buffer b = *backend_.Alloc(values.size() * sizeof(T));
    buffers_.push_back(b);
    backend_.Upload(values.data(), b.data, values.size() * sizeof(T));
    return reinterpret_cast<T*>(b.data);
  }
  Tensor Put(const std::vector<float>& values, std::initializer_list<int64_t> dims) {
    return Tensor::Dense(Put(values), DType::kF32, backend_.Info().device, dims);
  }
  template <class T = float>
  std::vector<T> Get(const void* data, size_t count) {
    std::vector<T> host(count);
    backend_.Download(static_cast<const std::byte*>(data), host.data(), count * sizeof(T));
    backend_.Sync();
    return host;
  }
  std::vector<float> Get(Tensor t) { return Get(t.data, size_t(t.numel())); }
  Backend* operator->() { return &backend_; }

 private:
  Backend& backend_;
  std::vector<Buffer> buffers_;
};

class CudaBackendTest : public test::OnGpu {
 protected:
  // What `run` leaves on the CPU and on the GPU.
  template <class Run>
  std::pair<std::vector<float>, std::vector<float>> Both(Run run) {
    Side cpu(*cpu_), gpu(*gpu_);
    return {run(cpu), run(gpu)};
  }
};

TEST_F(CudaBackendTest, NormRopeGluAffine) {
  for (const int rows : {1, 7, 130})
    for (const int k : {8, 96, 384}) {
      const auto x = Random(size_t(rows * 3 * k), 1), w = Random(size_t(k), 2);
      auto [cpu, gpu] = Both([&](Side& s) {
        const Tensor t = s.Put(x, {rows, 3, k});
        s->Norm(t, s.Put(w), 1e-5f, t);
        return s.Get(t);
      });
      EXPECT_LT(Difference(gpu, cpu), 1e-6) << "norm " << rows << " x " << k;
      gpu[0] += 1e-3f;
      EXPECT_GT(Difference(gpu, cpu), 1e-6) << "one value that is off is seen";

      std::vector<int32_t> positions;
      for (int r = 0; r < rows; ++r) positions.push_back(r * 131);
      std::vector<float> inv_freq;
      for (int i = 0; i < k / 2; ++i) inv_freq.push_back(std::pow(10000.0f, -2.0f * float(i) / float(k)));
      const auto [cpu_rope, gpu_rope] = Both([&](Side& s) {
        const Tensor t = s.Put(x, {rows, 3, k}), cos = s.Put(x, {rows, k / 2}), sin = s.Put(x, {rows, k / 2});
        s->RopeTable(positions, s.Put(inv_freq), cos, sin);
        s->Rope(t, cos, sin);
        return s.Get(t);
      });
      EXPECT_LT(Difference(gpu_rope, cpu_rope), 1e-6) << "rope " << rows << " x " << k;

      const auto scale = Random(size_t(k), 3), shift = Random(size_t(k), 4);
      const auto [cpu_affine, gpu_affine] = Both([&](Side& s) {
        const Tensor t = s.Put(x, {rows, 3, k});
        s->AffineHeads(t, s.Put(scale), s.Put(shift), 3);
        return s.Get(t);
      });
      EXPECT_EQ(gpu_affine, cpu_affine) << "affine: two roundings, the same bits";

      for (const Activation act : {Activation::kSilu, Activation::kGelu, Activation::kGeluTanh}) {
        const auto up = Random(size_t(rows * 3 * k), 5);
        const auto [cpu_glu, gpu_glu] = Both([&](Side& s) {
          const Tensor t = s.Put(x, {rows, 3 * k});
          s->Glu(t, s.Put(up, {rows, 3 * k}), act, t);
          return s.Get(t);
        });
        EXPECT_LT(Difference(gpu_glu, cpu_glu), 2e-6) << "activation " << int(act);
      }
    }
}

TEST_F(CudaBackendTest, LogSumExp) {
  for (const int k : {1, 77, 4096}) {
    auto x = Random(size_t(5 * k), 6);
    x[size_t(k / 2)] = x[size_t(k - 1)] = 50;  // equal maxima: the lower index counts
    Side cpu(*cpu_), gpu(*gpu_);
    std::vector<double> lse[2];
    std::vector<int32_t> at[2];
    std::vector<float> max[2];
    int i = 0;
    for (Side* s : {&cpu, &gpu}) {
      const LogSumExpOut out{s->Put(std::vector<float>(5)), s->Put(std::vector<double>(5)),
                             s->Put(std::vector<int32_t>(5))};
      (*s)->LogSumExp(s->Put(x, {5, k}), out);
      lse[i] = s->Get<double>(out.lse, 5), at[i] = s->Get<int32_t>(out.argmax, 5),
      max[i] = s->Get(out.max, 5);
      ++i;
    }
    EXPECT_EQ(at[0], at[1]);
    int32_t* ids = gpu.Put(std::vector<int32_t>(5));
    gpu->ArgMax(gpu.Put(x, {5, k}), ids);
    EXPECT_EQ(gpu.Get<int32_t>(ids, 5), at[0]);
    // Rows that hold no numbers, on both devices.
    auto broken = x;
    broken[0] = NAN, broken[size_t(2 * k - 1)] = INFINITY, broken[size_t(3 * k)] = -INFINITY;
    std::vector<int32_t> of_broken[2];
    i = 0;
    for (Side* s : {&cpu, &gpu}) {
      int32_t* to = s->Put(std::vector<int32_t>(5));
      (*s)->ArgMax(s->Put(broken, {5, k}), to);
      of_broken[i++] = s->Get<int32_t>(to, 5);
    }
    EXPECT_EQ(of_broken[0], (std::vector<int32_t>{-1, -1, at[0][2], -1, at[0][4]}));
    EXPECT_EQ(of_broken[1], of_broken[0]);
    EXPECT_EQ(max[0], max[1]);
    for (size_t r = 0; r < 5; ++r) EXPECT_NEAR(lse[0][r], lse[1][r], 1e-6);
  }
}

// A weight in any storage, with the memory its view borrows.
struct StoredWeight {
  std::vector<float> floats;
  std::vector<uint16_t> halves;
  weight::QuantizedWeight quantized;
  weight::WeightView view;

  StoredWeight(Storage storage, int n, int k, uint32_t seed) : floats(Random(size_t(n * k), seed)) {
    view = {.storage = storage, .n = n, .k = k};
    if (weight::IsQuantized(storage)) {
      quantized = *weight::Quantize(floats.data(), n, k, storage);
      view = quantized.View();
    } else if (storage == Storage::kF32) {
      view.codes = reinterpret_cast<const std::byte*>(floats.data());
    } else {
      for (float f : floats) halves.push_back(storage == Storage::kF16 ? FloatToHalf(f) : FloatToBf16(f));
      view.codes = reinterpret_cast<const std::byte*>(halves.data());
    }
  }
};

// Float sums are one chain of fused multiply-adds here and there, integer sums are exact: the same bits.
TEST_F(CudaBackendTest, LinearHasTheBitsOfTheCpu) {
  const bool fused = cpu_->Info().name.find("generic") == std::string::npos;
  for (const Storage storage : {Storage::kF32, Storage::kF16, Storage::kBF16, Storage::kW8A8,
                                Storage::kW4A8Channel, Storage::kW4A8Group})
    for (const MatmulArith arith : {MatmulArith::kF32, MatmulArith::kBF16})
      for (const int rows : {1, 3, 9, 65, 300}) {
        const int n = weight::IsQuantized(storage) ? 200 : 77, k = weight::IsQuantized(storage) ? 384 : 100;
        const StoredWeight w(storage, n, k, 7);
        const auto x = Random(size_t(rows * k), 8), bias = Random(size_t(n), 9),
                   old = Random(size_t(rows * n), 10);
        const auto [cpu, gpu] = Both([&](Side& s) {
          const auto packed = *s->Pack(w.view, arith);
          const Tensor plain = s.Put(old, {rows, n}), more = s.Put(old, {rows, n});
          const LinearOut outs[] = {{.w = &packed, .bias = s.Put(bias), .y = plain},
                                    {.w = &packed, .bias = nullptr, .y = more, .accumulate = true}};
          s->Linear(s.Put(x, {rows, k}), outs, arith);
          auto y = s.Get(plain);
          for (const float f : s.Get(more)) y.push_back(f);
          return y;
        });
        if (fused || weight::IsQuantized(storage))
          EXPECT_EQ(gpu, cpu) << "storage " << int(storage) << ", " << rows << " rows";
        else
          EXPECT_LT(Difference(gpu, cpu), 1e-6);
      }
}

// So many bytes go to the device part by part.
TEST_F(CudaBackendTest, ALargeMatrixHasAllItsRows) {
  constexpr int kRows = 5000, kColumns = 1024;
  for (const Storage storage : {Storage::kW8A8, Storage::kW4A8Channel, Storage::kW4A8Group}) {
    const StoredWeight w(storage, kRows, kColumns, 31);
    const auto x = Random(2 * kColumns, 32);
    const auto [cpu, gpu] = Both([&](Side& s) {
      const auto packed = *s->Pack(w.view, MatmulArith::kF32);
      const Tensor y = s.Put(std::vector<float>(2 * kRows), {2, kRows});
      const LinearOut out{.w = &packed, .bias = nullptr, .y = y};
      s->Linear(s.Put(x, {2, kColumns}), {&out, 1}, MatmulArith::kF32);
      return s.Get(y);
    });
    EXPECT_EQ(gpu, cpu) << "storage " << int(storage);
  }
}

// Norm and GLU leave codes to the product behind them, a single row is made by the product itself, and
// products of one input are one launch: the bits of a row do not show it.
TEST_F(CudaBackendTest, ARowAloneHasTheBitsOfOneOfMany) {
  for (const Storage storage : {Storage::kW8A8, Storage::kW4A8Channel, Storage::kW4A8Group})
    for (const int k : {384, 1024}) {
      const int n = 192;
      const StoredWeight first(storage, n, k, 21), second(storage, 2 * n, k, 22);
      const auto x = Random(size_t(70 * k), 23), w = Random(size_t(k), 24), up = Random(size_t(70 * k), 25),
                 old = Random(size_t(70 * 3 * n), 26);
      const auto run = [&](Side& s, int rows, bool glu) {
        const weight::WeightView views[] = {first.view, second.view};
        const auto packed = *s->PackTogether(views, MatmulArith::kF32);
        const auto part = [rows](const std::vector<float>& v, int width) {
          return std::vector(v.begin(), v.begin() + rows * width);
        };
        const Tensor in = s.Put(part(x, k), {rows, k}), y = s.Put(part(old, 3 * n), {rows, 3 * n}),
                     made = s.Put(part(x, k), {rows, k});
        if (glu)
          s->Glu(in, s.Put(part(up, k), {rows, k}), Activation::kSilu, made);
        else
          s->Norm(in, s.Put(w), 1e-5f, made);
        Tensor left = y, right = y;
        left.dim[1] = n, right.dim[1] = 2 * n;
        right.data = y.as<float>() + n;
        const LinearOut outs[] = {{.w = &packed[0], .bias = nullptr, .y = left, .accumulate = true},
                                  {.w = &packed[1], .bias = nullptr, .y = right, .accumulate = true}};
        s->Linear(made, outs, MatmulArith::kF32);
        auto result = s.Get(y);
        for (const float f : s.Get(made)) result.push_back(f);
        return result;
      };
      Side cpu(*cpu_), gpu(*gpu_);
      for (const bool glu : {false, true}) {
        const auto many = run(gpu, 70, glu);
        EXPECT_LT(Difference(many, run(cpu, 70, glu)), 2e-2) << "a code at the edge may be the next one";
        for (const int rows : {1, 2, 4, 5}) {
          const auto few = run(gpu, rows, glu);
          const size_t wide = size_t(rows) * 3 * size_t(n);
          EXPECT_EQ(std::memcmp(few.data(), many.data(), wide * 4), 0)
              << "storage " << int(storage) << ", " << rows << " of 70 rows of " << k << ", glu " << glu;
          EXPECT_EQ(std::memcmp(few.data() + wide, many.data() + size_t(70 * 3 * n), size_t(rows * k) * 4), 0)
              << "the rows between, glu " << glu;
        }
      }
    }
}

// On tensor cores sums run in another order: close, and the same bits for every number of rows.
TEST_F(CudaBackendTest, Bf16OnTensorCores) {
  for (const auto& [n, k] : std::vector<std::pair<int, int>>{{200, 384}, {77, 136}, {16, 1024}, {300, 8}}) {
    const StoredWeight w(Storage::kBF16, n, k, 12);
    const auto x = Random(size_t(300 * k), 13), bias = Random(size_t(n), 14),
               old = Random(size_t(300 * n), 15);
    const auto run = [&](Side& s, int rows) {
      const auto packed = *s->Pack(w.view, MatmulArith::kBF16);
      const Tensor y = s.Put(std::vector(old.begin(), old.begin() + rows * n), {rows, n});
      const LinearOut out{.w = &packed, .bias = s.Put(bias), .y = y, .accumulate = true};
      s->Linear(s.Put(std::vector(x.begin(), x.begin() + rows * k), {rows, k}), {&out, 1},
                MatmulArith::kBF16);
      return s.Get(y);
    };
    Side cpu(*cpu_), gpu(*gpu_);
    const auto all = run(gpu, 300);
    EXPECT_LT(Difference(all, run(cpu, 300)), 5e-6) << n << " x " << k;
    for (const int rows : {1, 8, 9, 16, 17, 100}) {
      const auto few = run(gpu, rows);
      EXPECT_EQ(std::memcmp(few.data(), all.data(), few.size() * 4), 0)
          << rows << " rows of " << n << " x " << k;
    }
  }
}

TEST_F(CudaBackendTest, EmbedHasTheBitsOfTheTable) {
  const std::vector<int32_t> tokens = {3, 0, 199, 3};
  for (const Storage storage : {Storage::kF32, Storage::kF16, Storage::kBF16, Storage::kW8A8}) {
    const StoredWeight table(storage, 200, 144, 11);
    const auto [cpu, gpu] = Both([&](Side& s) {
      const auto packed = *s->Pack(table.view, MatmulArith::kF32);
      const Tensor y = s.Put(std::vector<float>(4 * 144), {4, 144});
      s->Embed(tokens, packed, y);
      return s.Get(y);
    });
    EXPECT_EQ(gpu, cpu) << "storage " << int(storage);
  }
}

TEST_F(CudaBackendTest, TooMuchMemoryIsRefusedWithItsSize) {
  const auto huge = gpu_->Alloc(size_t{1} << 50);
  ASSERT_FALSE(huge.ok());
  EXPECT_EQ(huge.status().code(), Code::kOutOfMemory);
  EXPECT_NE(huge.status().message().find("1125899906842624"), std::string::npos) << huge.status().message();
  EXPECT_TRUE(gpu_->Alloc(1024).ok()) << "the error does not stick";
}

TEST_F(CudaBackendTest, WhatIsMissingIsRefusedByName) {
  for (const auto& [recipe, word] : test::RefusedOnGpu()) {
    const Status status = gpu_->CheckRecipe(*ParseRecipe(recipe, DType::kF32), 64);
    EXPECT_EQ(status.code(), Code::kUnsupported) << recipe;
    EXPECT_NE(status.message().find(word), std::string::npos) << status.message();
  }
  EXPECT_EQ(gpu_->CheckRecipe(*ParseRecipe("exact", DType::kF32), 264).code(), Code::kUnsupported);
  EXPECT_TRUE(gpu_->CheckRecipe(*ParseRecipe("qserve", DType::kF32), 256).ok());
  EXPECT_EQ(gpu_->Reserve(1, 8, 65, 1, 8).code(), Code::kUnsupported);
}

TEST(CudaChoice, WithoutAGpuCudaIsRefusedAndAutoTakesTheCpu) {
  const auto cuda = MakeBackend(DeviceChoice::kCuda, 1), any = MakeBackend(DeviceChoice::kAuto, 1);
  ASSERT_TRUE(any.ok());
  EXPECT_EQ((*any)->Info().device, cuda.ok() ? Device::kCuda : Device::kCpu);
  EXPECT_EQ((*MakeBackend(DeviceChoice::kCpu, 1))->Info().device, Device::kCpu);
  if (cuda.ok()) return;
  EXPECT_EQ(cuda.status().code(), Code::kUnsupported);
  EXPECT_NE(cuda.status().message().find("--device cpu"), std::string::npos) << cuda.status().message();
}

}  // namespace
}  // namespace nibble
