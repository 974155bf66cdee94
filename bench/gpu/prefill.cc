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

struct Recipe {
  const char* name;
  float levels;
  bool smooth_q;
};
constexpr Recipe kSage8b = {"sage2-8b", 127, false}, kSage4b = {"sage2-4b", 7, true};

// What the codes, groups and means of the kernels are by definition, P V exact.
ref::SageSpec SpecOf(const Recipe& recipe) {
  ref::SageSpec spec;
  spec.q = {ref::QueryGroups(ref::Granularity::kThread, 128, 16), int(recipe.levels)};
  spec.k = {ref::KeyGroups(ref::Granularity::kThread), int(recipe.levels)};
  spec.smooth_q = recipe.smooth_q;
  spec.pv = ref::PvFormat::kExact;
  spec.accumulator.kind = ref::PvAccumulator::Kind::kExact;
  return spec;
}

// Its tiles, and both launches of it.
struct Sage {
  Sage(const PrefillBatch& batch, const Recipe& r)
      : recipe(r), shape(WithDelta(batch, r)), tiles(cuda::SageTileBytes(shape).total) {}

  void Quantize(const uint16_t* q, const uint16_t* k, const uint16_t* v, cudaStream_t stream) {
    const int64_t q_stride = int64_t{shape.heads} * shape.head_dim,
                  k_stride = int64_t{shape.kv_heads} * shape.head_dim;
    Require(cuda::SageQuantize(
        {shape, q, k, v, q_stride, k_stride, k_stride, cuda::SageTilesAt(shape, tiles.data()), recipe.levels},
        stream));
  }
  void Attend(uint16_t* out, cudaStream_t stream) {
    Require(cuda::SageAttention({shape, cuda::SageTilesAt(shape, tiles.data()), out,
                                 int64_t{shape.heads} * shape.head_dim, 1 / std::sqrt(float(shape.head_dim))},
                                stream));
  }

  Recipe recipe;
  cuda::SageShape shape;
  Buffer<uint8_t> tiles;

 private:
  static cuda::SageShape WithDelta(const PrefillBatch& batch, const Recipe& r) {
    cuda::SageShape shape = batch.shape;
    if (r.smooth_q) shape.delta_tiles = batch.delta_tiles;
    return shape;
  }
};

// Against the definition only the rounding of P and V is left.
void CheckCase(const PrefillCase& c, const Recipe& recipe, Checks* checks) {
  const std::string name = fmt::format("prefill {} {}", recipe.name, c.Name());
  if (!checks->Wanted(name)) return;
  PrefillBatch batch(c);
  const size_t rows = size_t(batch.q_offsets.back()), keys = size_t(batch.k_offsets.back());
  auto q = PrefillValues(rows, c.heads, c.head_dim, 1, false);
  const auto k = PrefillValues(keys, c.kv_heads, c.head_dim, 2, c.outliers),
             v = PrefillValues(keys, c.kv_heads, c.head_dim, 3, false);
  for (size_t i = 5; recipe.smooth_q && i < q.size(); i += 37)  // what smoothing Q is for
    if (i % size_t(c.head_dim) == 5) q[i] = FloatToBf16(Bf16ToFloat(q[i]) + 4);
  Buffer<uint16_t> dq(q), dk(k), dv(v), out(q.size());
  Sage sage(batch, recipe);
  const auto run = [&] {
    sage.Quantize(dq.data(), dk.data(), dv.data(), nullptr);
    sage.Attend(out.data(), nullptr);
    Require(cudaDeviceSynchronize(), name.c_str());
    return out.Host();
  };
  const std::vector<uint16_t> got = run();
  checks->Equal(name + " repeatable", got == run());
  const ref::SageSpec spec = SpecOf(recipe);
  const PrefillInputs inputs{q, k, v};
  const PrefillError error = ErrorOf(c, batch, inputs, got),
                     by_definition = ErrorOf(c, batch, inputs, got, &spec);
  if (c.queries[0] >= 1000)
    fmt::print("{}: cosine {:.6f}, worst row {:.4f}; of the definition {:.6f}, {:.4f}\n", name, error.cosine,
               error.worst_row, by_definition.cosine, by_definition.worst_row);
  checks->AtMost(name + " 1 - cosine of the definition", 1 - by_definition.cosine, 0.001);
  checks->AtMost(name + " worst row of the definition", by_definition.worst_row, c.outliers ? 0.2 : 0.12);
  if (recipe.levels < 127) return;
  checks->AtMost(name + " 1 - cosine", 1 - error.cosine, 0.001);
  checks->AtMost(name + " worst row", error.worst_row, c.outliers ? 0.2 : 0.12);
  if (!c.outliers) return;
  const PrefillError fp8 = ErrorOfFp8Scores(c, batch, inputs);
  fmt::print("{}: cosine {:.6f}, with scores in FP8 {:.6f}\n", name, error.cosine, fp8.cosine);
  checks->AtMost(name + " is closer than scores in FP8", 1 - error.cosine, 1 - fp8.cosine);
}

