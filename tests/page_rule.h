// SPDX-License-Identifier: Apache-2.0
// What tests of the page rule share: sequences of random Q, K and V, fed to cache and backend in steps of any
// cut, and what attention gives.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "backend/cpu_backend.h"
#include "cache/kv_cache.h"
#include "kernels/cpu/kernels.h"
#include "quant/kv/registry.h"

namespace nibble::test {

inline constexpr int kPage = kv::kPageTokens;
inline constexpr int kHeads = 6, kKvHeads = 2, kHeadDim = 64, kLayers = 2, kTokens = 300;
inline constexpr int kMaxStep = 320;

// Q, K and V of one sequence: [layers, tokens, heads or kv_heads, head_dim].
struct Sequence {
  std::vector<float> q, k, v;
  int tokens;
  static Sequence Random(int tokens, uint32_t seed) {
    Sequence s{.q = {}, .k = {}, .v = {}, .tokens = tokens};
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    const auto fill = [&](std::vector<float>& x, int heads) {
      x.resize(size_t(kLayers) * size_t(tokens) * size_t(heads) * kHeadDim);
      for (float& f : x) f = normal(random);
    };
    fill(s.q, kHeads), fill(s.k, kKvHeads), fill(s.v, kKvHeads);
    return s;
  }
  const float* Row(const std::vector<float>& x, int layer, int64_t token, int heads) const {
    return x.data() + (int64_t{layer} * tokens + token) * heads * kHeadDim;
  }
};

// Which sequence gets how many tokens in each step.
struct Feed {
  int seq, count;
};
using Schedule = std::vector<std::vector<Feed>>;

enum class Fault { kNone, kOpenRowsNotCopied, kQuerySumsForgotten, kTailsForgotten };

// What a run of a schedule is made with.
struct RunOptions {
  const cpu::CpuKernels* isa;
  AttentionRecipe recipe;
  int threads = 1;
  int64_t window = 0;
  Fault fault = Fault::kNone;
};

class Runner {
 public:
  Runner(const RunOptions& options, const std::vector<Sequence>& seqs)
      : options_(options), seqs_(seqs), backend_(*options.isa, options.threads) {
    NIBBLE_CHECK(backend_.Reserve(kMaxStep, 256, kHeads, kKvHeads, kHeadDim).ok(), "Reserve");
    auto cache = KvCache::Make(backend_, {.shape = {kLayers, kKvHeads, kHeadDim},
                                          .heads = kHeads,
                                          .recipe = options.recipe,
                                          .max_seqs = int(seqs.size()),
                                          .max_step_tokens = kMaxStep,
                                          .max_tokens = kPoolTokens});
    NIBBLE_CHECK(cache.ok(), "KvCache");
    cache_ = *std::move(cache);
    Poison();
    for (const Sequence& s : seqs) {
      ids_.push_back(*cache_->Open());
      fed_.push_back(0);
      outs_.push_back(std::vector<float>(s.q.size()));
    }
  }

  // Attention outputs of sequence 0: [layers, tokens, heads, head_dim].
  std::vector<float> Run(const Schedule& schedule) {
    for (const auto& step : schedule) Step(step);
    EXPECT_EQ(fed_[0], seqs_[0].tokens) << "the schedule must feed all of sequence 0";
    return outs_[0];
  }

 private:
  static constexpr int kPoolTokens = 1280;

  // Every byte the cache owns becomes part of a NaN, for codes, scales and raw values alike.
  void Poison() {
    const kv::PageShape page{.head_dim = kHeadDim, .tokens = kPage};
    const auto fill = [](std::byte* p, int64_t bytes) {
      if (bytes > 0) memset(p, 0xff, size_t(bytes));  // a recipe without side records has no pool for them
    };
    for (int layer = 0; layer < kLayers; ++layer) {
      const KvView view = cache_->View(layer);
      const auto raw = [&](kv::CodecId id) {
        return int64_t{kKvHeads} * kv::TailBytes(options_.recipe.tail, kv::Get(id).raw, page);
      };
      const auto row = [&](kv::CodecId id, const HeadMix& mix) {
        return kv::RowBytes(kv::Get(id), page, kKvHeads, mix.two_bit);
      };
      fill(view.k_pool, kPoolTokens / kPage * row(view.k_codec, view.k_mix));
      fill(view.v_pool, kPoolTokens / kPage * row(view.v_codec, view.v_mix));
      fill(view.k_tail, raw(view.k_codec) * int64_t(seqs_.size()));
      fill(view.v_tail, raw(view.v_codec) * int64_t(seqs_.size()));
      fill(view.side_pool, int64_t{kPoolTokens} / kPage * kKvHeads * view.side.bytes);
      fill(view.side_tail, int64_t(seqs_.size()) * kKvHeads * view.side.seq_bytes);
      fill(view.k_scratch, raw(view.k_codec)), fill(view.v_scratch, raw(view.v_codec));
    }
  }

