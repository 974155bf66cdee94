// SPDX-License-Identifier: Apache-2.0
#include "engine/answer.h"

#include <algorithm>

#include "base/arg_max.h"

namespace nibble {
namespace {

double Seconds(Answer::Clock::time_point from, Answer::Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

bool Contains(const std::vector<int32_t>& ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

}  // namespace

Answer::Answer(RequestId id, ServingRequest request, const Tokenizer& tokenizer, const ModelConfig& config)
    : id_(id),
      request_(std::move(request)),
      config_(config),
      tokens_(request_.prompt),
      stream_(tokenizer, request_.stop),
      logprobs_(request_.logprobs),
      prompt_logprobs_(request_.prompt_logprobs) {
  if (request_.constraint) constraint_.emplace(request_.constraint);
  text_.reserve(256);
  tokens_.reserve(request_.prompt.size() + size_t(request_.max_tokens));
  usage_.prompt_tokens = prompt_tokens();
}

bool Answer::wants_all_rows() const {
  return (prompt_logprobs_.wanted() || request_.pooling == Pooling::kMean) && new_tokens() == 0;
}

bool Answer::wants_best_only() const {
  const SamplingParams& p = request_.sampling;
  return p.temperature == 0 && p.repetition_penalty == 1 && p.frequency_penalty == 0 &&
         p.presence_penalty == 0 && p.logit_bias.empty() && wants_draw_only();
}

bool Answer::wants_draw_only() const {
  const bool prompt = new_tokens() == 0 && (request_.logits_top > 0 || request_.max_tokens == 0);
  return !constraint_ && !logprobs_.wanted() && !prompt;
}

DrawRow Answer::PrepareDraw(std::span<const int32_t> guesses, Sampler* sampler,
                            std::vector<LogitChange>* changes) const {
  return sampler->Prepare(tokens_, guesses, request_.sampling, uint64_t(new_tokens()) + guesses.size(),
                          changes);
}

void Answer::Admitted(int64_t cached) {
  if (admitted_) return;
  admitted_ = Clock::now();
  usage_.cached_tokens = cached;
  usage_.queued_seconds = Seconds(submitted_, *admitted_);
}

// Sums in token order, in double. False for a state that is no number.
bool Answer::TakeHidden(std::span<const float> hidden) {
  hidden_sum_.resize(hidden.size());
  const bool adds = request_.pooling == Pooling::kMean;
  for (size_t i = 0; i < hidden.size(); ++i) hidden_sum_[i] = (adds ? hidden_sum_[i] : 0) + double(hidden[i]);
  return AllFinite(hidden);
}

void Answer::TakePromptRow(int64_t position, std::span<const float> logits, std::span<const float> hidden) {
  if (finished() || position != prompt_rows_) return;  // again, after a preemption
  ++prompt_rows_;
  if (request_.pooling == Pooling::kMean && !TakeHidden(hidden))
    return Finish(FinishReason::kError, "hidden states of the prompt are not finite");
  if (!prompt_logprobs_.wanted()) return;
  if (!AllFinite(logits)) return Finish(FinishReason::kError, "logits of the prompt are not finite");
  prompt_logprobs_.Add(logits, tokens_[size_t(position) + 1]);
}

void Answer::TakeLastRow(std::span<float> logits, std::span<const float> hidden, Sampler* sampler,
                         std::vector<float>* raw) {
  if (!AllFinite(logits)) return Finish(FinishReason::kError, "logits are not finite");
  if (new_tokens() == 0 && request_.logits_top > 0) BestLogits(logits, request_.logits_top, &prompt_logits_);
  if (request_.max_tokens == 0) {
    if (request_.pooling != Pooling::kNone && !TakeHidden(hidden))
      return Finish(FinishReason::kError, "hidden states are not finite");
    return Finish(FinishReason::kLength);
  }
  if (constraint_) {
    const std::span<const uint64_t> allowed = constraint_->Mask();
    if (std::all_of(allowed.begin(), allowed.end(), [](uint64_t word) { return word == 0; }))
      return Finish(constraint_->MayEnd() ? FinishReason::kStop : FinishReason::kConstraint);
  }
  if (logprobs_.wanted()) raw->assign(logits.begin(), logits.end());
  if (constraint_) MaskLogits(logits, constraint_->Mask());
  const int32_t id = sampler->Sample(logits, tokens_, request_.sampling, uint64_t(new_tokens()));
  const int64_t before = new_tokens();
  TakeToken(id);
  if (new_tokens() > before) logprobs_.Add(*raw, id);
}

void Answer::TakeToken(int32_t id) {
  if (!first_token_) {
    first_token_ = Clock::now();
    usage_.prefill_seconds = Seconds(*admitted_, *first_token_);
  }
  if (constraint_ && !constraint_->Accept(id)) return Finish(FinishReason::kConstraint);
  tokens_.push_back(id);
  ++usage_.new_tokens;
  const bool ends = !request_.ignore_eos && Contains(config_.eos_tokens, id);
  if (ends || Contains(request_.stop_tokens, id)) return Finish(FinishReason::kStop);
  text_ += stream_.Push(id);
  if (stream_.stopped()) return Finish(FinishReason::kStop);
  if (constraint_ && constraint_->Finished()) return Finish(FinishReason::kStop);
  if (new_tokens() == request_.max_tokens) Finish(FinishReason::kLength);
}

void Answer::Finish(FinishReason reason, std::string error) {
  text_ += stream_.Finish();
  finish_ = reason;
  error_ = std::move(error);
  const Clock::time_point now = Clock::now();
  if (first_token_) {
    usage_.decode_seconds = Seconds(*first_token_, now);
  } else if (admitted_) {
    usage_.prefill_seconds = Seconds(*admitted_, now);
  } else {
    usage_.queued_seconds = Seconds(submitted_, now);
  }
  if (reason != FinishReason::kLength || request_.pooling == Pooling::kNone) return;
  const double rows = request_.pooling == Pooling::kMean ? double(prompt_tokens()) : 1;
  for (const double sum : hidden_sum_) embedding_.push_back(float(sum / rows));
}

void Answer::Deliver() {
  const bool silent =
      !finish_ && said_tokens_ == new_tokens() && prompt_logprobs_.View().empty() && prompt_logits_.empty();
  if (silent) return;
  if (!finish_ && first_token_) usage_.decode_seconds = Seconds(*first_token_, Clock::now());
  const auto fresh = std::span<const int32_t>(tokens_).subspan(size_t(prompt_tokens() + said_tokens_));
  if (request_.on_event)
    request_.on_event({.id = id_,
                       .text = text_,
                       .tokens = fresh,
                       .logprobs = logprobs_.View(),
                       .prompt_logprobs = prompt_logprobs_.View(),
                       .prompt_logits = prompt_logits_,
                       .embedding = embedding_,
                       .finish = finish_,
                       .stop_index = stream_.stop_index(),
                       .error = error_,
                       .usage = usage_});
  said_tokens_ = new_tokens();
  text_.clear(), logprobs_.Clear(), prompt_logprobs_.Clear(), prompt_logits_.clear();
}

}  // namespace nibble