// NaN in one sequence's queries, keys or values shows in its own output and nowhere else.
void CheckNan(const Recipe& recipe, Checks* checks) {
  constexpr int kDim = 128;
  const PrefillCase c{{200, 150}, {200, 150}, 2, 2, true, false};
  const std::string name = fmt::format("prefill {} NaN stays in its sequence", recipe.name);
  if (!checks->Wanted(name)) return;
  PrefillBatch batch(c);
  const size_t rows = 350, second = size_t{200} * 2 * kDim;
  const std::vector<uint16_t> inputs[3] = {PrefillValues(rows, 2, kDim, 1, false),
                                           PrefillValues(rows, 2, kDim, 2, false),
                                           PrefillValues(rows, 2, kDim, 3, false)};
  Sage sage(batch, recipe);
  const auto run = [&](int broken) {
    auto x = std::vector(std::begin(inputs), std::end(inputs));
    for (size_t i = 0; broken >= 0 && i < 2 * kDim; ++i) x[size_t(broken)][70 * 2 * kDim + i] = 0x7FC0;
    Buffer<uint16_t> q(x[0]), k(x[1]), v(x[2]), out(x[0].size());
    sage.Quantize(q.data(), k.data(), v.data(), nullptr);
    sage.Attend(out.data(), nullptr);
    return out.Host();
  };
  const auto good = run(-1);
  for (const int which : {0, 1, 2}) {
    const auto broken = run(which);
    const std::string of = fmt::format("{}, of {}", name, "QKV"[which]);
    checks->Equal(of, std::equal(good.begin() + second, good.end(), broken.begin() + second));
    const bool shows =
        std::all_of(broken.begin() + 70 * 2 * kDim, broken.begin() + (which == 0 ? 71 : 200) * 2 * kDim,
                    [](uint16_t x) { return std::isnan(Bf16ToFloat(x)); });
    checks->Equal(of + " and shows there", shows);
  }
}

void TimeSage(Times* times, const PrefillTiming& t, const Recipe& recipe) {
  const std::string shape = t.Shape(), name = recipe.name;
  Sage sage(t.batch, recipe);
  const auto quantize = [&](int, cudaStream_t s) { sage.Quantize(t.q.data(), t.k.data(), t.v.data(), s); };
  const auto attend = [&](int, cudaStream_t s) { sage.Attend(t.out.data(), s); };
  times->Add(recipe.smooth_q ? name + " quantize" : "sage quantize", shape, Seconds(3, quantize),
             double(t.q.size()) * 3 * 3 / kReadBandwidth, "4.64 TB/s");
  times->AddOps(name + " kernel", shape, Seconds(3, attend), t.Operations(), kMixedRate);
  const auto both = [&](int i, cudaStream_t s) {
    quantize(i, s);
    attend(i, s);
  };
  times->AddOps(name + " end to end", shape, Seconds(3, both), t.Operations(), kMixedRate);
}

}  // namespace

void CheckPrefill(Checks* checks) {
  for (const Recipe& recipe : {kSage8b, kSage4b}) {
    CheckNan(recipe, checks);
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
      for (const PrefillCase& c : cases) CheckCase(c, recipe, checks);
      for (uint32_t i = 0; i < 100; ++i) {  // every remainder of the tiles turns up
        const int keys = 1 + int(Mix(i, 71) % 700), queries = 1 + int(Mix(i, 72) % uint32_t(keys));
        const int other = 1 + int(Mix(i, 73) % 300), group = 1 << (Mix(i, 74) % 4);
        CheckCase({{queries, other}, {keys, other}, 2 * group, 2, i % 3 != 0, false, dim}, recipe, checks);
      }
    }
  }
}

void TimePrefill(Times* times) {
  for (const int dim : {128, 64})
    for (const bool causal : {false, true})
      for (const int length : {1024, 2048, 4096, 8192, 16384}) {
        const PrefillTiming t(length, dim, causal);
        for (const Recipe& recipe : {kSage8b, kSage4b})
          if (times->Wanted(fmt::format("prefill sage {} {}", recipe.name, t.Shape())))
            TimeSage(times, t, recipe);
      }
}

}  // namespace nibble::gpu
