// SPDX-License-Identifier: Apache-2.0
// The engine on the embedded model: a batch gives each prompt the bytes it gets alone, whatever the chunk,
// the number of threads and of slots; stopping, cancelling, limits.
#include "engine/engine.h"

#include <gtest/gtest.h>

#include <atomic>

namespace nibble {
namespace {

const std::string kModel = NIBBLE_SOURCE_DIR "/models/novelist-10m";

std::unique_ptr<Engine> Load(EngineOptions options) {
  options.model = kModel;
  auto engine = Engine::Load(options);
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  return engine.ok() ? *std::move(engine) : nullptr;
}

std::vector<Request> FivePrompts(const Engine& engine) {
  const std::string story =
      "It was a dark and stormy night; the rain fell in torrents, except at occasional intervals, when it "
      "was checked by "
      "a violent gust of wind which swept up the streets, rattling along the house-tops, and fiercely "
      "agitating the "
      "scanty flame of the lamps that struggled against the darkness. Through one of the obscurest quarters "
      "of London, "
      "and among haunts little loved by the gentlemen of the police, a man, evidently of the lowest orders, "
      "was wending "
      "his solitary way.";
  std::vector<Request> requests;
  int i = 0;
  for (size_t length : {0, 5, 60, 200, 440}) {
    Request r;
    r.prompt = *engine.tokenizer().Encode(story.substr(0, length), SpecialTokens::kAdd);
    r.max_tokens = 20 + 13 * i;
    r.ignore_eos = true;
    if (i % 2 == 1) r.sampling = {.temperature = 0.9f, .top_p = 0.95f, .seed = 11};
    requests.push_back(r);
    ++i;
  }
  return requests;
}

std::vector<std::vector<int32_t>> Ids(const std::vector<Completion>& completions) {
  std::vector<std::vector<int32_t>> ids;
  for (const Completion& c : completions) ids.push_back(c.token_ids);
  return ids;
}

class EngineBytes : public testing::TestWithParam<std::string> {};

TEST_P(EngineBytes, BatchGivesTheBytesOfEachAlone) {
  const std::string& recipe = GetParam();
  const auto engine = Load({.recipe = recipe, .threads = 2});
  ASSERT_TRUE(engine);
  const std::vector<Request> requests = FivePrompts(*engine);
  std::vector<std::vector<int32_t>> alone;
  for (const Request& r : requests) alone.push_back(Ids(*engine->Generate({&r, 1}))[0]);
  EXPECT_EQ(Ids(*engine->Generate(requests)), alone);
  for (const EngineOptions& o :
       {EngineOptions{.recipe = recipe, .threads = 1, .prefill_chunk = 7},
        EngineOptions{.recipe = recipe, .threads = 3, .max_seqs = 2, .prefill_chunk = 64},
        EngineOptions{.recipe = recipe, .threads = 2, .max_seqs = 1, .prefill_chunk = 1}}) {
    const auto other = Load(o);
    ASSERT_TRUE(other);
    EXPECT_EQ(Ids(*other->Generate(requests)), alone)
        << "threads " << o.threads << " slots " << o.max_seqs << " chunk " << o.prefill_chunk;
  }
}

INSTANTIATE_TEST_SUITE_P(Recipes, EngineBytes, testing::Values("exact", "kv16", "kv8", "qserve"),
                         [](const auto& test) { return test.param; });

TEST(Engine, ScoreGivesTheLogitsOfGeneration) {
  const auto engine = Load({.recipe = "qserve", .threads = 2});
  ASSERT_TRUE(engine);
  Request r = FivePrompts(*engine)[4];
  r.max_tokens = 1;
  r.logits_top = 5;
  const auto done = engine->Generate({&r, 1});
  ASSERT_TRUE(done.ok());
  std::vector<float> last;
  int64_t rows = 0;
  ASSERT_TRUE(engine
                  ->Score(r.prompt,
                          [&](int64_t first, Tensor logits) -> Status {
                            EXPECT_EQ(first, rows);
                            rows += logits.dim[0];
                            const float* row = logits.as<float>() + (logits.dim[0] - 1) * logits.dim[1];
                            last.assign(row, row + logits.dim[1]);
                            return {};
                          })
                  .ok());
  EXPECT_EQ(rows, static_cast<int64_t>(r.prompt.size()));
  for (const auto& [id, value] : (*done)[0].last_prompt_logits) EXPECT_EQ(last[id], value) << id;
}

TEST(Engine, StopsAtTokenTextAndLength) {
  const auto engine = Load({});
  ASSERT_TRUE(engine);
  Request r;
  r.prompt = *engine->tokenizer().Encode("It was a dark and stormy night", SpecialTokens::kAdd);
  r.max_tokens = 40;
  std::string streamed;
  r.on_text = [&](std::string_view text) { streamed += text; };
  const Completion whole = (*engine->Generate({&r, 1}))[0];
  EXPECT_EQ(whole.finish, FinishReason::kLength);
  EXPECT_EQ(whole.token_ids.size(), 40u);
  EXPECT_EQ(whole.text, streamed);

  r.stop = {"morning"};
  streamed.clear();
  const Completion cut = (*engine->Generate({&r, 1}))[0];
  EXPECT_EQ(cut.finish, FinishReason::kStop);
  ASSERT_NE(whole.text.find("morning"), std::string::npos) << whole.text;
  EXPECT_EQ(cut.text, whole.text.substr(0, whole.text.find("morning")));
  EXPECT_EQ(streamed, cut.text);
}

TEST(Engine, CancelEndsAtTheNextStep) {
  const auto engine = Load({});
  ASSERT_TRUE(engine);
  std::atomic<bool> cancel{false};
  std::vector<Request> requests = FivePrompts(*engine);
  requests[1].on_text = [&](std::string_view) { cancel = true; };
  const auto done = engine->Generate(requests, &cancel);
  ASSERT_TRUE(done.ok());
  EXPECT_EQ((*done)[1].finish, FinishReason::kCancelled);
  EXPECT_FALSE((*done)[1].text.empty());
  EXPECT_LT((*done)[4].token_ids.size(), 72u);
}

TEST(Engine, RefusesWhatCannotBeServed) {
  const auto engine = Load({});
  ASSERT_TRUE(engine);
  const auto refusal = [&](Request r) { return engine->Generate({&r, 1}).status().message(); };
  EXPECT_EQ(refusal({}), "the prompt has no tokens");
  EXPECT_NE(refusal({.prompt = {4096}}).find("outside the vocabulary of 4096"), std::string::npos);
  EXPECT_NE(refusal({.prompt = {-1}}).find("prompt token 0 is -1"), std::string::npos);
  EXPECT_NE(refusal({.prompt = {1}, .max_tokens = 4096}).find("context of 4096"), std::string::npos);
  EXPECT_NE(refusal({.prompt = {1}, .sampling = {.top_p = 2}}).find("top_p is 2"), std::string::npos);
  EXPECT_TRUE(engine->Generate({}).ok());
}

TEST(Engine, AnswersThatDoNotFitTheCacheAreRefusedAndOthersWait) {
  const auto engine = Load({.max_seqs = 4, .max_tokens = 128});
  ASSERT_TRUE(engine);
  std::vector<Request> requests(3, Request{.prompt = {10, 20, 30}, .max_tokens = 90, .ignore_eos = true});
  const auto done = engine->Generate(requests);  // two pages each, two pages in all: one after the other
  ASSERT_TRUE(done.ok()) << done.status().message();
  EXPECT_EQ((*done)[0].token_ids, (*done)[2].token_ids);
  requests[0].max_tokens = 200;
  EXPECT_NE(engine->Generate(requests).status().message().find("needs 256 KV tokens"), std::string::npos);
}

}  // namespace
}  // namespace nibble
