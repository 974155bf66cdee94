// SPDX-License-Identifier: Apache-2.0
#include "engine/retrieval.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "engine/reference_logits.h"

namespace nibble {
namespace {

// Wording, names and shapes of the training exercises.
constexpr std::array<std::string_view, 30> kNames = {
    "Alice",   "Bertram",  "Clara",     "Duncan", "Edith",    "Frederick", "Grace",    "Henry",
    "Isabel",  "Jonathan", "Katherine", "Lionel", "Margaret", "Nicholas",  "Olivia",   "Philip",
    "Rachel",  "Stephen",  "Theresa",   "Victor", "Winifred", "Arthur",    "Beatrice", "Charles",
    "Dorothy", "Edmund",   "Florence",  "George", "Harriet",  "James"};
constexpr std::string_view kRepeat = "\n\nRepeat the passage.\n\n";

constexpr int kKeys = 4;            // pass keys, and questions, in one text
constexpr int kPassages = 3;        // passages to repeat of one text
constexpr int kCueTokens = 16;      // the beginning of a passage, given: it says which one is meant
constexpr int kPassageTokens = 64;  // to be continued
constexpr int kDepths = 4;

// splitmix64: the same trials on every machine and with every standard library.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  int64_t Below(int64_t n) { return int64_t(Next() % uint64_t(n)); }

 private:
  uint64_t state_;
};

uint64_t TrialSeed(const RetrievalOptions& o, Task task, int context, int trial) {
  Random mix(o.seed);
  for (const uint64_t part : {uint64_t(task), uint64_t(context), uint64_t(trial)})
    mix = Random(mix.Next() ^ part);
  return mix.Next();
}

size_t CommonPrefix(std::span<const int32_t> a, std::span<const int32_t> b) {
  return size_t(std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin());
}

class TrialMaker {
 public:
  TrialMaker(const Tokenizer& tokenizer, int32_t bos, std::span<const int32_t> text)
      : tokenizer_(tokenizer), bos_(bos), text_(text) {}

  Result<Trial> PassKey(int context, uint64_t seed);
  Result<Trial> Repetition(int context, uint64_t seed);

 private:
  Result<std::vector<int32_t>> Ids(std::string_view text) const {
    return tokenizer_.Encode(text, SpecialTokens::kOmit);
  }
  // Appends `head` + `answer` + `tail` as one piece of text; the tokens that spell the answer are asked for.
  Status Ask(const std::string& head, const std::string& answer, std::string_view tail, double depth,
             Trial* trial) const;
  // `n` neighbouring tokens of the text, what a context leaves to it.
  Result<std::span<const int32_t>> Body(const Trial& trial, int64_t n, Random* random) const;
  Trial Start(Task task, int context) const {
    Trial trial{.task = task, .context = context};
    if (bos_ >= 0) trial.tokens.push_back(bos_);
    return trial;
  }
  static void Append(std::span<const int32_t> ids, Trial* trial) {
    trial->tokens.insert(trial->tokens.end(), ids.begin(), ids.end());
  }