  void Step(const std::vector<Feed>& step) {
    std::vector<SeqId> ids;
    std::vector<int32_t> counts;
    for (const Feed& f : step) {
      ids.push_back(ids_[size_t(f.seq)]);
      counts.push_back(f.count);
    }
    ASSERT_TRUE(cache_->BeginStep(ids, counts).ok());
    for (int layer = 0; layer < kLayers; ++layer) Layer(step, layer);
    for (const Feed& f : step) fed_[size_t(f.seq)] += f.count;
  }

  void Layer(const std::vector<Feed>& step, int layer) {
    std::vector<float> q, k, v;
    const auto gather = [&](std::vector<float>& to, const std::vector<float> Sequence::*from, int heads) {
      for (const Feed& f : step) {
        const Sequence& s = seqs_[size_t(f.seq)];
        const float* row = s.Row(s.*from, layer, fed_[size_t(f.seq)], heads);
        to.insert(to.end(), row, row + int64_t{f.count} * heads * kHeadDim);
      }
    };
    gather(q, &Sequence::q, kHeads), gather(k, &Sequence::k, kKvHeads), gather(v, &Sequence::v, kKvHeads);
    const int64_t rows = int64_t(q.size()) / (kHeads * kHeadDim);
    std::vector<float> out(q.size(), NAN);
    const auto tensor = [&](std::vector<float>& x, int heads) {
      return Tensor::Dense(x.data(), DType::kF32, Device::kCpu, {rows, heads, kHeadDim});
    };
    KvView view = cache_->View(layer);
    std::vector<KvSegment> segments(view.segments.begin(), view.segments.end());
    if (options_.fault == Fault::kOpenRowsNotCopied)
      for (KvSegment& s : segments) s.copy_from = -1;
    view.segments = segments;
    if (options_.fault == Fault::kQuerySumsForgotten)
      for (size_t i = 0; i < seqs_.size() * kKvHeads; ++i)
        memset(view.side_tail + int64_t(i) * view.side.seq_bytes + view.side.q_sum.offset, 0,
               size_t(view.side.q_sum.bytes));
    if (options_.fault == Fault::kTailsForgotten)
      memset(view.k_tail, 0, kKvHeads * size_t(kv::Int8Tail::Bytes({kHeadDim, kPage})));
    backend_.KvAppend({.kv = view, .k = tensor(k, kKvHeads), .v = tensor(v, kKvHeads)});
    backend_.Attention({.kv = view,
                        .q = tensor(q, kHeads),
                        .out = tensor(out, kHeads),
                        .heads = kHeads,
                        .scale = 0.125f,
                        .window = options_.window});
    const float* row = out.data();
    for (const Feed& f : step) {
      const Sequence& s = seqs_[size_t(f.seq)];
      const int64_t floats = int64_t{f.count} * kHeads * kHeadDim;
      const int64_t at = (int64_t{layer} * s.tokens + fed_[size_t(f.seq)]) * kHeads * kHeadDim;
      std::copy(row, row + floats, outs_[size_t(f.seq)].begin() + at);
      row += floats;
    }
  }

  const RunOptions options_;
  const std::vector<Sequence>& seqs_;
  CpuBackend backend_;
  std::unique_ptr<KvCache> cache_;
  std::vector<SeqId> ids_;
  std::vector<int> fed_;
  std::vector<std::vector<float>> outs_;
};

inline std::vector<float> Outputs(const RunOptions& options, const std::vector<Sequence>& seqs,
                                  const Schedule& schedule) {
  return Runner(options, seqs).Run(schedule);
}

inline Schedule InChunks(int chunk) {
  Schedule s;
  for (int t = 0; t < kTokens; t += chunk) s.push_back({{0, std::min(chunk, kTokens - t)}});
  return s;
}

// Sequence 0 in pieces of 1 to 90 tokens, before, between and after pieces of two others.
inline Schedule AmongOthers() {
  Schedule s;
  std::mt19937 random(11);
  int left[] = {kTokens, 200, 150};
  while (left[0] > 0) {
    s.push_back({});
    for (int seq : {1, 0, 2}) {
      const int count = std::min(left[seq], int(1 + random() % 90));
      left[seq] -= count;
      if (count > 0) s.back().push_back({seq, count});
    }
  }
  return s;
}

inline std::vector<Sequence> ThreeSequences() {
  return {Sequence::Random(kTokens, 1), Sequence::Random(200, 2), Sequence::Random(150, 3)};
}

inline std::vector<const cpu::CpuKernels*> Isas() {
  std::vector<const cpu::CpuKernels*> isas;
  for (const cpu::CpuKernels* isa : cpu::AllIsas())
    if (isa->runs_here()) isas.push_back(isa);
  return isas;
}

inline bool SameBytes(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

inline bool AllFinite(const std::vector<float>& x) {
  return std::all_of(x.begin(), x.end(), [](float f) { return std::isfinite(f); });
}

}  // namespace nibble::test
