// SPDX-License-Identifier: Apache-2.0
// Floor 9. The bodies of /v1/completions, /v1/chat/completions and /v1/embeddings as values, checked as far
// as can be without a model.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "apps/server/chat_messages.h"
#include "apps/server/generate_fields.h"

namespace nibble::server {

using Prompt = std::variant<std::string, std::vector<int32_t>>;  // text, or the ids of its tokens

struct CompletionRequest {
  GenerateFields fields;
  std::vector<Prompt> prompts;
  bool echo = false;
};
Result<CompletionRequest> ParseCompletionRequest(JsonRef body, const Limits& limits);

struct ChatRequest {
  GenerateFields fields;
  ChatConversation chat;
};
Result<ChatRequest> ParseChatRequest(JsonRef body, const Limits& limits);

struct EmbeddingRequest {
  std::string model;
  std::vector<Prompt> inputs;
  bool base64 = false, mean = false;
};
Result<EmbeddingRequest> ParseEmbeddingRequest(JsonRef body, const Limits& limits);

// A text, an array of texts, an array of ids, or an array of arrays of ids; at least one, none empty.
Result<std::vector<Prompt>> ParsePrompts(JsonRef body, std::string_view key, size_t most);

}  // namespace nibble::server
