// SPDX-License-Identifier: Apache-2.0
// Floor 9. Anthropic's /v1/messages: bodies as values, answers and streams of named events as it writes them.
#pragma once
#include <memory>
#include <string>

#include "apps/server/choice.h"
#include "apps/server/openai_request.h"
#include "apps/server/tool_calls.h"

namespace nibble::server {

// `count_only`: a body of count_tokens, which says nothing about the answer.
Result<ChatRequest> ParseMessagesRequest(JsonRef body, const Limits& limits, bool count_only);

struct MessageHead {
  std::string id, model;
  int64_t prompt_tokens = 0;
  std::vector<std::string> stops;
  ToolSyntax tools = ToolSyntax::kNone;
};
std::unique_ptr<Format> MakeMessageFormat(MessageHead head);

}  // namespace nibble::server
