// SPDX-License-Identifier: Apache-2.0
#include "engine/generation.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <optional>

#include "base/check.h"
#include "engine/text_stream.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

double Seconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

// One admitted request.
struct Running {
  const Request* request;
  Completion* completion;
  SeqId seq;
  std::vector<int32_t> tokens;  // prompt and new ones
  size_t fed = 0;               // tokens the model has seen
  int step_rows = 0;            // rows in the current step
  TextStream text;
  std::optional<ConstraintState> constraint;
  Clock::time_point start{}, first_token{};

  bool DoneWithPrompt() const { return fed >= request->prompt.size(); }
  size_t NewTokens() const { return tokens.size() - request->prompt.size(); }
};

class Generation {
 public:
  Generation(const GenerationContext& context, std::span<const Request> requests,
             std::span<Completion> completions)
      : c_(context), requests_(requests), completions_(completions), sampler_(context.model.config().vocab) {}
  ~Generation() { c_.backend.Free(best_); }
  Generation(const Generation&) = delete;
  Generation& operator=(const Generation&) = delete;

  Status Run(const std::atomic<bool>* cancel);

 private:
  Status Init();
  Status Admit();
  void PlanStep();
  Status RunStep();
  bool AllGreedy() const;
  std::optional<int32_t> SampleFrom(Running* r, std::span<float> logits);
  void TakeToken(Running* r, int32_t id);
  void Finish(Running* r, FinishReason reason);
  int64_t TokensOf(const Request& r) const { return static_cast<int64_t>(r.prompt.size()) + r.max_tokens; }
  int64_t PagesOf(const Request& r) const { return (TokensOf(r) + kv::kPageTokens - 1) / kv::kPageTokens; }

  const GenerationContext& c_;
  std::span<const Request> requests_;
  std::span<Completion> completions_;
  Sampler sampler_;
  std::unique_ptr<KvCache> cache_;
  int64_t free_pages_ = 0;  // not promised to an admitted request
  size_t next_ = 0;         // first request not admitted yet
  std::vector<std::optional<Running>> running_;

  // The current step.
  std::vector<SeqId> seqs_;
  std::vector<int32_t> counts_, tokens_, logit_rows_;
  std::vector<Running*> logit_owners_;
  std::vector<float> logits_;
  Buffer best_;  // [seqs] i32 on the device
  std::vector<int32_t> ids_;
};

Status Generation::Init() {
  const int seqs =
      static_cast<int>(std::min<size_t>(requests_.size(), static_cast<size_t>(c_.options.max_seqs)));
  std::vector<int64_t> pages;
  for (const Request& r : requests_) pages.push_back(PagesOf(r));
  std::sort(pages.rbegin(), pages.rend());
  free_pages_ = std::accumulate(pages.begin(), pages.begin() + seqs, int64_t{0});
  if (c_.options.max_tokens > 0) {
    free_pages_ = std::min(free_pages_, c_.options.max_tokens / kv::kPageTokens);
    if (pages[0] > free_pages_) {
      return Error(Code::kInvalidArgument, "a request needs {} KV tokens, but the cache holds {}",
                   pages[0] * kv::kPageTokens, free_pages_ * kv::kPageTokens);
    }
  }
  const ModelConfig& m = c_.model.config();
  const int step_tokens = c_.options.prefill_chunk + seqs;
  NIBBLE_ASSIGN(cache_, KvCache::Make(c_.backend, {.shape = {m.layers, m.kv_heads, m.head_dim},
                                                   .heads = m.heads,
                                                   .recipe = c_.recipe,
                                                   .plan = c_.plan,
                                                   .max_seqs = seqs,
                                                   .max_step_tokens = step_tokens,
                                                   .max_tokens = free_pages_ * kv::kPageTokens}));
  running_.resize(static_cast<size_t>(seqs));
  seqs_.reserve(static_cast<size_t>(seqs));
  counts_.reserve(static_cast<size_t>(seqs));
  logit_rows_.reserve(static_cast<size_t>(seqs));
  logit_owners_.reserve(static_cast<size_t>(seqs));
  tokens_.reserve(static_cast<size_t>(step_tokens));
  logits_.resize(static_cast<size_t>(seqs) * static_cast<size_t>(m.vocab));
  ids_.resize(static_cast<size_t>(seqs));
  NIBBLE_ASSIGN(best_, c_.backend.Alloc(ids_.size() * sizeof(int32_t)));
  return {};
}

std::optional<ConstraintState> Constrain(const Request& r) {
  return r.constraint ? std::optional<ConstraintState>(r.constraint) : std::nullopt;
}

