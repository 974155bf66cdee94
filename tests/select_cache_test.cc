// SPDX-License-Identifier: Apache-2.0
// Token selection through the cache and the backend: a row's bytes do not depend on how its sequence was cut,
// on its batch or on threads; H2O against its definition; what is counted; and the engine on the embedded
// model.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <random>

#include "backend/cpu_backend.h"
#include "cache/kv_cache.h"
#include "engine/engine.h"
#include "float_kernels.h"
#include "kernels/ref/select.h"
#include "quant/kv/registry.h"

namespace nibble {
namespace {

constexpr int kHeads = 4, kKvHeads = 2, kDim = 64, kLayers = 2, kTokens = 300, kMaxStep = 320;

AttentionRecipe Recipe(const std::string& text) {
  auto recipe = ParseRecipe(text, DType::kF32);
  EXPECT_TRUE(recipe.ok()) << recipe.status().message();
  return *recipe;
}

// Q, K, V of one sequence for all layers: [layers, tokens, heads, dim].
struct Sequence {
  explicit Sequence(uint32_t seed, int length = kTokens) : tokens(length) {
    const auto fill = [&](std::vector<float>& x, int heads, uint32_t salt) {
      x = test::Normal(size_t(kLayers) * size_t(tokens) * size_t(heads) * kDim, seed + salt, 1.5f);
    };
    fill(q, kHeads, 0), fill(k, kKvHeads, 1), fill(v, kKvHeads, 2);
  }
  int tokens;
  std::vector<float> q, k, v;
};

struct Options {
  AttentionRecipe recipe;
  int threads = 1;
  int64_t window = 0, prefill = 0;
  const cpu::CpuKernels* isa = test::Isas()[0];
};

// Feeds sequences in steps of `counts` tokens each (by sequence) and returns all outputs of each.
class Runner {
 public:
  Runner(const Options& options, const std::vector<Sequence>& seqs)
      : o_(options), seqs_(seqs), backend_(*options.isa, options.threads) {
    EXPECT_TRUE(backend_.Reserve(kMaxStep, 256, kHeads, kKvHeads, kDim).ok());
    cache_ = *KvCache::Make(backend_, {.shape = {kLayers, kKvHeads, kDim},
                                       .heads = kHeads,
                                       .recipe = o_.recipe,
                                       .max_seqs = int(seqs.size()),
                                       .max_step_tokens = kMaxStep,
                                       .max_tokens = 2048});
    for (const Sequence& s : seqs) {
      ids_.push_back(*cache_->Open());
      cache_->SetPrefill(ids_.back(), o_.prefill);
      outs_.emplace_back(s.q.size(), NAN);
    }
  }

  std::vector<std::vector<float>> Run(int chunk) {
    std::vector<int> fed(seqs_.size(), 0);
    for (bool more = true; more;) {
      std::vector<int32_t> counts;
      more = false;
      for (size_t i = 0; i < seqs_.size(); ++i) {
        counts.push_back(std::min(chunk, seqs_[i].tokens - fed[i]));
        more |= counts.back() > 0;
      }
      if (more) Step(counts, fed);
    }
    return outs_;
  }
  AttentionCounters Counters() { return backend_.TakeCounters(); }

 private:
  void Step(const std::vector<int32_t>& counts, std::vector<int>& fed) {
    ASSERT_TRUE(cache_->BeginStep(ids_, counts).ok());
    const auto rows = int64_t(cache_->Positions().size());
    for (int layer = 0; layer < kLayers; ++layer) {
      std::vector<float> q, k, v, out(size_t(rows) * kHeads * kDim);
      const auto take = [&](std::vector<float>& to, const std::vector<float>& from, size_t i, size_t width) {
        const size_t at = (size_t(layer * seqs_[i].tokens) + size_t(fed[i])) * width;
        to.insert(to.end(), from.begin() + int64_t(at),
                  from.begin() + int64_t(at + size_t(counts[i]) * width));
      };
      for (size_t i = 0; i < seqs_.size(); ++i) {
        take(q, seqs_[i].q, i, kHeads * kDim);
        take(k, seqs_[i].k, i, kKvHeads * kDim), take(v, seqs_[i].v, i, kKvHeads * kDim);
      }
      const auto tensor = [&](std::vector<float>& x, int heads) {
        return Tensor::Dense(x.data(), DType::kF32, Device::kCpu, {rows, heads, kDim});
      };
      const KvView view = cache_->View(layer);
      backend_.KvAppend({view, tensor(k, kKvHeads), tensor(v, kKvHeads)});
      backend_.Attention({view, tensor(q, kHeads), tensor(out, kHeads), kHeads, 0.125f, o_.window});
      size_t from = 0;
      for (size_t i = 0; i < seqs_.size(); ++i) {
        const size_t n = size_t(counts[i]) * kHeads * kDim;
        const size_t to = (size_t(layer * seqs_[i].tokens) + size_t(fed[i])) * kHeads * kDim;
        if (n > 0) std::memcpy(&outs_[i][to], &out[from], n * sizeof(float));
        from += n;
      }
    }
    for (size_t i = 0; i < seqs_.size(); ++i) fed[i] += counts[i];
  }

