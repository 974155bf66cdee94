// SPDX-License-Identifier: Apache-2.0
// Floor 9. OpenAI's /v1/responses without memory: every request brings its whole conversation, nothing is
// stored.
#pragma once
#include <memory>
#include <string>

#include "apps/server/choice.h"
#include "apps/server/openai_request.h"
#include "apps/server/tool_calls.h"

namespace nibble::server {

Result<ChatRequest> ParseResponsesRequest(JsonRef body, const Limits& limits);

struct ResponseHead {
  std::string id, model;
  int64_t created = 0;
  std::optional<int> max_tokens;
  float temperature = 1, top_p = 1;
  ToolSyntax tools = ToolSyntax::kNone;
};
std::unique_ptr<Format> MakeResponseFormat(ResponseHead head);

}  // namespace nibble::server
