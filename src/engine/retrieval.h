// SPDX-License-Identifier: Apache-2.0
// Floor 8. Does a recipe still find things far back in its context? Pass keys hidden in a text and asked for
// at its end, and passages of a text to be repeated: the two exercises that the novelist models were trained
// on (models/train_novelist.py), built from a text of the user's choice.
//
// The context is prefilled dense. Questions and answers go through decode steps, so that token selection is
// really tried. Answers are teacher-forced: every answer token is compared with the likeliest next token
// after the right ones before it. Up to the first mistake that is what greedy decoding produces, so one pass
// answers several questions, and the number of leading right tokens is the same as when they are generated.
#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "engine/engine.h"

namespace nibble {

enum class Task : uint8_t { kPassKey, kRepetition };
const char* ToString(Task);  // "passkey", "repetition"

struct RetrievalOptions {
  std::vector<int> contexts{};  // tokens that are prefilled, one set of trials each
  int trials = 4;               // texts a task and context; each holds several questions
  uint64_t seed = 1;
};

struct Question {
  int64_t first = 0, tokens = 0;  // the answer within Trial::tokens
  double depth = 0;               // where the context holds it: 0 begin, 1 end
};

struct Trial {
  Task task{};
  int context = 0;                // as asked for; prefill_tokens is at most that
  std::vector<int32_t> tokens{};  // context, then questions with their answers
  int64_t prefill_tokens = 0;
  std::vector<Question> questions{};
};

// The trials of one task, in the order of the contexts; a trial depends on the text, the seed, the task, its
// context and its number only. kInvalidArgument when a context is too short for the exercise, the text is
// shorter than a context, or context and questions exceed `max_tokens` (each names the numbers).
Result<std::vector<Trial>> MakeTrials(Task, const Tokenizer&, int32_t bos, int64_t max_tokens,
                                      std::span<const int32_t> text, const RetrievalOptions&);

// Leading right tokens of each answer. `on_rows` sees rows as they are fed; its error ends the trial.
Result<std::vector<int64_t>> RunTrial(Engine&, const Trial&,
                                      const std::function<Status(int64_t rows)>& on_rows);

// One line of a report: all questions of one task and context.
struct RetrievalScore {
  Task task{};
  int context = 0, questions = 0;
  double exact_share = 0;    // answers right from the first to the last token, 0..1
  double leading_share = 0;  // leading right tokens over tokens asked for, 0..1
  // Share of answers that are wholly right (pass key) or mean leading share (repetition), by depth in
  // quarters of the context.
  std::array<double, 4> by_depth{};
  double score() const { return task == Task::kPassKey ? exact_share : leading_share; }
};

// Runs all trials; scores in the order of their contexts.
Result<std::vector<RetrievalScore>> RunTrials(Engine&, std::span<const Trial>,
                                              const std::function<Status(int64_t rows)>& on_rows);

}  // namespace nibble
