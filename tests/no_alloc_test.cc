// SPDX-License-Identifier: Apache-2.0
// No op of the CPU backend and no step of the cache allocates. This program replaces operator new and, where
// no sanitizer has done so already, malloc, and counts.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <vector>

#include "backend/backend.h"
#include "base/check.h"
#include "cache/kv_cache.h"
#include "engine/sampler.h"
#include "engine/step_loop.h"
#include "model/model.h"
#include "recipe/attention_recipe.h"
#include "text/gbnf.h"
#include "text/token_mask.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define NIBBLE_TEST_COUNTS_MALLOC 0
#else
#define NIBBLE_TEST_COUNTS_MALLOC 1
#endif

namespace {
std::atomic<int64_t> allocations{0};
}

#if NIBBLE_TEST_COUNTS_MALLOC
extern "C" void* __libc_malloc(size_t);  // NOLINT: the C library's own name for what malloc replaces
extern "C" void* malloc(size_t bytes) {  // operator new, strdup and the rest of libc come through here
  ++allocations;
  return __libc_malloc(bytes);
}
#else
// Not inlined: the compiler would see a new answered by free and warn.
__attribute__((noinline)) void* operator new(size_t bytes) {
  ++allocations;
  void* p = std::malloc(bytes);
  if (p == nullptr) std::abort();
  return p;
}
__attribute__((noinline)) void* operator new(size_t bytes, const std::nothrow_t&) noexcept {  // simdjson's
  ++allocations;
  return std::malloc(bytes);
}
__attribute__((noinline)) void operator delete(void* p) noexcept { std::free(p); }
__attribute__((noinline)) void operator delete(void* p, size_t) noexcept { std::free(p); }
#endif

namespace nibble {
namespace {

constexpr int kHidden = 128, kHeads = 4, kKvHeads = 2, kDim = 64, kVocab = 300, kMaxRows = 128;

// The ops of one decoder layer and a head, in the order in which a model calls them.
class TinyDecoder {
 public:
  explicit TinyDecoder(int threads) {
    auto backend = MakeCpuBackend(threads);
    NIBBLE_CHECK(backend.ok(), "backend");
    backend_ = *std::move(backend);
    NIBBLE_CHECK(backend_->Reserve(kMaxRows, kHidden, kHeads, kKvHeads, kDim).ok(), "Reserve");
    auto cache =
        KvCache::Make(*backend_, {.shape = {1, kKvHeads, kDim},
                                  .recipe = {.k = kv::CodecId::kInt8Token, .v = kv::CodecId::kInt4Token},
                                  .max_seqs = 3,
                                  .max_step_tokens = kMaxRows,
                                  .max_tokens = 3000});
    NIBBLE_CHECK(cache.ok(), "cache");
    cache_ = *std::move(cache);
    table_ = Pack(kVocab, weight::Storage::kF32);
    q_ = Pack(kHeads * kDim, weight::Storage::kF32), k_ = Pack(kKvHeads * kDim, weight::Storage::kW8A8);
    up_ = Pack(kHidden, weight::Storage::kW8A8);
    for (auto* x : {&norm_, &inv_freq_, &x_, &h_, &queries_, &keys_, &values_, &out_, &cos_, &sin_, &logits_})
      x->assign(size_t(kMaxRows) * 512, 0.5f);
    tokens_.resize(kMaxRows, 7);
    for (int i = 0; i < 3; ++i) seqs_.push_back(*cache_->Open());
  }

