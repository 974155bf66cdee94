// SPDX-License-Identifier: Apache-2.0
// Prefill attention: SageAttention2 against exact attention in double, and its speed with and without the
// pass that quantizes.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/half.h"
#include "bench/gpu/support.h"
#include "kernels/cuda/attention_prefill.h"
#include "kernels/ref/dense.h"

namespace nibble::gpu {
namespace {

constexpr int kDim = 128;
constexpr double kMixedRate = 1.9e15;  // INT8 and E4M3 by WGMMA, measured

struct Case {
  std::vector<int> queries, keys;  // of each sequence
  int heads, kv_heads;
  bool causal, outliers;

  std::string Name() const {
    return fmt::format("prefill sage2-8b q={} k={} heads={}/{} {}{}", fmt::join(queries, ","),
                       fmt::join(keys, ","), heads, kv_heads, causal ? "causal" : "full",
                       outliers ? " outliers" : "");
  }
};

// Offsets and running sums of tiles on the device.
struct Batch {
  std::vector<int32_t> q_offsets{0}, k_offsets{0}, q_ends, k_ends;
  Buffer<int32_t> device;
  cuda::SageShape shape;

  static std::vector<int32_t> Flatten(Batch& b, const Case& c) {
    int q = 0, k = 0;
    for (size_t s = 0; s < c.queries.size(); ++s) {
      b.q_offsets.push_back(b.q_offsets.back() + c.queries[s]);
      b.k_offsets.push_back(b.k_offsets.back() + c.keys[s]);
      b.q_ends.push_back(q += (c.queries[s] + 127) / 128);
      b.k_ends.push_back(k += (c.keys[s] + 127) / 128);
    }
    std::vector<int32_t> all = b.q_offsets;
    for (const auto* part : {&b.k_offsets, &b.q_ends, &b.k_ends})
      all.insert(all.end(), part->begin(), part->end());
    return all;
  }
  explicit Batch(const Case& c) : device(Flatten(*this, c)) {
    const int n = int(c.queries.size());
    const int32_t* at = device.data();
    shape = {n,  c.heads,    c.kv_heads,     kDim,           q_ends.back(), k_ends.back(),
             at, at + n + 1, at + 2 * n + 2, at + 3 * n + 2, c.causal};
  }
};

std::vector<uint16_t> Values(size_t rows, int heads, uint32_t seed, bool outliers) {
  std::vector<uint16_t> x(rows * heads * kDim);
  for (size_t i = 0; i < x.size(); ++i) {
    const int channel = int(i % kDim);
    float value = Normal(uint32_t(i), seed);
    if (outliers && channel % 37 == 5) value = value * 3 + 30;  // what smoothing is for
    x[i] = FloatToBf16(value);
  }
  return x;
}

ref::Matrix Head(const std::vector<uint16_t>& x, int row, int rows, int head, int heads) {
  ref::Matrix m(rows, kDim);
  for (int r = 0; r < rows; ++r)
    for (int d = 0; d < kDim; ++d)
      m[r][d] = double(Bf16ToFloat(x[(size_t(row + r) * heads + head) * kDim + d]));
  return m;
}

void CheckCase(const Case& c, Checks* checks) {
  if (!checks->Wanted(c.Name())) return;
  Batch batch(c);
  const int rows = batch.q_offsets.back(), keys = batch.k_offsets.back();
  const auto q = Values(rows, c.heads, 1, false), k = Values(keys, c.kv_heads, 2, c.outliers),
             v = Values(keys, c.kv_heads, 3, false);
  Buffer<uint16_t> dq(q), dk(k), dv(v), out(q.size());
  Buffer<uint8_t> tiles(cuda::SageTileBytes(batch.shape).total);
  const cuda::SageTiles at = cuda::SageTilesAt(batch.shape, tiles.data());
  const int64_t q_stride = int64_t{c.heads} * kDim, k_stride = int64_t{c.kv_heads} * kDim;
  const float scale = 1 / std::sqrt(float(kDim));
  const auto run = [&] {
    Require(cuda::SageQuantize(
        {batch.shape, dq.data(), dk.data(), dv.data(), q_stride, k_stride, k_stride, at}, nullptr));
    Require(cuda::SageAttention({batch.shape, at, out.data(), q_stride, scale}, nullptr));
    Require(cudaDeviceSynchronize(), c.Name().c_str());
    return out.Host();
  };
  const std::vector<uint16_t> got = run();
  checks->Equal(c.Name() + " repeatable", got == run());
  double dot = 0, exact = 0, ours = 0, worst = 0;
  for (size_t s = 0; s < c.queries.size(); ++s) {
    for (int h = 0; h < c.heads; ++h) {
      const int kv = h / (c.heads / c.kv_heads);
      const auto want = ref::DenseAttention(Head(q, batch.q_offsets[s], c.queries[s], h, c.heads),
                                            Head(k, batch.k_offsets[s], c.keys[s], kv, c.kv_heads),
                                            Head(v, batch.k_offsets[s], c.keys[s], kv, c.kv_heads),
                                            double(scale), c.causal ? ref::Mask::kCausal : ref::Mask::kFull);
      const ref::Matrix mine = Head(got, batch.q_offsets[s], c.queries[s], h, c.heads);
      for (int r = 0; r < c.queries[s]; ++r) {
        double gap = 0, size = 0;
        for (int d = 0; d < kDim; ++d) {
          const double w = want.out[r][d], g = mine[r][d];
          gap += (g - w) * (g - w);
          size += w * w;
          dot += g * w;
          ours += g * g;
        }
        exact += size;
        const double row = std::sqrt(gap / std::max(size, 1e-30));
        if (!(row <= worst)) worst = row;
      }
    }
  }
  const double cosine = dot / std::sqrt(exact * ours);
  if (c.queries[0] >= 1000) fmt::print("{}: cosine {:.6f}, worst row {:.4f}\n", c.Name(), cosine, worst);
  checks->AtMost(c.Name() + " 1 - cosine", 1 - cosine, 0.001);
  checks->AtMost(c.Name() + " worst row", worst, c.outliers ? 0.2 : 0.12);
}

// NaN in one sequence's keys and values shows in its own output and nowhere else.
void CheckNan(Checks* checks) {
  const Case c{{200, 150}, {200, 150}, 2, 2, true, false};
  const std::string name = "prefill sage2-8b NaN stays in its sequence";
  if (!checks->Wanted(name)) return;
  Batch batch(c);
  const size_t rows = 350;
  const auto q = Values(rows, 2, 1, false), k = Values(rows, 2, 2, false), v = Values(rows, 2, 3, false);
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

}  // namespace

void CheckPrefill(Checks* checks) {
  CheckNan(checks);
  const std::vector<Case> cases = {
      {{128}, {128}, 1, 1, false, false},
      {{128}, {256}, 2, 1, false, false},
      {{128}, {128}, 1, 1, true, false},
      {{300}, {300}, 4, 2, true, false},
      {{1, 130, 77}, {1, 130, 500}, 4, 4, true, false},
      {{64, 5}, {1000, 129}, 8, 1, true, false},
      {{333}, {333}, 2, 2, true, true},
      {{1024}, {1024}, 8, 2, false, false},
      {{1500}, {1500}, 2, 1, true, true},
  };
  for (const Case& c : cases) CheckCase(c, checks);
  for (uint32_t i = 0; i < 60; ++i) {  // every remainder of the tiles turns up
    const int keys = 1 + int(Mix(i, 71) % 700), queries = 1 + int(Mix(i, 72) % uint32_t(keys));
    const int other = 1 + int(Mix(i, 73) % 300), group = 1 << (Mix(i, 74) % 3);
    CheckCase({{queries, other}, {keys, other}, 2 * group, 2, i % 3 != 0, false}, checks);
  }
}

void TimePrefill(Times* times) {
  constexpr int kHeads = 32, kTokens = 16384;
  for (const bool causal : {false, true}) {
    for (const int length : {1024, 2048, 4096, 8192, 16384}) {
      const std::string shape =
          fmt::format("{}x{} 32/32 heads {}", kTokens / length, length, causal ? "causal" : "full");
      if (!times->Wanted("prefill " + shape)) continue;
      const std::vector<int> lengths(size_t(kTokens / length), length);
      Batch batch({lengths, lengths, kHeads, kHeads, causal, false});
      const size_t count = size_t{kTokens} * kHeads * kDim;
      std::vector<uint16_t> host(count);
      Buffer<uint16_t> q(count), k(count), v(count), out(count);
      uint32_t seed = 0;
      for (Buffer<uint16_t>* x : {&q, &k, &v}) {
        ++seed;
        for (size_t i = 0; i < (size_t{1} << 22); ++i) host[i] = FloatToBf16(Normal(uint32_t(i), seed));
        for (size_t i = size_t{1} << 22; i < count; ++i) host[i] = host[i & ((size_t{1} << 22) - 1)];
        x->Set(host);
      }
      Buffer<uint8_t> tiles(cuda::SageTileBytes(batch.shape).total);
      const cuda::SageTiles at = cuda::SageTilesAt(batch.shape, tiles.data());
      const int64_t stride = int64_t{kHeads} * kDim;
      const double operations = 4.0 * kTokens * length * kHeads * kDim / (causal ? 2 : 1);
      const auto quantize = [&](int, cudaStream_t s) {
        Require(
            cuda::SageQuantize({batch.shape, q.data(), k.data(), v.data(), stride, stride, stride, at}, s));
      };
      times->Add("sage quantize", shape, Seconds(3, quantize), double(count) * 3 * 3 / kReadBandwidth,
                 "4.64 TB/s");
      const auto attend = [&](int, cudaStream_t s) {
        Require(cuda::SageAttention({batch.shape, at, out.data(), stride, 0.08838835f}, s));
      };
      times->AddOps("sage2-8b kernel", shape, Seconds(3, attend), operations, kMixedRate);
      const auto both = [&](int i, cudaStream_t s) {
        quantize(i, s);
        attend(i, s);
      };
      times->AddOps("sage2-8b end to end", shape, Seconds(3, both), operations, kMixedRate);
    }
  }
}

}  // namespace nibble::gpu