  const Tokenizer& tokenizer_;
  const int32_t bos_;
  const std::span<const int32_t> text_;
};

Status TrialMaker::Ask(const std::string& head, const std::string& answer, std::string_view tail,
                       double depth, Trial* trial) const {
  NIBBLE_ASSIGN(const std::vector<int32_t> before, Ids(head));
  NIBBLE_ASSIGN(const std::vector<int32_t> until, Ids(head + answer));
  NIBBLE_ASSIGN(const std::vector<int32_t> whole, Ids(head + answer + std::string(tail)));
  const size_t first = CommonPrefix(before, whole), end = CommonPrefix(until, whole);
  if (first == 0 || end <= first)
    return Error(Code::kUnsupported, "the tokenizer does not keep the answer '{}' apart from its question",
                 answer);
  trial->questions.push_back({int64_t(trial->tokens.size() + first), int64_t(end - first), depth});
  Append(whole, trial);
  return {};
}

Result<std::span<const int32_t>> TrialMaker::Body(const Trial& trial, int64_t n, Random* random) const {
  const int context = trial.context;
  // Room between the keys, and passages that need not overlap.
  const int64_t least = trial.task == Task::kPassKey ? kKeys * 32 : kPassages * (kCueTokens + kPassageTokens);
  if (n < least)
    return Error(Code::kInvalidArgument,
                 "a context of {} tokens leaves {} to the text, {} needs {}: too short", context,
                 std::max<int64_t>(n, 0), ToString(trial.task), least);
  if (n > int64_t(text_.size()))
    return Error(Code::kInvalidArgument, "the text has {} tokens, a context of {} needs {}", text_.size(),
                 context, n);
  const int64_t first = random->Below(int64_t(text_.size()) - n + 1);
  return text_.subspan(size_t(first), size_t(n));
}

// One key in each quarter of the context, at a random place; the questions in random order.
Result<Trial> TrialMaker::PassKey(int context, uint64_t seed) {
  Random random(seed);
  Trial trial = Start(Task::kPassKey, context);
  struct Key {
    std::string name, code;
    std::vector<int32_t> ids;
    double depth;
  };
  std::vector<std::string_view> names(kNames.begin(), kNames.end());
  std::vector<Key> keys;
  int64_t body_tokens = context - int64_t(trial.tokens.size());
  for (int i = 0; i < kKeys; ++i) {
    std::swap(names[size_t(i)], names[size_t(i + random.Below(int64_t(names.size()) - i))]);
    Key key{std::string(names[size_t(i)]), fmt::format("{}", 10000 + random.Below(90000)), {}, 0};
    NIBBLE_ASSIGN(key.ids,
                  Ids(fmt::format("\n\nThe pass key of {} is {}. Remember it.\n\n", key.name, key.code)));
    body_tokens -= int64_t(key.ids.size());
    keys.push_back(std::move(key));
  }
  NIBBLE_ASSIGN(const auto body, Body(trial, body_tokens, &random));
  int64_t done = 0;
  for (int i = 0; i < kKeys; ++i) {
    const int64_t begin = body_tokens * i / kKeys, end = body_tokens * (i + 1) / kKeys;
    const int64_t cut = begin + random.Below(end - begin);
    Append(body.subspan(size_t(done), size_t(cut - done)), &trial);
    keys[size_t(i)].depth = double(trial.tokens.size()) / context;
    Append(keys[size_t(i)].ids, &trial);
    done = cut;
  }
  Append(body.subspan(size_t(done)), &trial);
  trial.prefill_tokens = int64_t(trial.tokens.size());
  for (size_t i = 0; i < keys.size(); ++i) {
    std::swap(keys[i], keys[i + size_t(random.Below(int64_t(keys.size() - i)))]);
    const Key& key = keys[i];
    NIBBLE_RETURN_IF_ERROR(
        Ask(fmt::format("\n\nWhat is the pass key of {}? The pass key of {} is", key.name, key.name),
            " " + key.code, ".\n", key.depth, &trial));
  }
  return trial;
}

// Passages begin in different thirds of the context, so that together they visit all of it.
Result<Trial> TrialMaker::Repetition(int context, uint64_t seed) {
  Random random(seed);
  Trial trial = Start(Task::kRepetition, context);
  NIBBLE_ASSIGN(const std::vector<int32_t> repeat, Ids(kRepeat));
  const int64_t body_tokens = context - int64_t(trial.tokens.size());
  NIBBLE_ASSIGN(const auto body, Body(trial, body_tokens, &random));
  Append(body, &trial);
  trial.prefill_tokens = int64_t(trial.tokens.size());
  constexpr int64_t kLength = kCueTokens + kPassageTokens;
  for (int i = 0; i < kPassages; ++i) {
    const int64_t begin = (body_tokens - kLength) * i / kPassages;
    const int64_t end = (body_tokens - kLength) * (i + 1) / kPassages;
    const int64_t first = begin + random.Below(end - begin);
    Append(repeat, &trial);
    Append(body.subspan(size_t(first), kLength), &trial);
    trial.questions.push_back({int64_t(trial.tokens.size()) - kPassageTokens, kPassageTokens,
                               double(first + kCueTokens) / context});
  }
  return trial;
}

// Greedy answers and rows of logits meet here: the logits of position p predict token p + 1.
class AnswerChecker {
 public:
  explicit AnswerChecker(const Trial& trial) : trial_(trial), leading_(trial.questions.size(), 0) {}

