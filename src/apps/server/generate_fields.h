// SPDX-License-Identifier: Apache-2.0
// Floor 9. The fields that every request for text has in common. Parsing knows no socket, model or tokenizer.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "apps/server/limits.h"
#include "apps/server/structured.h"
#include "base/json.h"
#include "base/result.h"
#include "engine/sampler.h"

namespace nibble::server {

struct GenerateFields {
  std::string model;  // "": the one that is loaded
  SamplingParams sampling{};
  std::optional<uint64_t> seed;
  std::optional<int> max_tokens;
  int n = 1, best_of = 1;
  bool stream = false, include_usage = false;
  bool ignore_eos = false;
  std::vector<std::string> stop{};
  bool include_stop = false;  // the stop text is part of the answer
  std::vector<int32_t> stop_tokens{};
  int logprobs = -1, prompt_logprobs = -1;  // as ServingRequest
  int priority = 0;
  std::string cache_salt;
  Structured structured{};
  std::vector<std::string> ignored{};  // fields that mean nothing here, for the log
};

inline constexpr int kMaxTokenCount = 1 << 30;

// A body as a JSON object within the limits.
Result<Json> ParseBody(std::string_view body, const Limits& limits);

// `known`: the fields that the route reads itself. kInvalidArgument or kUnsupported name the field, its value
// and what was wanted.
Result<GenerateFields> ParseGenerateFields(JsonRef body, const Limits& limits,
                                           const std::vector<std::string_view>& known);

// A text or an array of texts. Used for `stop` and its kin.
Result<std::vector<std::string>> ParseStops(JsonRef body, std::string_view key, const Limits& limits);

// The fields of `body` that are neither in `known` nor a setting of every request.
std::vector<std::string> IgnoredFields(JsonRef body, const std::vector<std::string_view>& known);

// kUnsupported for a field that asks for something else than `value`, which is all there is here.
Status RefuseField(JsonRef body, std::string_view key, std::string_view reason);

}  // namespace nibble::server
