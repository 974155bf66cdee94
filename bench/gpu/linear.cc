// SPDX-License-Identifier: Apache-2.0
// Times of the integer matmuls over rotating cold weights, beside the floor: weights and activations read
// once, outputs written once, or the operations at the rate of the tensor cores, whichever takes longer.
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>

#include "bench/gpu/linear_problem.h"
#include "quant/weight/storage.h"

namespace nibble::gpu {
namespace {

using weight::Storage;

constexpr double kTensorRate = 1.9e15;  // s8 operations a second, measured
constexpr double kSustained = 2;        // seconds

struct Shape {
  int n, k;
};
constexpr Shape kShapes[] = {{6144, 4096}, {4096, 4096}, {28672, 4096}, {4096, 14336}};

// Weights of one shape, as many copies as make them cold.
struct TimedWeights {
  std::vector<Buffer<std::byte>> copies;
  Storage storage;
  Shape shape;
  TimedWeights(Storage s, Shape at) : storage(s), shape(at) {
    const size_t bytes = cuda::LinearBytes(s, at.n, at.k);
    StoredWeight stored(s, at.n, at.k, 1, false);
    const DeviceWeight first(stored);
    for (int i = ColdCopies(bytes); i > 0; --i) {
      copies.emplace_back(bytes);
      Require(cudaMemcpy(copies.back().data(), first.memory().data(), bytes, cudaMemcpyDeviceToDevice),
              "copy");
    }
  }
};

// `least`: seconds for which the device is kept at it, 0 for a burst.
void TimeOne(Times* times, const TimedWeights& w, int rows, cuda::LinearPlan plan, bool early,
             const std::string& op, double least = 0) {
  const int n = w.shape.n, k = w.shape.k;
  const size_t x_bytes = size_t(rows) * k;
  Buffer<int8_t> x(x_bytes);
  FillRandom(x.data(), x_bytes, 5);
  const Buffer<float> scale(std::vector<float>(size_t(rows), 0.01f));
  const Buffer<int32_t> sum(std::vector<int32_t>(size_t(rows), 17));
  const Buffer<uint16_t> y(size_t(rows) * n);
  const int launches = std::max(rows >= 1024 ? 6 : 24, int(w.copies.size()));
  const auto launch = [&](int i, cudaStream_t stream) {
    const std::byte* memory = w.copies[size_t(i) % w.copies.size()].data();
    Require(cuda::LinearInt({cuda::LinearWeightAt(w.storage, n, k, memory), x.data(), scale.data(),
                             sum.data(), nullptr, y.data(), cuda::Real::kBF16, n, rows, false, early, plan},
                            stream));
  };
  double seconds = Seconds(launches, launch);
  if (least > 0) seconds = Seconds(launches, launch, int(least / (seconds * launches)) + 1);
  const double bytes = double(cuda::LinearBytes(w.storage, n, k)) + double(x_bytes) + 2.0 * rows * n;
  const double memory = bytes / kReadBandwidth, tensor = 2.0 * rows * n * k / kTensorRate;
  times->Add(
      op,
      fmt::format("{}x{} rows {} tile {} split {} depth {}", n, k, rows, plan.tokens, plan.split, plan.depth),
      seconds, std::max(memory, tensor), memory > tensor ? "4.64 TB/s" : "1,900 TOP/s");
}

void TimePacking(Times* times, Storage storage, Shape at) {
  const std::string op = fmt::format("linear/pack {}", weight::Name(storage));
  if (!times->Wanted(op)) return;
  StoredWeight stored(storage, at.n, at.k, 1, false);
  std::vector<Buffer<uint8_t>> buffers;
  const weight::WeightView view = Upload(stored, &buffers);
  const size_t bytes = cuda::LinearBytes(storage, at.n, at.k);
  const Buffer<std::byte> to(bytes);
  const double seconds =
      Seconds(4, [&](int, cudaStream_t s) { Require(cuda::PackLinear(view, to.data(), s)); });
  times->Add(op, fmt::format("{}x{}", at.n, at.k), seconds, 2.0 * double(bytes) / kReadBandwidth,
             "4.64 TB/s");
}

void TimeRows(Times* times, int rows, int k) {
  if (!times->Wanted("linear/quantize")) return;
  const Buffer<uint16_t> x(std::vector<uint16_t>(size_t(rows) * k, 0x3F80));
  const Buffer<int8_t> q(size_t(rows) * k);
  const Buffer<float> scale(static_cast<size_t>(rows));
  const Buffer<int32_t> sum(static_cast<size_t>(rows));
  const double seconds = Seconds(24, [&](int, cudaStream_t s) {
    Require(
        cuda::QuantizeRows({x.data(), cuda::Real::kBF16, q.data(), scale.data(), sum.data(), k, rows, k}, s));
  });
  times->Add("linear/quantize bf16", fmt::format("{}x{}", rows, k), seconds, 3.0 * rows * k / kReadBandwidth,
             "4.64 TB/s");
}

}  // namespace

void TimeLinear(Times* times) {
  for (const Storage storage : kLinearStorages) {
    const std::string op = fmt::format("linear/{}", weight::Name(storage));
    if (!times->Wanted(op) && !times->Wanted("linear/sweep")) continue;
    for (const Shape at : kShapes) {
      const TimedWeights w(storage, at);
      for (const int rows : {1, 16, 32, 64, 128, 256, 1024, 4096}) {
        const cuda::LinearPlan plan = cuda::PlanLinear(storage, at.n, at.k, rows, 132);
        if (times->Wanted(op)) {
          TimeOne(times, w, rows, plan, true, op);
          if (rows <= 64) TimeOne(times, w, rows, plan, false, op + " no early start");
          if (rows == 64 || rows == 4096) TimeOne(times, w, rows, plan, true, op + " sustained", kSustained);
        }
        // `linear/sweep`: every tile and number of parts, from which PlanLinear's figures come.
        if (storage != Storage::kW4A8Group || !times->Wanted("linear/sweep") || times->Wanted(op)) continue;
        for (const int depth : {3, 4, 6, 8})
          if (rows <= 8 || (rows <= 16 && at.k <= 4096 && depth < 8))
            TimeOne(times, w, rows, {rows <= 8 ? 8 : 16, 1, cuda::LinearPlan::kFew, depth}, true,
                    "linear/sweep");
        for (const int tokens : {16, 32, 64, 128}) {
          if ((tokens > 16 && tokens >= 2 * rows) || tokens * 8 < rows) continue;
          for (const int split : {1, 2, 3, 4, 5, 6, 8}) {
            const int blocks = (at.n + 255) / 256 * ((rows + tokens - 1) / tokens) * split;
            if (split == 1 || blocks <= 132 * 3)
              TimeOne(times, w, rows, {tokens, split}, true, "linear/sweep");
          }
        }
      }
    }
    if (times->Wanted(op)) TimePacking(times, storage, {28672, 4096});
  }
  for (const int rows : {1, 64, 4096}) TimeRows(times, rows, 4096);
}

}  // namespace nibble::gpu
