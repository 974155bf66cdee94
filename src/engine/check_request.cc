// SPDX-License-Identifier: Apache-2.0
#include "engine/check_request.h"

#include "base/check.h"

namespace nibble {
namespace {

Status CheckIds(const char* what, std::span<const int32_t> ids, const ModelConfig& config) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= config.vocab)
      return Error(Code::kInvalidArgument, "{} {} is {}, outside the vocabulary of {}", what, i, ids[i],
                   config.vocab);
  }
  return {};
}

Status CheckLogprobs(const char* name, int count, const ModelConfig& config) {
  if (count >= -1 && count <= config.vocab) return {};
  return Error(Code::kInvalidArgument, "{} is {}, must be -1 (none) to {}", name, count, config.vocab);
}

}  // namespace

Status CheckPrompt(std::span<const int32_t> prompt, const ModelConfig& config, int64_t new_tokens) {
  if (prompt.empty()) return Error(Code::kInvalidArgument, "the prompt has no tokens");
  NIBBLE_RETURN_IF_ERROR(CheckIds("prompt token", prompt, config));
  const auto tokens = static_cast<int64_t>(prompt.size());
  if (tokens + new_tokens > config.max_position) {
    return Error(Code::kInvalidArgument, "{} prompt tokens and {} new ones exceed the model's context of {}",
                 tokens, new_tokens, config.max_position);
  }
  return {};
}

Status CheckRequest(const ServingRequest& r, const ModelConfig& config) {
  NIBBLE_RETURN_IF_ERROR(CheckSampling(r.sampling, config.vocab));
  if (r.max_tokens < 0) return Error(Code::kInvalidArgument, "max_tokens is {}, must be >= 0", r.max_tokens);
  NIBBLE_RETURN_IF_ERROR(CheckPrompt(r.prompt, config, r.max_tokens));
  NIBBLE_RETURN_IF_ERROR(CheckIds("stop token", r.stop_tokens, config));
  for (const std::string& stop : r.stop)
    if (stop.empty()) return Error(Code::kInvalidArgument, "a stop string is empty");
  NIBBLE_RETURN_IF_ERROR(CheckLogprobs("logprobs", r.logprobs, config));
  NIBBLE_RETURN_IF_ERROR(CheckLogprobs("prompt_logprobs", r.prompt_logprobs, config));
  if (r.pooling != Pooling::kNone && r.max_tokens > 0)
    return Error(Code::kInvalidArgument, "max_tokens is {}, must be 0 for an embedding", r.max_tokens);
  if (!r.constraint) return {};
  if (r.ignore_eos)
    return Error(Code::kInvalidArgument, "ignore_eos goes against a constraint, which ends the text");
  NIBBLE_CHECK(r.constraint->trie().vocab() == config.vocab, "a constraint of another model");
  return {};
}

}  // namespace nibble
