// SPDX-License-Identifier: Apache-2.0
// Prefill attention: SageAttention2 against exact attention in double, and its speed with and without the
// pass that quantizes.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/half.h"
#include "bench/gpu/prefill_case.h"

namespace nibble::gpu {
namespace {

constexpr double kMixedRate = 1.9e15;  // INT8 and E4M3 by WGMMA, measured

void CheckCase(const PrefillCase& c, Checks* checks) {
  const std::string name = "prefill sage2-8b " + c.Name();
  if (!checks->Wanted(name)) return;
  PrefillBatch batch(c);
  const size_t rows = size_t(batch.q_offsets.back()), keys = size_t(batch.k_offsets.back());
  const auto q = PrefillValues(rows, c.heads, c.head_dim, 1, false),
             k = PrefillValues(keys, c.kv_heads, c.head_dim, 2, c.outliers),
             v = PrefillValues(keys, c.kv_heads, c.head_dim, 3, false);
  Buffer<uint16_t> dq(q), dk(k), dv(v), out(q.size());
  Buffer<uint8_t> tiles(cuda::SageTileBytes(batch.shape).total);
  const cuda::SageTiles at = cuda::SageTilesAt(batch.shape, tiles.data());
  const int64_t q_stride = int64_t{c.heads} * c.head_dim, k_stride = int64_t{c.kv_heads} * c.head_dim;
  const float scale = 1 / std::sqrt(float(c.head_dim));
  const auto run = [&] {
    Require(cuda::SageQuantize(
        {batch.shape, dq.data(), dk.data(), dv.data(), q_stride, k_stride, k_stride, at}, nullptr));
    Require(cuda::SageAttention({batch.shape, at, out.data(), q_stride, scale}, nullptr));
    Require(cudaDeviceSynchronize(), name.c_str());
    return out.Host();
  };
  const std::vector<uint16_t> got = run();
  checks->Equal(name + " repeatable", got == run());
  const PrefillError error = ErrorOf(c, batch, q, k, v, got);
  if (c.queries[0] >= 1000)
    fmt::print("{}: cosine {:.6f}, worst row {:.4f}\n", name, error.cosine, error.worst_row);
  checks->AtMost(name + " 1 - cosine", 1 - error.cosine, 0.001);
  checks->AtMost(name + " worst row", error.worst_row, c.outliers ? 0.2 : 0.12);
}

// NaN in one sequence's keys and values shows in its own output and nowhere else.
void CheckNan(Checks* checks) {
  constexpr int kDim = 128;
  const PrefillCase c{{200, 150}, {200, 150}, 2, 2, true, false};
  const std::string name = "prefill sage2-8b NaN stays in its sequence";
  if (!checks->Wanted(name)) return;
  PrefillBatch batch(c);
  const size_t rows = 350;
  const auto q = PrefillValues(rows, 2, kDim, 1, false), k = PrefillValues(rows, 2, kDim, 2, false),
             v = PrefillValues(rows, 2, kDim, 3, false);
  const auto run = [&](bool broken) {
    auto bad_k = k, bad_v = v;
    for (size_t i = 0; broken && i < 2 * kDim; ++i) bad_k[70 * 2 * kDim + i] = bad_v[i] = 0x7FC0;
    Buffer<uint16_t> dq(q), dk(bad_k), dv(bad_v), out(q.size());
    Buffer<uint8_t> tiles(cuda::SageTileBytes(batch.shape).total);
    const cuda::SageTiles at = cuda::SageTilesAt(batch.shape, tiles.data());
    Require(cuda::SageQuantize(
        {batch.shape, dq.data(), dk.data(), dv.data(), 2 * kDim, 2 * kDim, 2 * kDim, at}, nullptr));
    Require(cuda::SageAttention({batch.shape, at, out.data(), 2 * kDim, 0.088f}, nullptr));
    return out.Host();
  };
  const auto good = run(false), broken = run(true);
  const size_t second = size_t{200} * 2 * kDim;
  checks->Equal(name, std::equal(good.begin() + second, good.end(), broken.begin() + second));
  const bool shows = std::all_of(broken.begin(), broken.begin() + second,
                                 [](uint16_t x) { return std::isnan(Bf16ToFloat(x)); });
  checks->Equal(name + " and shows there", shows);
}

void TimeSage(Times* times, const PrefillTiming& t) {
  const std::string shape = t.Shape();
  Buffer<uint8_t> tiles(cuda::SageTileBytes(t.batch.shape).total);
  const cuda::SageTiles at = cuda::SageTilesAt(t.batch.shape, tiles.data());
  const int64_t stride = int64_t{kPrefillHeads} * t.head_dim;
  const auto quantize = [&](int, cudaStream_t s) {
    Require(cuda::SageQuantize(
        {t.batch.shape, t.q.data(), t.k.data(), t.v.data(), stride, stride, stride, at}, s));
  };
  const auto attend = [&](int, cudaStream_t s) {
    Require(
        cuda::SageAttention({t.batch.shape, at, t.out.data(), stride, 1 / std::sqrt(float(t.head_dim))}, s));
  };
  times->Add("sage quantize", shape, Seconds(3, quantize), double(t.q.size()) * 3 * 3 / kReadBandwidth,
             "4.64 TB/s");
  times->AddOps("sage2-8b kernel", shape, Seconds(3, attend), t.Operations(), kMixedRate);
  const auto both = [&](int i, cudaStream_t s) {
    quantize(i, s);
    attend(i, s);
  };
  times->AddOps("sage2-8b end to end", shape, Seconds(3, both), t.Operations(), kMixedRate);
}

}  // namespace

void CheckPrefill(Checks* checks) {
  CheckNan(checks);
  for (const int dim : {64, 128}) {
    const std::vector<PrefillCase> cases = {
        {{128}, {128}, 1, 1, false, false, dim},
        {{128}, {256}, 2, 1, false, false, dim},
        {{128}, {128}, 1, 1, true, false, dim},
        {{300}, {300}, 4, 2, true, false, dim},
        {{1, 130, 77}, {1, 130, 500}, 4, 4, true, false, dim},
        {{64, 5}, {1000, 129}, 8, 1, true, false, dim},
        {{333}, {333}, 2, 2, true, true, dim},
        {{1024}, {1024}, 8, 2, false, false, dim},
        {{1500}, {1500}, 2, 1, true, true, dim},
    };
    for (const PrefillCase& c : cases) CheckCase(c, checks);
    for (uint32_t i = 0; i < 60; ++i) {  // every remainder of the tiles turns up
      const int keys = 1 + int(Mix(i, 71) % 700), queries = 1 + int(Mix(i, 72) % uint32_t(keys));
      const int other = 1 + int(Mix(i, 73) % 300), group = 1 << (Mix(i, 74) % 3);
      CheckCase({{queries, other}, {keys, other}, 2 * group, 2, i % 3 != 0, false, dim}, checks);
    }
  }
}

void TimePrefill(Times* times) {
  for (const int dim : {128, 64})
    for (const bool causal : {false, true})
      for (const int length : {1024, 2048, 4096, 8192, 16384}) {
        const PrefillTiming t(length, dim, causal);
        if (times->Wanted("prefill sage " + t.Shape())) TimeSage(times, t);
      }
}

}  // namespace nibble::gpu