Status Generation::Admit() {
  for (auto& slot : running_) {
    if (slot.has_value() || next_ == requests_.size()) continue;
    const Request& r = requests_[next_];
    if (PagesOf(r) > free_pages_) break;  // in order: a small request does not overtake
    free_pages_ -= PagesOf(r);
    NIBBLE_ASSIGN(const SeqId seq, cache_->Open());
    cache_->SetPrefill(seq, r.prefill_tokens < 0 ? int64_t(r.prompt.size()) : r.prefill_tokens);
    slot.emplace(Running{.request = &r,
                         .completion = &completions_[next_],
                         .seq = seq,
                         .tokens = r.prompt,
                         .text = TextStream(c_.tokenizer, r.stop),
                         .constraint = Constrain(r),
                         .start = Clock::now()});
    slot->tokens.reserve(static_cast<size_t>(TokensOf(r)));
    slot->completion->token_ids.reserve(static_cast<size_t>(r.max_tokens));
    ++next_;
  }
  return {};
}

// Every decoding sequence gets its row; prompts share what is left of the chunk, first come first served.
void Generation::PlanStep() {
  seqs_.clear();
  counts_.clear();
  tokens_.clear();
  logit_rows_.clear();
  logit_owners_.clear();
  int budget = c_.options.prefill_chunk;
  for (auto& slot : running_) {
    if (!slot.has_value()) continue;
    Running& r = *slot;
    const int left = static_cast<int>(r.tokens.size() - r.fed);
    r.step_rows = r.DoneWithPrompt() ? left : std::min(left, budget);
    if (!r.DoneWithPrompt()) budget -= r.step_rows;
    if (r.step_rows == 0) continue;
    seqs_.push_back(r.seq);
    counts_.push_back(r.step_rows);
    const auto first = r.tokens.begin() + static_cast<ptrdiff_t>(r.fed);
    tokens_.insert(tokens_.end(), first, first + r.step_rows);
    if (r.step_rows == left) {
      logit_rows_.push_back(static_cast<int32_t>(tokens_.size()) - 1);
      logit_owners_.push_back(&r);
    }
  }
}

Status Generation::RunStep() {
  NIBBLE_RETURN_IF_ERROR(cache_->BeginStep(seqs_, counts_));
  const Tensor logits = c_.model.Forward({tokens_, logit_rows_}, *cache_);
  const auto vocab = static_cast<size_t>(c_.model.config().vocab);
  const size_t rows = logit_rows_.size();
  const bool greedy = AllGreedy();
  if (greedy && rows > 0) {
    c_.backend.ArgMax(logits, reinterpret_cast<int32_t*>(best_.data));
    c_.backend.Download(best_.data, ids_.data(), rows * sizeof(int32_t));
  } else if (rows > 0) {
    c_.backend.Download(static_cast<const std::byte*>(logits.data), logits_.data(),
                        rows * vocab * sizeof(float));
  }
  c_.backend.Sync();
  for (auto& slot : running_) {
    if (slot.has_value()) slot->fed += static_cast<size_t>(slot->step_rows);
  }
  for (size_t i = 0; i < rows; ++i) {
    Running* r = logit_owners_[i];
    if (r->NewTokens() == 0) r->first_token = Clock::now();
    if (!greedy) {
      const std::optional<int32_t> id = SampleFrom(r, std::span(logits_).subspan(i * vocab, vocab));
      if (!id) continue;
      ids_[i] = *id;
    }
    TakeToken(r, ids_[i]);
  }
  return {};
}

// Whether the best token is all that anybody wants of the logits: then they stay on the device.
bool Generation::AllGreedy() const {
  return std::all_of(logit_owners_.begin(), logit_owners_.end(), [](const Running* r) {
    const SamplingParams& p = r->request->sampling;
    return p.temperature == 0 && p.repetition_penalty == 1 && p.frequency_penalty == 0 &&
           p.presence_penalty == 0 && p.logit_bias.empty() && !r->constraint &&
           (r->request->logits_top == 0 || r->NewTokens() > 0);
  });
}

void TopLogits(std::span<const float> logits, int count, std::vector<std::pair<int32_t, float>>* out) {
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  const auto n = std::min<size_t>(static_cast<size_t>(count), ids.size());
  std::partial_sort(
      ids.begin(), ids.begin() + static_cast<ptrdiff_t>(n), ids.end(),
      [&](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; });
  for (size_t i = 0; i < n; ++i) out->emplace_back(ids[i], logits[ids[i]]);
}

// Nothing where the constraint lets no token follow: the request is finished then.
std::optional<int32_t> Generation::SampleFrom(Running* r, std::span<float> logits) {
  const Request& request = *r->request;
  const size_t index = r->NewTokens();
  if (index == 0 && request.logits_top > 0)
    TopLogits(logits, request.logits_top, &r->completion->last_prompt_logits);
  if (r->constraint) {
    const std::span<const uint64_t> allowed = r->constraint->Mask();
    if (std::all_of(allowed.begin(), allowed.end(), [](uint64_t word) { return word == 0; })) {
      Finish(r, r->constraint->MayEnd() ? FinishReason::kStop : FinishReason::kConstraint);
      return std::nullopt;
    }
    MaskLogits(logits, allowed);
  }
  return sampler_.Sample(logits, r->tokens, request.sampling, index);
}

