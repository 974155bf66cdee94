// SPDX-License-Identifier: Apache-2.0
// Serving on the embedded model: tokens and log probabilities are the same bytes alone and in a batch, cold
// and with a prefix that is cached, however prompts are cut, with guesses and without (after losing pages:
// preemption_test.cc); cancelling leaks nothing; the queue is bounded.
#include "engine/serving.h"

#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <random>

#include "engine/step_loop.h"
#include "recipe/page_rules.h"
#include "tests/support/serving_bytes.h"

namespace nibble {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)

std::vector<ServingRequest> WithFillers(std::vector<ServingRequest> requests, int fillers, unsigned seed) {
  std::mt19937 rng(seed);
  for (int i = 0; i < fillers; ++i) {
    ServingRequest r;
    r.prompt = RandomIds(rng, 1 + rng() % 150);
    r.max_tokens = int(1 + rng() % 40);
    r.sampling.temperature = 1, r.sampling.seed = rng();
    r.priority = int(rng() % 3) - 1;
    requests.insert(requests.begin() + ptrdiff_t(rng() % (requests.size() + 1)), r);
  }
  return requests;
}

// The needles among them, in their order.
std::vector<Outcome> OnlyNeedles(const std::vector<ServingRequest>& requests, std::vector<Outcome> outcomes) {
  std::vector<Outcome> needles;
  for (size_t i = 0; i < requests.size(); ++i)
    if (requests[i].logprobs >= 0) needles.push_back(std::move(outcomes[i]));
  return needles;
}

class ServingBytes : public testing::TestWithParam<std::string> {
 protected:
  ServingOptions Plain() const {
    ServingOptions o;
    o.engine.recipe = GetParam();
    o.max_num_seqs = 1, o.max_num_batched_tokens = 128, o.prefix_cache = false;
    return o;
  }
  bool Shares() const { return WhyNotShared(*ParseRecipe(GetParam(), DType::kF32)).empty(); }
  bool Undoes() const { return WhyNotUndone(*ParseRecipe(GetParam(), DType::kF32)).empty(); }

  const std::vector<ServingRequest> needles_ = Needles();
  std::vector<Outcome> alone_;
  void SetUp() override {
    static std::map<std::string, std::vector<Outcome>> of_recipes;
    std::vector<Outcome>& known = of_recipes[GetParam()];
    if (known.empty()) {
      const auto engine = Start(Plain());
      ASSERT_TRUE(engine);
      known = ServeEachAlone(*engine, needles_);
    }
    alone_ = known;
    for (const Outcome& o : alone_) ASSERT_EQ(o.tokens.size(), size_t(kNew));
  }
};