  void Step(std::span<const int32_t> counts) {
    NIBBLE_CHECK(cache_->BeginStep(seqs_, counts).ok(), "BeginStep");
    const auto positions = cache_->Positions();
    rows_ = int64_t(positions.size());
    const MatmulArith f32 = MatmulArith::kF32;
    const Tensor x = View(x_, kHidden), h = View(h_, kHidden), cos = View(cos_, kDim / 2),
                 sin = View(sin_, kDim / 2);
    backend_->Embed(std::span(tokens_).first(size_t(rows_)), table_, x);
    backend_->RopeTable(positions, inv_freq_.data(), cos, sin);
    backend_->Norm(x, norm_.data(), 1e-5f, h);
    const LinearOut qkv[] = {{.w = &q_, .bias = norm_.data(), .y = View(queries_, kHeads * kDim)},
                             {.w = &k_, .bias = nullptr, .y = View(keys_, kKvHeads * kDim)},
                             {.w = &k_, .bias = nullptr, .y = View(values_, kKvHeads * kDim)}};
    backend_->Linear(h, qkv, f32);
    const Tensor q = Heads(queries_, kHeads), k = Heads(keys_, kKvHeads);
    backend_->Norm(q, norm_.data(), 1e-5f, q);
    backend_->Rope(q, cos, sin), backend_->Rope(k, cos, sin);
    const KvView view = cache_->View(0);
    backend_->KvAppend({.kv = view, .k = k, .v = Heads(values_, kKvHeads)});
    backend_->Attention({.kv = view, .q = q, .out = Heads(out_, kHeads), .heads = kHeads, .scale = 0.125f});
    const LinearOut up[] = {{.w = &up_, .bias = nullptr, .y = h, .accumulate = true}};
    backend_->Linear(x, up, f32);
    backend_->Glu(h, x, Activation::kSilu, x);
    const LinearOut head[] = {{.w = &table_, .bias = nullptr, .y = View(logits_, kVocab)}};
    backend_->Linear(x, head, f32);
    backend_->LogSumExp(View(logits_, kVocab), {.max = max_, .lse = lse_, .argmax = argmax_});
    backend_->Sync();
  }

 private:
  weight::PackedWeight Pack(int n, weight::Storage storage) {
    const std::vector<float> codes(size_t(n) * kHidden, 0);
    const std::vector<uint16_t> scale(size_t(n), 0x3c00);
    auto packed = backend_->Pack({.storage = storage,
                                  .n = n,
                                  .k = kHidden,
                                  .codes = reinterpret_cast<const std::byte*>(codes.data()),
                                  .scale = scale.data()},
                                 MatmulArith::kF32);
    NIBBLE_CHECK(packed.ok(), "Pack");
    return *packed;
  }
  Tensor View(std::vector<float>& x, int64_t k) {
    return Tensor::Dense(x.data(), DType::kF32, Device::kCpu, {rows_, k});
  }
  Tensor Heads(std::vector<float>& x, int64_t heads) {
    return Tensor::Dense(x.data(), DType::kF32, Device::kCpu, {rows_, heads, kDim});
  }