  Options o_;
  const std::vector<Sequence>& seqs_;
  CpuBackend backend_;
  std::unique_ptr<KvCache> cache_;
  std::vector<SeqId> ids_;
  std::vector<std::vector<float>> outs_;
};

const std::vector<std::string> kRecipes{"sparq:r=8,k=24,mean=off",
                                        "sparq:r=8,k=24,mean=mean,copy=int8",
                                        "sparq:r=8,k=24,mean=unselected,copy=int4 k=int8-token v=int4-token",
                                        "sparq:r=16,k=32,mean=blocks,sinks=2 k=flashq4 v=flashq4",
                                        "sparq:r=16,k=40,rho=0.6,eps=0.3,mean=mean k=f16 v=f16",
                                        "window:k=40",
                                        "h2o:k=40",
                                        "h2o:k=24,local=3 k=int4-token v=int4-token",
                                        "sparq:r=8,k=24,mean=unselected k=flashq-mixed v=flashq-mixed",
                                        "h2o:k=40 k=flashq-mixed v=flashq-mixed"};

bool Same(const std::vector<float>& a, const std::vector<float>& b) {
  return test::SameBits(a.data(), b.data(), a.size());
}

TEST(SelectCache, BytesDoNotDependOnCutBatchOrThreads) {
  const std::vector<Sequence> one{Sequence(1)}, three{Sequence(1), Sequence(7, 130), Sequence(8, 64)};
  for (const std::string& text : kRecipes)
    for (const int64_t window : {0, 100})
      for (const int64_t prefill : {0, 90}) {
        const Options options{.recipe = Recipe(text), .window = window, .prefill = prefill};
        const std::vector<float> want = Runner(options, one).Run(256)[0];
        EXPECT_FALSE(std::isnan(want.back()));
        const std::string where = fmt::format("{} window {} prefill {}", text, window, prefill);
        for (const int chunk : {1, 7, 64})
          EXPECT_TRUE(Same(want, Runner(options, one).Run(chunk)[0])) << where;
        Options threads = options;
        threads.threads = 3;
        EXPECT_TRUE(Same(want, Runner(threads, one).Run(100)[0])) << where;
        EXPECT_TRUE(Same(want, Runner(threads, three).Run(50)[0])) << where;
        Options other = options;  // the check can fail
        other.prefill = 91;
        EXPECT_FALSE(Same(want, Runner(other, one).Run(256)[0])) << where;
      }
}

// Prefill rows are those of dense attention.
TEST(SelectCache, PrefillRowsAreDense) {
  const std::vector<Sequence> one{Sequence(1)};
  for (const std::string text : {"sparq:r=8,k=24", "window:k=40", "h2o:k=40"}) {
    const auto dense = Runner({.recipe = Recipe("exact")}, one).Run(70)[0];
    const auto got = Runner({.recipe = Recipe(text), .prefill = 200}, one).Run(70)[0];
    const size_t rows = size_t{200} * kHeads * kDim;
    EXPECT_TRUE(test::SameBits(got.data(), dense.data(), rows)) << text;
    EXPECT_FALSE(test::SameBits(got.data() + rows, dense.data() + rows, rows / 200)) << text;
    EXPECT_TRUE(Same(dense, Runner({.recipe = Recipe(text), .prefill = kTokens}, one).Run(70)[0])) << text;
  }
}

// Row by row with the state in double, first in prefill, then evicting. Rows after a near tie are not
// compared.
TEST(SelectCache, H2oFollowsItsDefinition) {
  const std::vector<Sequence> one{Sequence(5)};
  const Sequence& s = one[0];
  const int group = kHeads / kKvHeads, prefill = 60, width = kKvHeads * kDim;
  for (const auto* isa : test::Isas()) {
    const Options options{.recipe = Recipe("h2o:k=48,local=8"), .prefill = prefill, .isa = isa};
    const std::vector<float> got = Runner(options, one).Run(77)[0];
    for (int head = 0; head < kKvHeads; ++head) {
      // All tokens as f32 pages, which a f32 cache's pages are.
      std::vector<float> k, v;
      for (int t = 0; t < kTokens; ++t)
        for (int d = 0; d < kDim; ++d) {
          k.push_back(s.k[size_t(t * width + head * kDim + d)]);
          v.push_back(s.v[size_t(t * width + head * kDim + d)]);
        }
      k.resize(size_t{320} * kDim), v.resize(size_t{320} * kDim);
      std::vector<const std::byte*> kp, vp;
      for (int p = 0; p < 5; ++p) {
        kp.push_back(reinterpret_cast<const std::byte*>(&k[size_t(p) * 64 * kDim]));
        vp.push_back(reinterpret_cast<const std::byte*>(&v[size_t(p) * 64 * kDim]));
      }
      std::vector<double> scores;
      int compared = 0;
      for (int t = 0; t < kTokens; ++t) {
        const size_t at = size_t(t * kHeads + head * group) * kDim;
        H2oArgs a{};
        a.row = {.q = &s.q[at],
                 .k_pages = kp.data(),
                 .v_pages = vp.data(),
                 .k_raw = kp[size_t(t / 64)],
                 .v_raw = vp[size_t(t / 64)],
                 .position = t,
                 .group = group,
                 .page = {kDim, 64},
                 .scale = 0.125f};
        a.h2o = {.k = 48, .local = 8}, a.prefill = t < prefill;
        const ref::SelectedRow want = ref::H2o(a, scores);
        if (want.margin < 1e-5) break;
        if (t < prefill) continue;
        ++compared;
        EXPECT_EQ(want.tokens.size(), 48u);
        EXPECT_TRUE(test::IsWithin(test::Compare(&got[at], 0, want.out.data(), 1, group * kDim), 1e-10, 1e-5))
            << isa->isa << " row " << t;
      }
      EXPECT_GT(compared, 150);
    }
  }
}

TEST(SelectCache, CountersOfDecodeRows) {
  const std::vector<Sequence> one{Sequence(1)};
  const int64_t heads = kLayers * kKvHeads, page_bytes = 64 * kDim * 4;
  const auto counters = [&](const std::string& text, int chunk) {
    Runner runner({.recipe = Recipe(text), .prefill = kTokens - 2}, one);
    runner.Run(chunk);
    return runner.Counters();
  };
  for (const int chunk : {1, 300}) {
    const AttentionCounters dense = counters("exact", chunk);
    EXPECT_EQ(dense.rows, 2 * heads);
    EXPECT_EQ(dense.tokens_read, heads * (299 + 300));
    EXPECT_EQ(dense.scalars_read, heads * (2 * (299 + 300) * kDim + 4 * kDim));
    EXPECT_EQ(dense.bytes_read, heads * 2 * (2 * 4 * page_bytes + (43 + 44) * kDim * 4));
    const AttentionCounters window = counters("window:k=40", chunk);
    EXPECT_EQ(window.tokens_read, heads * 2 * 40);
    EXPECT_EQ(window.bytes_read, heads * 2 * 40 * 2 * kDim * 4);
    const AttentionCounters sparq = counters("sparq:r=8,k=24,mean=mean", chunk);
    EXPECT_EQ(sparq.scalars_read, heads * ((299 + 300) * 8 + 2 * (2 * 24 * kDim + 4 * kDim)));
    const AttentionCounters h2o = counters("h2o:k=40", chunk);
    EXPECT_EQ(h2o.scalars_read, heads * (2 * (2 * 40 * kDim + 2 * kDim) + 2 * (299 + 300)));
  }
}

TEST(SelectCache, Engine) {
  const std::string text = "It was the best of times, it was the worst of times, it was the age of wisdom. ";
  for (const std::string recipe : {"sparq:r=8,k=32,mean=unselected", "window:k=32", "h2o:k=32"}) {
    std::vector<std::vector<int32_t>> got;
    for (const auto& [chunk, threads, copies] :
         {std::tuple{256, 1, 1}, std::tuple{7, 2, 1}, std::tuple{64, 2, 3}}) {
      auto engine = Engine::Load({.model = NIBBLE_SOURCE_DIR "/models/novelist-10m",
                                  .recipe = recipe,
                                  .threads = threads,
                                  .prefill_chunk = chunk});
      ASSERT_TRUE(engine.ok()) << engine.status().message();
      Request r{.prompt = *(*engine)->tokenizer().Encode(text + text + text, SpecialTokens::kAdd)};
      r.max_tokens = 24, r.ignore_eos = true, r.prefill_tokens = 50;
      std::vector<Request> requests(size_t(copies), r);
      if (copies > 1) requests[0].prompt.resize(20), requests[0].prefill_tokens = 3;
      const auto completions = (*engine)->Generate(requests);
      ASSERT_TRUE(completions.ok());
      got.push_back(completions->back().token_ids);
      const RowReads reads = (*engine)->TakeReads();
      EXPECT_GT(reads.bytes, 0);
      EXPECT_EQ(reads.rows, copies > 1 ? reads.rows : int64_t(r.prompt.size()) - 50 + 23);
      EXPECT_EQ((*engine)->TakeReads().rows, 0);
    }
    EXPECT_EQ(got[0], got[1]) << recipe;
    EXPECT_EQ(got[0], got[2]) << recipe;
  }
}

TEST(SelectCache, HeadsThatAreTooSmall) {
  const auto engine =
      Engine::Load({.model = NIBBLE_SOURCE_DIR "/models/novelist-10m", .recipe = "sparq:r=65"});
  ASSERT_FALSE(engine.ok());
  EXPECT_EQ(engine.status().message(),
            "recipe: select=sparq: r=65 exceeds the model's head size; use r=64 or less");
}

}  // namespace
}  // namespace nibble
