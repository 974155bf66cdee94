// SPDX-License-Identifier: Apache-2.0
#include "apps/server/choice.h"

#include <fmt/format.h>

namespace nibble::server {

Usage Sum(std::span<const Choice> choices) {
  Usage usage;
  std::vector<bool> counted;
  for (const Choice& choice : choices) {
    usage.new_tokens += choice.usage.new_tokens;
    if (choice.prompt >= counted.size()) counted.resize(choice.prompt + 1);
    if (counted[choice.prompt]) continue;
    counted[choice.prompt] = true;
    usage.prompt_tokens += choice.usage.prompt_tokens;
    usage.cached_tokens += choice.usage.cached_tokens;
  }
  return usage;
}

const char* OpenAiFinish(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "abort";
    case FinishReason::kConstraint:
    case FinishReason::kError:
      return "error";
  }
  return "?";
}

std::string SseData(std::string_view json) { return fmt::format("data: {}\n\n", json); }

std::string SseEvent(std::string_view event, std::string_view json) {
  return fmt::format("event: {}\ndata: {}\n\n", event, json);
}

}  // namespace nibble::server