TEST_P(ServingBytes, InABatchAndWithAPrefix) {
  ServingOptions o = Plain();
  o.max_num_seqs = 17, o.max_num_batched_tokens = 100, o.prefix_cache = true;
  const auto engine = Start(o);
  ASSERT_TRUE(engine);
  for (const int fillers : Full() ? std::vector<int>{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
                                  : std::vector<int>{13}) {
    const auto requests = WithFillers(needles_, fillers, unsigned(fillers));
    EXPECT_EQ(Different(OnlyNeedles(requests, Serve(*engine, requests)), alone_), 0) << fillers << " fillers";
  }
  // By now prompts are cached where the recipe allows it.
  const std::vector<Outcome> again = Serve(*engine, needles_);
  EXPECT_EQ(Different(again, alone_), 0);
  for (size_t i = 0; i < again.size(); ++i)
    EXPECT_EQ(again[i].usage.cached_tokens, Shares() ? int64_t(needles_[i].prompt.size() - 1) / 64 * 64 : 0);
  // A conversation goes on: the answer is part of the prompt, cached as far as its pages are those of a
  // prompt.
  std::vector<ServingRequest> next = needles_;
  for (size_t i = 0; i < next.size(); ++i)
    next[i].prompt.insert(next[i].prompt.end(), alone_[i].tokens.begin(), alone_[i].tokens.end());
  const auto cold = Start(Plain());
  ASSERT_TRUE(cold);
  EXPECT_EQ(Different(Serve(*engine, next), ServeEachAlone(*cold, next)), 0);
  const ServingStats stats = engine->Stats();
  EXPECT_EQ(stats.prefix_hit_tokens > 0, Shares());
  EXPECT_EQ(stats.pages_used, 0);
  EXPECT_EQ(stats.preemptions, 0u);
}

TEST_P(ServingBytes, HoweverPromptsAreCut) {
  for (const int batched :
       Full() ? std::vector<int>{5, 6, 7, 9, 64, 65, 68, 300} : std::vector<int>{7, 300}) {
    ServingOptions o = Plain();
    o.max_num_seqs = 4, o.max_num_batched_tokens = batched;
    const auto engine = Start(o);
    ASSERT_TRUE(engine);
    EXPECT_EQ(Different(Serve(*engine, needles_), alone_), 0) << batched << " tokens a step";
  }
}

TEST_P(ServingBytes, WithGuesses) {
  ServingOptions o = Plain();
  o.max_num_seqs = 4, o.ngram = {.max_draft = 8, .longest = 3, .shortest = 1};
  const auto engine = Start(o);
  ASSERT_TRUE(engine);
  EXPECT_EQ(Different(ServeEachAlone(*engine, needles_), alone_), 0);
  EXPECT_EQ(Different(Serve(*engine, needles_), alone_), 0);
  const ServingStats stats = engine->Stats();
  EXPECT_EQ(stats.drafted > 0, Undoes());
  EXPECT_EQ(stats.accepted > 0, Undoes());
  EXPECT_LT(stats.accepted, std::max<uint64_t>(stats.drafted, 1));  // some had to be taken back
}

INSTANTIATE_TEST_SUITE_P(Recipes, ServingBytes, testing::ValuesIn(kRecipes));

// What a preemption would do that forgot where the prompt ended: the comparison sees it.
TEST(Serving, ARecomputationThatIsWrongIsSeen) {
  ServingOptions o;
  o.engine.recipe = "sparq:r=16,k=32", o.max_num_seqs = 1, o.prefix_cache = false;
  const auto engine = Start(o);
  ASSERT_TRUE(engine);
  const auto needles = Needles();
  int different = 0;
  for (const ServingRequest& needle : needles) {
    const Outcome whole = Serve(*engine, {&needle, 1})[0];
    ServingRequest rest = needle;
    rest.prompt.insert(rest.prompt.end(), whole.tokens.begin(), whole.tokens.begin() + kNew / 2);
    rest.prefill_tokens = int64_t(needle.prompt.size());
    rest.max_tokens = kNew / 2;
    rest.sampling = {};
    ServingRequest wrong = rest;
    wrong.prefill_tokens = -1;
    const auto both = ServeEachAlone(*engine, std::vector<ServingRequest>{rest, wrong});
    different += !both[0].SameBytes(both[1]);
  }
  EXPECT_GE(different, 3);
}

// Pages whose side records change are shared against the rule: the comparison sees it.
TEST(Serving, SharingWhatMayNotBeSharedIsSeen) {
  const auto engine = *Engine::Load({.model = kModel, .recipe = "h2o:k=32", .threads = 2, .max_seqs = 1});
  ASSERT_FALSE(WhyNotShared(engine->recipe()).empty());
  for (const std::string scope : {"", "against the rule"}) {
    const auto loop = *StepLoop::Make(
        engine->parts(),
        {.max_num_seqs = 1, .max_num_batched_tokens = 64, .kv_tokens = 1024, .prefix_scope = scope});
    std::vector<Outcome> outcomes(2);
    for (Outcome& out : outcomes) {
      loop->Add(std::make_unique<Answer>(1, Into(Needles()[3], &out), engine->tokenizer(), engine->config()),
                0);
      while (!loop->idle()) ASSERT_TRUE(loop->Step().ok());
    }
    EXPECT_EQ(outcomes[0].SameBytes(outcomes[1]), scope.empty()) << scope;
  }
}

// Two recipes over one copy of the weights, at work at once: the bytes of each alone, and its own figures.
TEST(Serving, RecipesTakeTurnsOverOneModel) {
  const std::vector<std::string> recipes{"qserve", "qaq", "sparq:r=16,k=32"};
  ServingOptions o = Placed({});
  o.max_num_seqs = 4, o.max_num_batched_tokens = 64;
  FairTurns turns;
  auto engines = ServingEngine::StartAll(o, recipes, &turns);
  ASSERT_TRUE(engines.ok()) << engines.status().message();
  const auto needles = Needles();
  std::vector<std::vector<Outcome>> together(recipes.size(), std::vector<Outcome>(needles.size()));
  for (size_t i = 0; i < needles.size(); ++i)
    for (size_t e = 0; e < recipes.size(); ++e)
      ASSERT_TRUE((*engines)[e]->Submit(Into(needles[i], &together[e][i])).ok());
  for (const auto& engine : *engines) EXPECT_TRUE(engine->WaitIdle(kLimit));
  for (size_t e = 0; e < recipes.size(); ++e) {
    ServingOptions own = o;
    own.engine.recipe = recipes[e];
    const auto alone = Start(own);
    ASSERT_TRUE(alone);
    EXPECT_EQ(Different(together[e], ServeEachAlone(*alone, needles)), 0) << recipes[e];
    EXPECT_EQ((*engines)[e]->weight_bytes(), alone->weight_bytes());
    EXPECT_EQ((*engines)[e]->Stats().attended_fraction, alone->Stats().attended_fraction) << recipes[e];
  }
  EXPECT_EQ(&(*engines)[0]->config(), &(*engines)[1]->config()) << "one model";
  EXPECT_GT((*engines)[1]->kv_sizes().k_usage.values, 0) << "qaq's pages";
  EXPECT_EQ((*engines)[0]->kv_sizes().k_usage.values, 0) << "are not qserve's";
  EXPECT_FALSE(ServingEngine::StartAll(o, std::vector<std::string>{"exact", "nonsense"}, &turns).ok());
}

TEST(Serving, CancellingLeaksNoPage) {
  ServingOptions o;
  o.engine.recipe = "qserve", o.max_num_seqs = 6, o.max_num_batched_tokens = 40, o.kv_tokens = 12 * 64;
  const auto engine = Start(o);
  ASSERT_TRUE(engine);
  const auto needles = Needles();
  const auto alone = ServeEachAlone(*engine, needles);
  std::mt19937 rng(3);
  const int rounds = Full() ? 125 : 3;
  int cancelled = 0, wrong = 0;
  for (int round = 0; round < rounds; ++round) {
    std::vector<Outcome> outcomes(needles.size());
    std::array<std::optional<FinishReason>, 8> finished;
    for (size_t i = 0; i < 8; ++i) {
      ServingRequest doomed;
      doomed.prompt = RandomIds(rng, 1 + rng() % 180);
      doomed.max_tokens = 100, doomed.ignore_eos = true;
      const int after = int(rng() % 12);  // new tokens; 0: at once
      doomed.on_event = [&, i, after, seen = 0](const ServingEvent& e) mutable {
        seen += int(e.tokens.size());
        if (seen >= after) engine->Cancel(e.id);
        if (e.finish) finished[i] = e.finish;
      };
      const auto id = engine->Submit(std::move(doomed));
      ASSERT_TRUE(id.ok()) << id.status().message();
      if (after == 0) engine->Cancel(*id);
      if (i >= needles.size()) continue;
      ASSERT_TRUE(engine->Submit(Into(needles[i], &outcomes[i])).ok());
    }
    ASSERT_TRUE(engine->WaitIdle(kLimit));
    for (const auto& finish : finished) cancelled += finish == FinishReason::kCancelled;
    wrong += Different(outcomes, alone);
    ASSERT_EQ(engine->Stats().pages_used, 0);
  }
  EXPECT_EQ(cancelled, rounds * 8);
  EXPECT_EQ(wrong, 0);
  if (Full()) printf("%d cancels, %d neighbours changed, 0 pages leaked\n", cancelled, wrong);
}

TEST(Serving, TheQueueIsBoundedAndDrains) {
  ServingOptions o;
  o.max_num_seqs = 1, o.max_num_batched_tokens = 8, o.kv_tokens = 640, o.max_waiting = 3;
  const auto engine = Start(o);
  ASSERT_TRUE(engine);
  ServingRequest r;
  r.prompt = {1, 2, 3};
  r.max_tokens = 600, r.ignore_eos = true;
  // Four in one call are more than may wait, though one could run at once.
  EXPECT_EQ(engine->Submit(std::vector<ServingRequest>(4, r)).status().code(), Code::kBusy);
  EXPECT_EQ(engine->Stats().refused, 4u);
  ServingRequest large = r;
  large.max_tokens = 702;
  EXPECT_EQ(engine->Submit(large).status().message(),
            "3 prompt tokens and max_tokens 702 fill 11 pages of 64 tokens, but the KV pool has 10");
  Outcome out;
  r.max_tokens = 20;
  ASSERT_TRUE(engine->Submit(Into(r, &out)).ok());
  engine->Drain();
  EXPECT_EQ(engine->Submit(r).status().code(), Code::kUnavailable);
  EXPECT_TRUE(engine->WaitIdle(kLimit));
  EXPECT_EQ(out.finish, FinishReason::kLength);
  EXPECT_EQ(out.tokens.size(), 20u);
}

TEST(Serving, StopEndsWhatRunsAndWaits) {
  ServingOptions o;
  o.max_num_seqs = 1;
  auto engine = Start(o);
  ASSERT_TRUE(engine);
  std::atomic<int> ended{0};
  ServingRequest r;
  r.prompt = {1};
  r.max_tokens = 2000, r.ignore_eos = true;
  r.on_event = [&](const ServingEvent& e) { ended += e.finish == FinishReason::kCancelled; };
  ASSERT_TRUE(engine->Submit(std::vector<ServingRequest>(5, r)).ok());
  engine->Stop();
  EXPECT_EQ(ended, 5);
  EXPECT_EQ(engine->Submit(r).status().code(), Code::kUnavailable);
}

TEST(Serving, LogprobsOfPromptsAndEmbeddings) {
  ServingOptions o;
  o.max_num_seqs = 2, o.max_num_batched_tokens = 50, o.ngram.max_draft = 4;
  const auto engine = Start(o);
  ASSERT_TRUE(engine);
  ServingRequest echo = Needles()[2];
  echo.prompt_logprobs = 3, echo.max_tokens = 0;
  const Outcome first = Serve(*engine, {&echo, 1})[0];
  EXPECT_EQ(first.logprobs.size(), echo.prompt.size() - 1);
  // The same as those of new tokens: a greedy answer, fed back as a prompt.
  ServingRequest greedy = Needles()[0];
  const Outcome answer = Serve(*engine, {&greedy, 1})[0];
  ServingRequest back = greedy;
  back.prompt.insert(back.prompt.end(), answer.tokens.begin(), answer.tokens.end());
  back.prompt_logprobs = 0, back.max_tokens = 0;
  const Outcome fed = Serve(*engine, {&back, 1})[0];
  // A GPU in bf16 has kernels of their own for prompts, whose last bits differ (decision 14).
  const float near = OnCuda() && Placed({}).engine.dtype == DType::kBF16 ? 0.02f : 0.0f;
  for (size_t i = 0; i < answer.tokens.size(); ++i)
    EXPECT_NEAR(fed.logprobs[greedy.prompt.size() - 1 + i], answer.logprobs[3 * i], near) << i;

  const auto embed = [&](Pooling pooling, std::vector<int32_t> prompt) {
    std::vector<float> embedding;
    ServingRequest r;
    r.prompt = std::move(prompt), r.max_tokens = 0, r.pooling = pooling;
    r.on_event = [&](const ServingEvent& e) { embedding.assign(e.embedding.begin(), e.embedding.end()); };
    EXPECT_TRUE(engine->Submit(std::move(r)).ok());
    EXPECT_TRUE(engine->WaitIdle(kLimit));
    EXPECT_EQ(embedding.size(), size_t(engine->config().hidden));
    return embedding;
  };
  const std::vector<float> of_one = embed(Pooling::kLast, {7}), of_two = embed(Pooling::kLast, {7, 9});
  EXPECT_EQ(embed(Pooling::kMean, {7}), of_one);
  const std::vector<float> mean = embed(Pooling::kMean, {7, 9});
  for (size_t i = 0; i < mean.size(); ++i)
    EXPECT_EQ(mean[i], float((double(of_one[i]) + double(of_two[i])) / 2)) << i;
}

TEST(Serving, SaltsKeepPrefixesApart) {
  ServingOptions o;
  o.max_num_seqs = 2;
  const auto engine = Start(o);
  ASSERT_TRUE(engine);
  ServingRequest r = Needles()[3];
  const auto cached = [&](const std::string& salt) {
    r.cache_salt = salt;
    return Serve(*engine, {&r, 1})[0].usage.cached_tokens;
  };
  EXPECT_EQ(cached("a"), 0);
  EXPECT_EQ(cached("a"), 128);
  EXPECT_EQ(cached("b"), 0);
  EXPECT_EQ(cached(""), 0);
  EXPECT_EQ(cached("b"), 128);
}

TEST(Serving, ExplainSaysWhatIsSharedAndWhyNot) {
  const auto line = [](const std::string& recipe, const std::string& about) {
    ServingOptions o;
    o.engine.recipe = recipe, o.ngram.max_draft = 4;
    const auto engine = Start(o);
    for (const std::string& l : engine->Explain())
      if (l.starts_with(about + ": ")) return l.substr(about.size() + 2);
    return std::string();
  };
  EXPECT_EQ(line("exact", "prefix cache"), "pages of equal prefixes are shared");
  EXPECT_EQ(line("exact", "speculation"), "up to 4 tokens by lookup");
  EXPECT_EQ(line("qaq", "prefix cache"),
            "off: pages change their widths with what their sequence attends to");
  EXPECT_EQ(line("qaq", "speculation"), "off: statistics of queries decide the widths of pages");
}

}  // namespace
}  // namespace nibble
