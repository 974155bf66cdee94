// SPDX-License-Identifier: Apache-2.0
// Floor 9. What the engine has said of one choice of an answer, and how an API writes answers down. No
// sockets: a Format turns choices into text.
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/serving.h"

namespace nibble::server {

struct TokenEntry {
  TokenLogprob token;
  std::vector<TokenLogprob> top;
};

struct Choice {
  int index = 0;       // in the answer
  size_t prompt = 0;   // which of the call's prompts it continues
  std::string text{};  // so far
  std::vector<int32_t> tokens{};
  std::vector<TokenEntry> logprobs{}, prompt_logprobs{};  // where asked for
  std::optional<FinishReason> finish{};
  int stop_index = -1;
  std::string error{};
  ServingUsage usage{};
  std::vector<float> embedding{};
  double score = 0;  // sum of the new tokens' logprobs, for best_of
};

// What an event added to a choice.
struct Delta {
  std::string_view text;
  std::span<const TokenEntry> logprobs;
};

struct Usage {
  int64_t prompt_tokens = 0, cached_tokens = 0, new_tokens = 0;
};
// A prompt counts once, however many choices continue it.
Usage Sum(std::span<const Choice> choices);

class Format {
 public:
  virtual ~Format() = default;
  // A whole answer. `choices` are those to return, in order; `usage` counts also those left out.
  virtual std::string Whole(std::span<const Choice> choices, const Usage& usage) = 0;
  // A stream: Begin, for every event Piece (the choice holds its delta already, and its finish in the last
  // one), End behind the last event of all, or Error in the place of End. Each gives bytes to send, maybe
  // none.
  virtual std::string Begin() = 0;
  virtual std::string Piece(const Choice& choice, const Delta& delta) = 0;
  virtual std::string End(std::span<const Choice> choices, const Usage& usage) = 0;
  virtual std::string Error(int http_status, std::string_view message) = 0;
  virtual std::string Ping() const { return ": ping\n\n"; }
};

// "stop", "length", "abort" (the server ended it), "error" (the constraint cannot go on).
const char* OpenAiFinish(FinishReason reason);

// "data: " + json + an empty line.
std::string SseData(std::string_view json);
std::string SseEvent(std::string_view event, std::string_view json);

}  // namespace nibble::server
