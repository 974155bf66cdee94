// SPDX-License-Identifier: Apache-2.0
// Pass keys and repetitions: how trials are built, that a teacher-forced answer is the one greedy decoding
// gives, and that a model whose memory is damaged fails. Attention errors and read bytes, which compare needs
// too.
#include "engine/retrieval.h"

#include <gtest/gtest.h>

#include <cstring>

#include "engine/attention_error.h"
#include "tests/support/run_nibble.h"
#include "tests/support/temp_dir.h"

namespace nibble {
namespace {

using View = AttentionReference::View;

Status Ignore(int64_t) { return {}; }

std::unique_ptr<Engine> Load(const std::string& recipe, int threads = 0) {
  auto engine =
      Engine::Load({.model = test::Model10m(), .recipe = recipe, .threads = threads, .max_seqs = 1});
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  return *std::move(engine);
}

std::vector<int32_t> TextIds(const Engine& engine) {
  const std::string text = ReadTestFile(test::Hound()).substr(0, 40000);
  return *engine.tokenizer().Encode(text, SpecialTokens::kOmit);
}

Result<std::vector<Trial>> Make(const Engine& engine, Task task, const RetrievalOptions& options) {
  const ModelConfig& c = engine.config();
  return MakeTrials(task, engine.tokenizer(), c.bos_token, c.max_position, TextIds(engine), options);
}

class Retrieval : public testing::Test {
 protected:
  static void SetUpTestSuite() { exact_ = Load("exact"); }
  static void TearDownTestSuite() { exact_.reset(); }
  std::string Decode(const Trial& t, int64_t first, int64_t count) const {
    return exact_->tokenizer().Decode(std::span(t.tokens).subspan(size_t(first), size_t(count)), true);
  }
  static inline std::unique_ptr<Engine> exact_;
};

TEST_F(Retrieval, PassKeyTrialsHoldWhatTheyAskFor) {
  const auto trials = Make(*exact_, Task::kPassKey, {.contexts = {500, 1500}, .trials = 3});
  ASSERT_TRUE(trials.ok()) << trials.status().message();
  ASSERT_EQ(trials->size(), 6u);
  for (const Trial& t : *trials) {
    EXPECT_EQ(t.tokens[0], exact_->config().bos_token);
    EXPECT_EQ(t.prefill_tokens, t.context);
    ASSERT_EQ(t.questions.size(), 4u);
    const std::string context = Decode(t, 0, t.prefill_tokens);
    std::array<int, 4> by_depth{};
    int64_t before = t.prefill_tokens;
    for (const Question& q : t.questions) {
      EXPECT_GT(q.first, before);
      before = q.first + q.tokens;
      const std::string code = Decode(t, q.first, q.tokens);
      const std::string asked = Decode(t, t.prefill_tokens, q.first - t.prefill_tokens);
      EXPECT_EQ(code.size(), 6u) << code;  // a blank and five digits
      const size_t at = context.find("is" + code + ". Remember it.");
      ASSERT_NE(at, std::string::npos) << code;
      const std::string name = asked.substr(asked.rfind(" of ") + 4);  // "Alice is"
      EXPECT_EQ(context.find("The pass key of " + name + code), at + 2 - name.size() - 16) << asked;
      EXPECT_NEAR(double(at) / double(context.size()), q.depth, 0.08);
      ++by_depth[size_t(q.depth * 4)];
    }
    EXPECT_EQ(by_depth, (std::array<int, 4>{1, 1, 1, 1}));
  }
}

TEST_F(Retrieval, RepetitionTrialsRepeatTheirContext) {
  const auto trials = Make(*exact_, Task::kRepetition, {.contexts = {600}, .trials = 2});
  ASSERT_TRUE(trials.ok()) << trials.status().message();
  for (const Trial& t : *trials) {
    ASSERT_EQ(t.questions.size(), 3u);
    EXPECT_EQ(t.questions.back().first + t.questions.back().tokens, int64_t(t.tokens.size()));
    for (const Question& q : t.questions) {
      const auto passage = t.tokens.begin() + q.first - 16;  // with its cue
      const auto end = t.tokens.begin() + t.prefill_tokens;
      const auto found = std::search(t.tokens.begin(), end, passage, t.tokens.begin() + q.first + q.tokens);
      ASSERT_NE(found, end);
      EXPECT_NEAR(double(found + 16 - t.tokens.begin()) / t.context, q.depth, 0.01);
    }
  }
}

TEST_F(Retrieval, TrialsDependOnSeedContextAndNumberOnly) {
  const auto both = Make(*exact_, Task::kPassKey, {.contexts = {500, 800}, .trials = 2});
  const auto one = Make(*exact_, Task::kPassKey, {.contexts = {800}, .trials = 1});
  const auto other = Make(*exact_, Task::kPassKey, {.contexts = {800}, .trials = 1, .seed = 2});
  ASSERT_TRUE(both.ok() && one.ok() && other.ok());
  EXPECT_EQ((*both)[2].tokens, (*one)[0].tokens);
  EXPECT_NE((*both)[3].tokens, (*one)[0].tokens);
  EXPECT_NE((*other)[0].tokens, (*one)[0].tokens);
}

TEST_F(Retrieval, RefusesWhatDoesNotFit) {
  const auto message = [&](Task task, int context) {
    const auto trials = Make(*exact_, task, {.contexts = {context}, .trials = 1});
    EXPECT_FALSE(trials.ok());
    return trials.ok() ? "" : trials.status().message();
  };
  EXPECT_NE(message(Task::kPassKey, 200).find("a context of 200 tokens leaves"), std::string::npos);
  EXPECT_NE(message(Task::kRepetition, 4000).find("4096"), std::string::npos);
  EXPECT_NE(message(Task::kRepetition, 30000).find("30000"), std::string::npos);
}

// The claim of the header: with prefill and decode steps through Generate the same tokens come out.
TEST_F(Retrieval, TeacherForcingEqualsGreedyDecoding) {
  const auto engine = Load("flashq2");  // coarse enough for answers that are partly wrong
  const auto trials = Make(*engine, Task::kRepetition, {.contexts = {450}, .trials = 1});
  ASSERT_TRUE(trials.ok());
  int64_t right = 0, asked = 0;
  for (const Trial& t : *trials) {
    const auto leading = RunTrial(*engine, t, Ignore);
    ASSERT_TRUE(leading.ok());
    for (size_t i = 0; i < t.questions.size(); ++i) {
      const Question& q = t.questions[i];
      Request request;
      request.prompt.assign(t.tokens.begin(), t.tokens.begin() + q.first);
      request.prefill_tokens = t.prefill_tokens;
      request.max_tokens = int(q.tokens);
      request.ignore_eos = true;
      const auto done = engine->Generate({&request, 1});
      ASSERT_TRUE(done.ok());
      const auto& ids = (*done)[0].token_ids;
      const auto end = std::mismatch(ids.begin(), ids.end(), t.tokens.begin() + q.first).first;
      EXPECT_EQ(end - ids.begin(), (*leading)[i]);
      right += (*leading)[i];
      asked += q.tokens;
    }
  }
  EXPECT_GT(right, 0);
  EXPECT_LT(right, asked);
}

TEST_F(Retrieval, PrefillLeavesOutLogitsAndChangesNone) {
  const std::vector<int32_t> ids = TextIds(*exact_);
  const std::span<const int32_t> tokens = std::span(ids).first(300);
  std::vector<float> all, rest;
  int64_t first = -1;
  const auto keep = [](std::vector<float>* to, Tensor logits) {
    const auto* x = logits.as<float>();
    to->insert(to->end(), x, x + logits.numel());
    return Status();
  };
  ASSERT_TRUE(exact_->Score(tokens, [&](int64_t, Tensor l) { return keep(&all, l); }).ok());
  ASSERT_TRUE(exact_
                  ->Score(tokens, 270,
                          [&](int64_t at, Tensor l) {
                            if (first < 0) first = at;
                            return keep(&rest, l);
                          })
                  .ok());
  const auto vocab = size_t(exact_->config().vocab);
  EXPECT_EQ(first, 269);  // the last prefilled position predicts the first of the rest
  ASSERT_EQ(rest.size(), 31 * vocab);
  EXPECT_EQ(std::memcmp(rest.data(), all.data() + 269 * vocab, rest.size() * sizeof(float)), 0);
}

// Forgets the keys of the context: what an engine does whose cache is damaged.
class ForgetKeys final : public Observer {
 public:
  void Observe(int, Site site, Tensor x) override {
    if (site == Site::kKey) std::memset(x.data, 0, size_t(x.numel()) * sizeof(float));
  }
};

TEST_F(Retrieval, ExactFindsPassKeysAndADamagedModelDoesNot) {
  const auto trials = Make(*exact_, Task::kPassKey, {.contexts = {320, 640}, .trials = 1});
  const auto passages = Make(*exact_, Task::kRepetition, {.contexts = {320}, .trials = 1});
  ASSERT_TRUE(trials.ok() && passages.ok());
  const auto scores = RunTrials(*exact_, *trials, Ignore);
  const auto repeated = RunTrials(*exact_, *passages, Ignore);
  ASSERT_TRUE(scores.ok() && repeated.ok());
  ASSERT_EQ(scores->size(), 2u);
  for (const RetrievalScore& s : *scores) {
    EXPECT_EQ(s.questions, 4);
    EXPECT_GE(s.score(), 0.99);
    EXPECT_EQ(s.by_depth, (std::array<double, 4>{1, 1, 1, 1}));
  }
  EXPECT_GT((*repeated)[0].score(), 0.4);

  ForgetKeys damage;
  exact_->Observe(&damage);
  const auto damaged = RunTrials(*exact_, *trials, Ignore);
  const auto forgotten = RunTrials(*exact_, *passages, Ignore);
  exact_->Observe(nullptr);
  ASSERT_TRUE(damaged.ok() && forgotten.ok());
  for (const RetrievalScore& s : *damaged) EXPECT_EQ(s.score(), 0);
  EXPECT_LT((*forgotten)[0].score(), 0.1);
}

TEST_F(Retrieval, AttentionErrors) {
  const std::vector<int32_t> ids = TextIds(*exact_);
  const std::span<const int32_t> tokens = std::span(ids).first(256);
  const auto reference = AttentionReference::Capture(*exact_, tokens, Ignore);
  ASSERT_TRUE(reference.ok());
  const auto compare = [&](Engine& engine, View view) {
    auto errors = reference->Compare(engine, view, Ignore);
    EXPECT_TRUE(errors.ok());
    EXPECT_EQ(errors->size(), size_t(engine.config().layers));
    return *std::move(errors);
  };
  for (const View view : {View::kAccumulated, View::kIsolated})
    for (const LayerError& e : compare(*exact_, view)) {
      EXPECT_DOUBLE_EQ(e.cosine, 1);
      EXPECT_EQ(e.relative_l1, 0);
    }
  const auto fine = Load("kivi4"), coarse = Load("kivi2");
  const auto isolated = compare(*coarse, View::kIsolated), free = compare(*coarse, View::kAccumulated);
  const auto fine_isolated = compare(*fine, View::kIsolated);
  EXPECT_EQ(isolated[0].relative_l1, free[0].relative_l1);  // nothing lies before the first layer
  EXPECT_EQ(isolated[0].cosine, free[0].cosine);
  for (size_t i = 0; i < isolated.size(); ++i) {
    EXPECT_GT(fine_isolated[i].relative_l1, 0);
    EXPECT_GT(isolated[i].relative_l1, 2 * fine_isolated[i].relative_l1) << i;
    EXPECT_LT(isolated[i].cosine, fine_isolated[i].cosine) << i;
  }
  EXPECT_GT(free.back().relative_l1, isolated.back().relative_l1);  // errors add up on the way
}

}  // namespace
}  // namespace nibble
