// SPDX-License-Identifier: Apache-2.0
#include "bench/attention_ops.h"

#include <fmt/format.h>

#include <cmath>
#include <memory>
#include <random>

#include "cache/kv_cache.h"
#include "quant/kv/registry.h"

namespace nibble::bench {
namespace {

constexpr int kHeads = 32, kKvHeads = 8, kStep = 512;
constexpr int64_t kColdBytes = 192 << 20;

Tensor RandomRows(Backend& backend, int rows, int heads, int head_dim) {
  const size_t values = size_t(rows) * size_t(heads) * size_t(head_dim);
  const Buffer b = Must(backend.Alloc(values * sizeof(float)));
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  auto* x = reinterpret_cast<float*>(b.data);
  for (size_t i = 0; i < values; ++i) x[i] = normal(random);
  return Tensor::Dense(b.data, DType::kF32, Device::kCpu, {rows, heads, head_dim});
}

void Release(Backend& backend, const Tensor& t) {
  backend.Free({static_cast<std::byte*>(t.data), size_t(t.dim[0] * t.dim[1] * t.dim[2]) * sizeof(float)});
}

void Check(const Status& status) { NIBBLE_CHECK(status.ok(), status.message().c_str()); }

}  // namespace

std::vector<AttentionCase> AttentionCases() {
  std::vector<AttentionCase> cases;
  for (const int head_dim : {64, 128})
    for (const char* recipe : {"kv16", "kv8", "k=int4-token v=int4-token", "flashq4", "flashq2"})
      cases.push_back({recipe, head_dim, 16384, 1});
  for (const int head_dim : {64, 128})
    for (const char* recipe :
         {"kv16", "k=int4-token v=int4-token", "kv16+sage1", "k=f16 v=f16 qk=int8-block pv=int8"})
      cases.push_back({recipe, head_dim, 8192 - kStep, kStep});
  return cases;
}

Timing TimeAttention(Backend& backend, const Floors& floors, const AttentionCase& c) {
  const AttentionRecipe recipe = Must(ParseRecipe(c.recipe, DType::kF32));
  const kv::PageShape page{.head_dim = c.head_dim, .tokens = kv::kPageTokens};
  const int64_t page_bytes = kv::Get(recipe.k).page_bytes(page) + kv::Get(recipe.v).page_bytes(page);
  const int64_t read = int64_t{c.depth / page.tokens} * kKvHeads * page_bytes;
  const int layers = c.rows > 1 ? 1 : int(kColdBytes / read + 1);
  const auto cache = Must(KvCache::Make(backend, {.shape = {layers, kKvHeads, c.head_dim},
                                                  .heads = kHeads,
                                                  .recipe = recipe,
                                                  .max_seqs = 1,
                                                  .max_step_tokens = kStep,
                                                  .max_tokens = c.depth + kStep}));
  Check(backend.Reserve(kStep, kHeads * c.head_dim, kHeads, kKvHeads, c.head_dim));
  const Tensor rows = RandomRows(backend, kStep, kKvHeads, c.head_dim);
  const Tensor q = RandomRows(backend, c.rows, kHeads, c.head_dim),
               out = RandomRows(backend, c.rows, kHeads, c.head_dim);
  const SeqId seq = Must(cache->Open());
  cache->SetPrefill(seq, c.depth + kStep);
  const auto append = [&](int32_t count) {
    Check(cache->BeginStep({&seq, 1}, {&count, 1}));
    Tensor part = rows;
    part.dim[0] = count;
    for (int layer = 0; layer < layers; ++layer) backend.KvAppend({cache->View(layer), part, part});
  };
  for (int done = 0; done < c.depth; done += kStep) append(std::min(kStep, c.depth - done));
  append(c.rows);
  Timing t{.op = (c.rows > 1 ? "prefill " : "decode ") + c.recipe,
           .shape = fmt::format("32/8 x {} @ {}", c.head_dim, c.depth),
           .rows = c.rows};
  const float scale = 1 / std::sqrt(float(c.head_dim));
  t.seconds = Median([&](int run) {
    backend.Attention({cache->View(run % layers), q, out, kHeads, scale, 0});
  });
  const double seen = double(c.rows) * (double(c.depth) + (double(c.rows) + 1) / 2);
  t.bytes = double(read);
  t.operations = 4 * seen * kHeads * c.head_dim;
  t.floor = c.rows > 1 ? (floors.f32 > 0 ? t.operations / floors.f32 : 0) : t.bytes / floors.read;
  for (const Tensor& x : {rows, q, out}) Release(backend, x);
  return t;
}

}  // namespace nibble::bench
