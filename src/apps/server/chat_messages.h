// SPDX-License-Identifier: Apache-2.0
// Floor 9. The messages and tools of a chat request, checked and turned into what templates read.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "apps/server/limits.h"
#include "base/json.h"
#include "base/result.h"
#include "text/chat_template.h"

namespace nibble::server {

struct Tool {
  std::string name;
  std::string parameters;  // JSON schema; "{}" when the request gives none
};

struct ChatConversation {
  ChatInput input{};
  bool continue_final = false;  // the answer goes on with the last message, an assistant's
  std::string final_text;       // of that message
  std::vector<Tool> tools{};    // that the answer may call; none with tool_choice "none"
  bool forced_tool = false;     // the answer must call one of them
};

// Reads messages, tools, tool_choice, add_generation_prompt, continue_final_message, chat_template_kwargs,
// documents, modalities and reasoning_effort.
Result<ChatConversation> ParseChat(JsonRef body, const Limits& limits);

// Reads chat_template_kwargs, reasoning_effort and documents.
Status ParseTemplateVariables(JsonRef body, ChatInput* input);

// The tools of a request, none where it has none; at most limits.max_tools.
Result<std::vector<JsonRef>> ToolList(JsonRef body, const Limits& limits);

// A call in a past message. `arguments`: a JSON object, or its text.
Result<jinja::Value> PastCall(std::string_view id, std::string_view name, JsonRef arguments);
// An assistant's message with calls.
jinja::Value PastCalls(std::string text, jinja::Values calls);
// The answer of a tool.
jinja::Value ToolResult(std::string_view call_id, std::string text);
// A tool as OpenAI's chats declare it, which is what templates read.
jinja::Value DeclaredTool(std::string_view name, std::string_view description, jinja::Value parameters);
// Leaves the tools that the choice leaves: all ("auto", "required"), none, or the one of that name.
Status ChooseTool(std::string_view choice, std::string_view name, ChatConversation* chat);

// A message's content: a string, or parts of type "text" (or another `type`) joined. kUnsupported names
// parts of other types, such as images.
Result<std::string> ContentText(JsonRef content);

}  // namespace nibble::server
