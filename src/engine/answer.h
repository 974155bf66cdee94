// SPDX-License-Identifier: Apache-2.0
// Floor 8. One request under way: its tokens and its text, how it ends, and what it has to say after a step.
// Knows no cache and no schedule.
#pragma once
#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "engine/logprobs.h"
#include "engine/sampler.h"
#include "engine/serving.h"
#include "engine/text_stream.h"

namespace nibble {

class Answer {
 public:
  using Clock = std::chrono::steady_clock;
  // The tokenizer and the config must outlive it.
  Answer(RequestId id, ServingRequest request, const Tokenizer& tokenizer, const ModelConfig& config);

  RequestId id() const { return id_; }
  const ServingRequest& request() const { return request_; }
  std::span<const int32_t> tokens() const { return tokens_; }  // prompt and new ones
  int64_t prompt_tokens() const { return int64_t(request_.prompt.size()); }
  int64_t new_tokens() const { return int64_t(tokens_.size()) - prompt_tokens(); }
  // Prompt tokens that attend to everything.
  int64_t prefill_tokens() const {
    return request_.prefill_tokens < 0 ? prompt_tokens() : request_.prefill_tokens;
  }
  bool wants_all_rows() const;   // of the prompt, which is not through yet
  bool wants_best_only() const;  // of the logits nothing but the index of the greatest
  bool wants_draw_only() const;  // nothing but a token drawn from them
  // Its last row may be taken beside those of others. Constraints share tables, which grow as they are asked.
  bool samples_alone() const { return !constraint_ && !wants_best_only() && !wants_all_rows(); }
  bool finished() const { return finish_.has_value(); }
  FinishReason finish() const { return *finish_; }  // REQUIRES finished()
  ServingUsage& usage() { return usage_; }

  void Admitted(int64_t cached);
  // The row of the prompt token at `position`, not the last one.
  void TakePromptRow(int64_t position, std::span<const float> logits, std::span<const float> hidden);
  // The row of the last token: chooses the next one. `logits` may be changed, `raw` is room for as many.
  void TakeLastRow(std::span<float> logits, std::span<const float> hidden, Sampler* sampler,
                   std::vector<float>* raw);
  void TakeToken(int32_t id);  // when it was chosen elsewhere
  // What a device is told to choose it, when it follows the tokens and `guesses`. REQUIRES wants_draw_only().
  DrawRow PrepareDraw(std::span<const int32_t> guesses, Sampler* sampler,
                      std::vector<LogitChange>* changes) const;
  void Finish(FinishReason reason, std::string error = {});

  void Deliver();  // calls on_event if there is anything to say since the last call

 private:
  bool TakeHidden(std::span<const float> hidden);

  const RequestId id_;
  const ServingRequest request_;
  const ModelConfig& config_;
  std::vector<int32_t> tokens_;
  TextStream stream_;
  std::optional<ConstraintState> constraint_;
  int64_t prompt_rows_ = 0;  // whose logits or hidden states were taken
  std::optional<FinishReason> finish_;
  ServingUsage usage_;
  Clock::time_point submitted_ = Clock::now();
  std::optional<Clock::time_point> admitted_, first_token_;

  // To be said.
  int64_t said_tokens_ = 0;  // new tokens
  std::string text_, error_;
  LogprobStore logprobs_, prompt_logprobs_;
  std::vector<TokenLogprob> prompt_logits_;
  std::vector<double> hidden_sum_;
  std::vector<float> embedding_;
};

}  // namespace nibble
