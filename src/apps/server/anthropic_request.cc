// SPDX-License-Identifier: Apache-2.0
#include "apps/server/anthropic.h"
#include "apps/server/json_text.h"
#include "base/printable.h"

namespace nibble::server {
namespace {

using jinja::Value;

constexpr double kMaxTemperature = 1;  // Anthropic's

// Parts of one message: text is joined, calls go into it, results become messages of their own before it.
Status AddParts(JsonRef message, std::string_view role, jinja::Values* messages) {
  NIBBLE_ASSIGN(const JsonRef content, message.Get("content"));
  if (content.is_string()) {
    messages->push_back(ChatMessage(std::string(role), std::string(*content.String())));
    return {};
  }
  if (!content.is_array())
    return Error(Code::kInvalidArgument, "{}: wanted a string or an array of parts", content.Where());
  std::string text;
  jinja::Values calls;
  bool has_text = false;
  for (size_t i = 0; i < content.size(); ++i) {
    const JsonRef part = content[i];
    NIBBLE_ASSIGN(const std::string_view type, part.GetString("type"));
    if (type == "text") {
      NIBBLE_ASSIGN(const std::string_view piece, part.GetString("text"));
      text += piece;
      has_text = true;
    } else if (type == "tool_use" && role == "assistant") {
      NIBBLE_ASSIGN(const std::string_view id, part.GetString("id"));
      NIBBLE_ASSIGN(const std::string_view name, part.GetString("name"));
      NIBBLE_ASSIGN(const JsonRef input, part.Get("input"));
      NIBBLE_ASSIGN(Value call, PastCall(id, name, input));
      calls.push_back(std::move(call));
    } else if (type == "tool_result" && role == "user") {
      NIBBLE_ASSIGN(const std::string_view id, part.GetString("tool_use_id"));
      const auto result = part.Find("content");
      NIBBLE_ASSIGN(std::string result_text, result ? ContentText(*result) : std::string());
      messages->push_back(ToolResult(id, std::move(result_text)));
    } else {
      return Error(Code::kUnsupported, "{}.type: wanted text, tool_use or tool_result, found \"{}\"",
                   part.Where(), Printable(type.substr(0, 64)));
    }
  }
  if (!calls.empty()) {
    messages->push_back(PastCalls(std::move(text), std::move(calls)));
  } else if (has_text) {
    messages->push_back(ChatMessage(std::string(role), std::move(text)));
  }
  return {};
}

Status ParseMessages(JsonRef body, const Limits& limits, ChatConversation* chat) {
  jinja::Values messages;
  if (const auto system = body.Find("system"); system && !system->is_null()) {
    NIBBLE_ASSIGN(std::string text, ContentText(*system));
    messages.push_back(ChatMessage("system", std::move(text)));
  }
  NIBBLE_ASSIGN(const JsonRef list, body.Get("messages"));
  if (!list.is_array() || list.size() == 0 || list.size() > static_cast<size_t>(limits.max_messages))
    return Error(Code::kInvalidArgument, "{}: wanted an array of 1 to {} messages", list.Where(),
                 limits.max_messages);
  std::string_view role;
  for (size_t i = 0; i < list.size(); ++i) {
    NIBBLE_ASSIGN(role, list[i].GetString("role"));
    if (role != "user" && role != "assistant")
      return Error(Code::kInvalidArgument, "{}.role: wanted user or assistant, found \"{}\"", list[i].Where(),
                   Printable(role.substr(0, 64)));
    NIBBLE_RETURN_IF_ERROR(AddParts(list[i], role, &messages));
  }
  // An answer that was begun is to go on.
  chat->continue_final = role == "assistant";
  chat->input.add_generation_prompt = !chat->continue_final;
  if (chat->continue_final) chat->final_text = jinja::Find(messages.back(), "content")->text();
  chat->input.messages = Value::List(std::move(messages));
  return {};
}

Status ParseTools(JsonRef body, const Limits& limits, ChatConversation* chat) {
  NIBBLE_ASSIGN(const std::vector<JsonRef> tools, ToolList(body, limits));
  jinja::Values declared;
  for (const JsonRef tool : tools) {
    NIBBLE_ASSIGN(const std::string_view name, tool.GetString("name"));
    NIBBLE_ASSIGN(const std::string_view description, tool.GetStringOr("description", ""));
    NIBBLE_ASSIGN(const JsonRef schema, tool.Get("input_schema"));
    if (name.empty() || !schema.is_object())
      return Error(Code::kInvalidArgument, "{}: wanted a name and an input_schema", tool.Where());
    NIBBLE_ASSIGN(Value parameters, Value::FromJson(schema));
    chat->tools.push_back({std::string(name), ToText(schema)});
    declared.push_back(DeclaredTool(name, description, std::move(parameters)));
  }
  if (!declared.empty()) chat->input.tools = Value::List(std::move(declared));
  const auto choice = body.Find("tool_choice");
  if (!choice || choice->is_null()) return {};
  NIBBLE_ASSIGN(const std::string_view type, choice->GetString("type"));
  NIBBLE_ASSIGN(const std::string_view name, choice->GetStringOr("name", ""));
  return ChooseTool(type, name, chat);
}

}  // namespace

Result<ChatRequest> ParseMessagesRequest(JsonRef body, const Limits& limits, bool count_only) {
  ChatRequest request;
  NIBBLE_ASSIGN(request.fields, ParseGenerateFields(body, limits,
                                                    {"messages", "system", "max_tokens", "stop_sequences",
                                                     "tools", "tool_choice", "thinking", "service_tier",
                                                     "chat_template_kwargs", "container", "mcp_servers"}));
  GenerateFields& f = request.fields;
  if (const auto thinking = body.Find("thinking"); thinking && thinking->is_object()) {
    NIBBLE_ASSIGN(const std::string_view type, thinking->GetString("type"));
    if (type != "disabled")
      return Error(Code::kUnsupported,
                   "thinking: use chat_template_kwargs, where the model's template knows it");
  }
  NIBBLE_RETURN_IF_ERROR(RefuseField(body, "container", "code is not run here"));
  NIBBLE_RETURN_IF_ERROR(RefuseField(body, "mcp_servers", "other servers are not called"));
  NIBBLE_ASSIGN(f.stop, ParseStops(body, "stop_sequences", limits));
  if (f.sampling.temperature > kMaxTemperature)
    return Error(Code::kInvalidArgument, "temperature: wanted 0 to 1, found {}", f.sampling.temperature);
  if (!count_only) {
    NIBBLE_ASSIGN(const int64_t max_tokens, body.GetInt("max_tokens", 1, kMaxTokenCount));
    f.max_tokens = static_cast<int>(max_tokens);
  }
  NIBBLE_RETURN_IF_ERROR(ParseMessages(body, limits, &request.chat));
  NIBBLE_RETURN_IF_ERROR(ParseTools(body, limits, &request.chat));
  NIBBLE_RETURN_IF_ERROR(ParseTemplateVariables(body, &request.chat.input));
  return request;
}

}  // namespace nibble::server