void Generation::TakeToken(Running* r, int32_t id) {
  const Request& request = *r->request;
  if (request.max_tokens == 0) return Finish(r, FinishReason::kLength);
  if (r->constraint && !r->constraint->Accept(id)) return Finish(r, FinishReason::kConstraint);
  r->tokens.push_back(id);
  r->completion->token_ids.push_back(id);

  const std::vector<int32_t>& eos = c_.model.config().eos_tokens;
  if (!request.ignore_eos && std::find(eos.begin(), eos.end(), id) != eos.end()) {
    return Finish(r, FinishReason::kStop);
  }
  const std::string_view text = r->text.Push(id);
  if (request.on_text && !text.empty()) request.on_text(text);
  if (r->text.stopped()) return Finish(r, FinishReason::kStop);
  if (r->constraint && r->constraint->Finished()) return Finish(r, FinishReason::kStop);
  if (r->NewTokens() == static_cast<size_t>(request.max_tokens)) Finish(r, FinishReason::kLength);
}

void Generation::Finish(Running* r, FinishReason reason) {
  const std::string_view rest = r->text.Finish();
  if (r->request->on_text && !rest.empty()) r->request->on_text(rest);
  const Clock::time_point now = Clock::now();
  Completion& out = *r->completion;
  out.text = r->text.text();
  out.finish = reason;
  out.prefill_seconds = Seconds(r->start, r->NewTokens() > 0 || r->DoneWithPrompt() ? r->first_token : now);
  out.decode_seconds = r->NewTokens() > 0 ? Seconds(r->first_token, now) : 0;
  cache_->Close(r->seq);
  free_pages_ += PagesOf(*r->request);
  for (auto& slot : running_) {
    if (slot.has_value() && &*slot == r) slot.reset();
  }
}

Status Generation::Run(const std::atomic<bool>* cancel) {
  NIBBLE_RETURN_IF_ERROR(Init());
  while (true) {
    NIBBLE_RETURN_IF_ERROR(Admit());
    if (std::none_of(running_.begin(), running_.end(), [](const auto& r) { return r.has_value(); }))
      return {};
    if (cancel != nullptr && cancel->load(std::memory_order_relaxed)) break;
    PlanStep();
    NIBBLE_RETURN_IF_ERROR(RunStep());
  }
  for (auto& slot : running_) {
    if (slot.has_value()) Finish(&*slot, FinishReason::kCancelled);
  }
  for (; next_ < requests_.size(); ++next_) completions_[next_].finish = FinishReason::kCancelled;
  return {};
}

}  // namespace

Status CheckPrompt(std::span<const int32_t> prompt, const ModelConfig& config, int64_t new_tokens) {
  if (prompt.empty()) return Error(Code::kInvalidArgument, "the prompt has no tokens");
  for (size_t i = 0; i < prompt.size(); ++i) {
    if (prompt[i] < 0 || prompt[i] >= config.vocab) {
      return Error(Code::kInvalidArgument, "prompt token {} is {}, outside the vocabulary of {}", i,
                   prompt[i], config.vocab);
    }
  }
  const auto tokens = static_cast<int64_t>(prompt.size());
  if (tokens + new_tokens > config.max_position) {
    return Error(Code::kInvalidArgument, "{} prompt tokens and {} new ones exceed the model's context of {}",
                 tokens, new_tokens, config.max_position);
  }
  return {};
}

Result<std::vector<Completion>> RunGeneration(const GenerationContext& context,
                                              std::span<const Request> requests,
                                              const std::atomic<bool>* cancel) {
  for (const Request& r : requests) {
    NIBBLE_RETURN_IF_ERROR(CheckSampling(r.sampling, context.model.config().vocab));
    if (r.max_tokens < 0)
      return Error(Code::kInvalidArgument, "max_tokens is {}, must be >= 0", r.max_tokens);
    NIBBLE_RETURN_IF_ERROR(CheckPrompt(r.prompt, context.model.config(), r.max_tokens));
    if (!r.constraint) continue;
    if (r.ignore_eos)
      return Error(Code::kInvalidArgument, "ignore_eos goes against a constraint, which ends the text");
    NIBBLE_CHECK(r.constraint->trie().vocab() == context.model.config().vocab,
                 "a constraint of another model");
  }
  std::vector<Completion> completions(requests.size());
  if (requests.empty()) return completions;
  NIBBLE_RETURN_IF_ERROR(Generation(context, requests, completions).Run(cancel));
  return completions;
}

}  // namespace nibble
