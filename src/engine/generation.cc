// SPDX-License-Identifier: Apache-2.0
#include "engine/generation.h"

#include <algorithm>
#include <numeric>

#include "engine/check_request.h"
#include "engine/step_loop.h"

namespace nibble {
namespace {

using kv::kPageTokens;

ServingRequest ToServing(const Request& r, Completion* completion) {
  ServingRequest s;
  s.prompt = r.prompt;
  s.sampling = r.sampling;
  s.max_tokens = r.max_tokens;
  s.prefill_tokens = r.prefill_tokens;
  s.ignore_eos = r.ignore_eos;
  s.stop = r.stop;
  std::erase(s.stop, std::string());  // stops nothing
  s.constraint = r.constraint;
  s.logits_top = r.logits_top;
  s.on_event = [completion, &on_text = r.on_text](const ServingEvent& e) {
    completion->token_ids.insert(completion->token_ids.end(), e.tokens.begin(), e.tokens.end());
    completion->text += e.text;
    for (const TokenLogprob& l : e.prompt_logits)
      completion->last_prompt_logits.emplace_back(l.id, l.logprob);
    completion->prefill_seconds = e.usage.prefill_seconds;
    completion->decode_seconds = e.usage.decode_seconds;
    if (e.finish) completion->finish = *e.finish;
    if (on_text && !e.text.empty()) on_text(e.text);
  };
  return s;
}

int64_t PagesOf(const Request& r) {
  return (int64_t(r.prompt.size()) + r.max_tokens + kPageTokens - 1) / kPageTokens;
}

// Pages for the largest requests that can run together, or what the options allow.
Result<int64_t> PlanTokens(const EngineOptions& options, std::span<const Request> requests, int seqs) {
  std::vector<int64_t> pages;
  for (const Request& r : requests) pages.push_back(PagesOf(r));
  std::sort(pages.rbegin(), pages.rend());
  int64_t planned = std::accumulate(pages.begin(), pages.begin() + seqs, int64_t{0});
  if (options.max_tokens > 0) {
    planned = std::min(planned, options.max_tokens / kPageTokens);
    if (pages[0] > planned)
      return Error(Code::kInvalidArgument, "a request needs {} KV tokens, but the cache holds {}",
                   pages[0] * kPageTokens, planned * kPageTokens);
  }
  return planned * kPageTokens;
}

}  // namespace

Result<std::vector<Completion>> RunGeneration(const EngineParts& parts, std::span<const Request> requests,
                                              const std::atomic<bool>* cancel) {
  std::vector<Completion> completions(requests.size());
  std::vector<ServingRequest> serving;
  for (size_t i = 0; i < requests.size(); ++i) {
    serving.push_back(ToServing(requests[i], &completions[i]));
    NIBBLE_RETURN_IF_ERROR(CheckRequest(serving.back(), parts.model.config()));
  }
  if (requests.empty()) return completions;
  const EngineOptions& o = parts.options;
  const int seqs = static_cast<int>(std::min(requests.size(), static_cast<size_t>(o.max_seqs)));
  NIBBLE_ASSIGN(const int64_t tokens, PlanTokens(o, requests, seqs));
  NIBBLE_ASSIGN(const std::unique_ptr<StepLoop> loop,
                StepLoop::Make(parts, {.max_num_seqs = seqs,
                                       .max_num_batched_tokens = o.prefill_chunk + seqs,
                                       .kv_tokens = tokens,
                                       .admission = Admission::kWhole}));
  for (size_t i = 0; i < serving.size(); ++i) {
    completions[i].token_ids.reserve(static_cast<size_t>(requests[i].max_tokens));
    loop->Add(std::make_unique<Answer>(i, std::move(serving[i]), parts.tokenizer, parts.model.config()),
              static_cast<int64_t>(i));
  }
  while (!loop->idle()) {
    if (cancel != nullptr && cancel->load(std::memory_order_relaxed)) {
      loop->EndAll(FinishReason::kCancelled);
      break;
    }
    NIBBLE_RETURN_IF_ERROR(loop->Step());
  }
  return completions;
}

}  // namespace nibble