  void Check(int64_t position, std::span<const float> logits) {
    for (size_t i = 0; i < trial_.questions.size(); ++i) {
      const Question& q = trial_.questions[i];
      // Positions come in order, so an answer is still unbroken when all of it so far was right.
      if (position + 1 != q.first + leading_[i] || leading_[i] == q.tokens) continue;
      const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();  // first of equals
      if (best == trial_.tokens[size_t(position) + 1]) ++leading_[i];
    }
  }
  std::vector<int64_t> Take() { return std::move(leading_); }

 private:
  const Trial& trial_;
  std::vector<int64_t> leading_;
};

}  // namespace

const char* ToString(Task task) { return task == Task::kPassKey ? "passkey" : "repetition"; }

Result<std::vector<Trial>> MakeTrials(Task task, const Tokenizer& tokenizer, int32_t bos, int64_t max_tokens,
                                      std::span<const int32_t> text, const RetrievalOptions& options) {
  TrialMaker maker(tokenizer, bos, text);
  std::vector<Trial> trials;
  for (const int context : options.contexts)
    for (int i = 0; i < options.trials; ++i) {
      const uint64_t seed = TrialSeed(options, task, context, i);
      NIBBLE_ASSIGN(Trial trial,
                    task == Task::kPassKey ? maker.PassKey(context, seed) : maker.Repetition(context, seed));
      if (int64_t(trial.tokens.size()) > max_tokens)
        return Error(Code::kInvalidArgument,
                     "a context of {} and {} tokens of questions exceed the model's context of {}", context,
                     int64_t(trial.tokens.size()) - trial.prefill_tokens, max_tokens);
      trials.push_back(std::move(trial));
    }
  return trials;
}

Result<std::vector<int64_t>> RunTrial(Engine& engine, const Trial& trial,
                                      const std::function<Status(int64_t rows)>& on_rows) {
  AnswerChecker checker(trial);
  std::vector<float> staging;
  int64_t fed = 0;
  NIBBLE_RETURN_IF_ERROR(
      engine.Score(trial.tokens, trial.prefill_tokens, [&](int64_t first, Tensor logits) -> Status {
        const auto vocab = size_t(logits.dim[1]);
        const std::span<const float> block = HostLogits(engine, logits, &staging);
        for (int64_t row = 0; row < logits.dim[0]; ++row)
          checker.Check(first + row, block.subspan(size_t(row) * vocab, vocab));
        const int64_t now = first + logits.dim[0];
        return on_rows(now - std::exchange(fed, now));
      }));
  return checker.Take();
}

Result<std::vector<RetrievalScore>> RunTrials(Engine& engine, std::span<const Trial> trials,
                                              const std::function<Status(int64_t rows)>& on_rows) {
  std::vector<RetrievalScore> scores;
  std::array<int, kDepths> asked{};
  const auto finish = [&] {
    if (scores.empty()) return;
    RetrievalScore& s = scores.back();
    s.exact_share /= s.questions;
    s.leading_share /= s.questions;
    for (size_t i = 0; i < asked.size(); ++i) s.by_depth[i] /= std::max(1, asked[i]);
    asked = {};
  };
  for (const Trial& trial : trials) {
    if (scores.empty() || scores.back().task != trial.task || scores.back().context != trial.context) {
      finish();
      scores.push_back({.task = trial.task, .context = trial.context});
    }
    NIBBLE_ASSIGN(const std::vector<int64_t> leading, RunTrial(engine, trial, on_rows));
    RetrievalScore& s = scores.back();
    for (size_t i = 0; i < leading.size(); ++i) {
      const Question& q = trial.questions[i];
      const double exact = leading[i] == q.tokens ? 1 : 0, share = double(leading[i]) / double(q.tokens);
      const size_t depth = std::min(size_t(q.depth * kDepths), size_t(kDepths - 1));
      ++s.questions;
      s.exact_share += exact;
      s.leading_share += share;
      s.by_depth[depth] += trial.task == Task::kPassKey ? exact : share;
      ++asked[depth];
    }
  }
  finish();
  return scores;
}

}  // namespace nibble