  std::unique_ptr<Backend> backend_;  // outlives the cache
  std::unique_ptr<KvCache> cache_;
  weight::PackedWeight table_, q_, k_, up_;
  std::vector<float> norm_, inv_freq_, x_, h_, queries_, keys_, values_, out_, cos_, sin_, logits_;
  std::vector<int32_t> tokens_;
  std::vector<SeqId> seqs_;
  int64_t rows_ = 0;
  float max_[kMaxRows];
  double lse_[kMaxRows];
  int32_t argmax_[kMaxRows];
};

TEST(NoAlloc, PrefillAndDecodeAllocateNothing) {
  for (int threads : {1, 3}) {
    TinyDecoder decoder(threads);
    const int32_t prefill[] = {70, 8, 50}, decode[] = {1, 1, 1};
    const int64_t before = allocations;
    decoder.Step(prefill);
    for (int i = 0; i < 200; ++i) decoder.Step(decode);  // fills and seals pages on the way
    decoder.Step(prefill);
    EXPECT_EQ(allocations - before, 0) << threads << " threads";
  }
}

TEST(NoAlloc, TheCounterSeesAnAllocation) {
  const int64_t before = allocations;
  std::vector<int> v(100);
  EXPECT_EQ(v[99], 0);
  EXPECT_EQ(allocations - before, 1);
}

// Once a constraint has seen a place of the grammar, masks and tokens there allocate nothing.
TEST(NoAlloc, StepsOfAWarmConstraint) {
  TokenSpellings tokens{{"", "[", "]", "1", ",", "1,", "]]"}, {}};
  tokens.first = tokens.anywhere;
  const std::vector<int32_t> ends = {0};
  const auto trie = std::make_shared<const TokenTrie>(tokens, ends);
  const auto constraint =
      *Constraint::Make(*ParseGbnf("root ::= \"[\" (root (\",\" root)*)? \"]\" | \"1\""), trie);
  ConstraintState state(constraint);
  const auto step = [&] {
    for (const int32_t token : {1, 5, 3, 2, 4}) {
      state.Mask();
      ASSERT_TRUE(state.Accept(token));
    }
  };
  ASSERT_TRUE(state.Accept(1));
  step();
  step();
  const int64_t before = allocations;
  for (int i = 0; i < 200; ++i) step();
  EXPECT_EQ(allocations - before, 0);
}

// The whole engine step on the embedded model: cache, forward pass and sampler.
TEST(NoAlloc, DecodeStepOfAModel) {
  for (const std::string recipe : {"exact", "kv16", "kv8", "qserve", "sage2-4b", "turbo", "turbo tail=float",
                                   "turbo-mixed", "sparq:r=16,k=32", "window:k=32", "h2o:k=32", "qaq"}) {
    auto backend = *MakeCpuBackend(2);
    const AttentionRecipe r = *ParseRecipe(recipe, DType::kF32);
    auto model = *Model::Load(NIBBLE_SOURCE_DIR "/models/novelist-10m", *backend,
                              {.max_step_rows = 64, .max_logit_rows = 4});
    const ModelConfig& c = model->config();
    auto cache = *KvCache::Make(*backend, {.shape = {c.layers, c.kv_heads, c.head_dim},
                                           .heads = c.heads,
                                           .recipe = r,
                                           .max_seqs = 1,
                                           .max_step_tokens = 64,
                                           .max_tokens = 512});
    const SeqId seq = *cache->Open();
    Sampler sampler(c.vocab);
    std::vector<int32_t> history{4091};
    history.reserve(512);
    const int32_t one = 1, row = 0;
    const int64_t before = allocations.load();
    for (int i = 0; i < 150; ++i) {  // crosses two page ends
      ASSERT_TRUE(cache->BeginStep({&seq, 1}, {&one, 1}).ok());
      const Tensor logits = model->Forward({{&history.back(), 1}, {&row, 1}}, *cache);
      history.push_back(sampler.Sample({logits.as<float>(), static_cast<size_t>(c.vocab)}, history,
                                       {.temperature = 1, .top_p = 0.9f, .repetition_penalty = 1.1f},
                                       history.size()));
    }
    EXPECT_EQ(allocations.load() - before, 0) << recipe;
    const std::string seen =
        "this string is long enough to be allocated: " + recipe;  // the counter does count
    EXPECT_GT(allocations.load() - before, 0);
  }
}

// The step of serving: scheduler, pages, prefix index, guesses, sampling, text and events.
TEST(NoAlloc, DecodeStepOfServing) {
  for (const std::string recipe : {"exact", "qserve", "sparq:r=16,k=32", "qaq"}) {
    auto engine = *Engine::Load(
        {.model = NIBBLE_SOURCE_DIR "/models/novelist-10m", .recipe = recipe, .threads = 2, .max_seqs = 4});
    auto loop = *StepLoop::Make(engine->parts(), {.max_num_seqs = 4,
                                                  .max_num_batched_tokens = 64,
                                                  .kv_tokens = 4096,
                                                  .prefix_scope = recipe == "qaq" ? "" : "scope",
                                                  .undo = recipe != "qaq",
                                                  .ngram = {.max_draft = 4, .longest = 3, .shortest = 1}});
    int64_t seen = 0;
    for (int i = 0; i < 3; ++i) {
      ServingRequest r;
      r.prompt = {4091, 5, 6};
      r.max_tokens = 1000, r.ignore_eos = true, r.stop = {"no such text"};
      if (i == 1) r.sampling = {.temperature = 1, .top_p = 0.9f, .presence_penalty = 0.1f};
      if (i == 2) r.logprobs = 3;
      r.on_event = [&seen](const ServingEvent& e) { seen += int64_t(e.tokens.size()); };
      loop->Add(std::make_unique<Answer>(i, std::move(r), engine->tokenizer(), engine->config()), i);
    }
    for (int i = 0; i < 100; ++i) ASSERT_TRUE(loop->Step().ok());  // buffers grow to what tokens need
    const int64_t before = allocations.load(), seen_before = seen;
    for (int i = 0; i < 60; ++i) ASSERT_TRUE(loop->Step().ok());  // pages are completed
    EXPECT_EQ(allocations.load() - before, 0) << recipe;
    EXPECT_GE(seen - seen_before, 3 * 60);
  }
}

}  // namespace
}  // namespace nibble
