// SPDX-License-Identifier: Apache-2.0
// A sequence that was copied to host memory, while others used its slot and its pages, goes on with the same
// bytes, under every kind of state that a recipe keeps; one wrong byte is seen.
#include "cache/kv_swap.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "engine/engine.h"
#include "tests/support/run_nibble.h"

namespace nibble {
namespace {

constexpr int kChunk = 64, kPrompt = 100, kTokens = 230, kCut = 150;

class KvSwap : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    auto engine =
        Engine::Load({.model = test::Model10m(), .recipe = GetParam(), .threads = 2, .max_seqs = 4});
    ASSERT_TRUE(engine.ok()) << engine.status().message();
    engine_ = *std::move(engine);
    const ModelConfig& m = engine_->config();
    auto cache = KvCache::Make(engine_->backend(), {.shape = {m.layers, m.kv_heads, m.head_dim},
                                                    .heads = m.heads,
                                                    .recipe = engine_->recipe(),
                                                    .max_seqs = 4,
                                                    .max_step_tokens = kChunk,
                                                    .max_tokens = 16 * 64});
    ASSERT_TRUE(cache.ok()) << cache.status().message();
    cache_ = *std::move(cache);
    std::mt19937 rng(7);
    for (int i = 0; i < kTokens; ++i) tokens_.push_back(int32_t(rng() % 4000));
  }
  SeqId Open() {
    const auto seq = cache_->Open();
    EXPECT_TRUE(seq.ok());
    cache_->SetPrefill(*seq, kPrompt);
    return *seq;
  }
  // Tokens [begin, end) of the text, or of one shifted by `salt`; the logits of the last one.
  std::vector<float> Feed(SeqId seq, int begin, int end, int32_t salt = 0) {
    std::vector<float> last;
    for (int at = begin; at < end;) {
      const int32_t rows = at < kPrompt ? std::min({kChunk, end - at, kPrompt - at}) : 1;
      std::vector<int32_t> ids(tokens_.begin() + at, tokens_.begin() + at + rows);
      for (int32_t& id : ids) id = (id + salt) % 4000;
      EXPECT_TRUE(cache_->BeginStep({&seq, 1}, {&rows, 1}).ok());
      const int32_t row = rows - 1;
      const Tensor logits = engine_->parts().model.Forward({ids, {&row, 1}}, *cache_);
      last.assign(logits.as<float>(), logits.as<float>() + logits.dim[1]);
      at += rows;
    }
    return last;
  }
  std::vector<std::byte> Out(SeqId seq) {
    std::vector<std::byte> host(size_t(cache_->SwapBytes(seq)));
    cache_->SwapOut(seq, host);
    return host;
  }

  std::unique_ptr<Engine> engine_;
  std::unique_ptr<KvCache> cache_;
  std::vector<int32_t> tokens_;
};

TEST_P(KvSwap, GoesOnWithTheSameBytes) {
  const SeqId whole = Open();
  const std::vector<float> expected = Feed(whole, 0, kTokens);
  cache_->Close(whole);

  const SeqId first = Open();
  Feed(first, 0, kCut);
  std::vector<std::byte> host = Out(first);
  cache_->Close(first);
  // Others take the slot and the pages.
  std::vector<SeqId> others;
  for (int i = 0; i < 3; ++i) Feed(others.emplace_back(Open()), 0, kTokens, /*salt=*/i + 1);
  const SeqId back = Open();
  EXPECT_NE(back, first);
  cache_->SwapIn(back, kCut, host);
  EXPECT_EQ(cache_->Length(back), kCut);
  EXPECT_EQ(Out(back).size(), host.size());
  EXPECT_EQ(Feed(back, kCut, kTokens), expected);
  cache_->Close(back);
  for (const SeqId seq : others) cache_->Close(seq);
  EXPECT_EQ(cache_->Pages().used, 0);

  for (size_t i = 0; i < 6144; ++i) host[i] ^= std::byte{0x35};  // rows of the open page, the newest too
  const SeqId broken = Open();
  cache_->SwapIn(broken, kCut, host);
  EXPECT_NE(Feed(broken, kCut, kTokens), expected);
}

// Sealed pages of every layout, open pages of floats and of INT8, records beside pages and sequences, heads
// of two widths, planes in arenas with and without the copy that restores them.
INSTANTIATE_TEST_SUITE_P(Recipes, KvSwap,
                         testing::Values("exact", "qserve", "flashq4", "kivi2",
                                         "k=flashq-mixed:2bit=0.5 v=int4-token", "turbo", "turbo-mixed",
                                         "sage2-8b", "sparq:r=16,k=32", "h2o:k=32", "window:k=40", "qaq",
                                         "k=int8-token v=qaq:pick=cost,source=host"),
                         [](const auto& param) {
                           std::string name = param.param;
                           for (char& c : name) c = isalnum(c) != 0 ? c : '_';
                           return name;
                         });

}  // namespace
}  // namespace nibble
