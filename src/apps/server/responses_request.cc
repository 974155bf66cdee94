// SPDX-License-Identifier: Apache-2.0
#include "apps/server/json_text.h"
#include "apps/server/responses.h"
#include "base/printable.h"

namespace nibble::server {
namespace {

using jinja::Value;

Status AddItem(JsonRef item, jinja::Values* messages) {
  NIBBLE_ASSIGN(const std::string_view type, item.GetStringOr("type", "message"));
  if (type == "message") {
    NIBBLE_ASSIGN(std::string_view role, item.GetString("role"));
    if (role == "developer") role = "system";
    if (role != "system" && role != "user" && role != "assistant")
      return Error(Code::kInvalidArgument,
                   "{}.role: wanted system, developer, user or assistant, found \"{}\"", item.Where(),
                   Printable(role.substr(0, 64)));
    NIBBLE_ASSIGN(const JsonRef content, item.Get("content"));
    NIBBLE_ASSIGN(std::string text, ContentText(content));
    messages->push_back(ChatMessage(std::string(role), std::move(text)));
    return {};
  }
  NIBBLE_ASSIGN(const std::string_view id, item.GetStringOr("call_id", ""));
  if (type == "function_call") {
    NIBBLE_ASSIGN(const std::string_view name, item.GetString("name"));
    NIBBLE_ASSIGN(const JsonRef arguments, item.Get("arguments"));
    NIBBLE_ASSIGN(Value call, PastCall(id, name, arguments));
    messages->push_back(PastCalls("", {std::move(call)}));
    return {};
  }
  if (type == "function_call_output") {
    NIBBLE_ASSIGN(const JsonRef output, item.Get("output"));
    NIBBLE_ASSIGN(std::string text, ContentText(output));
    messages->push_back(ToolResult(id, std::move(text)));
    return {};
  }
  return Error(Code::kUnsupported,
               "{}.type: wanted message, function_call or function_call_output, found \"{}\"", item.Where(),
               Printable(type.substr(0, 64)));
}

Status ParseInput(JsonRef body, const Limits& limits, ChatConversation* chat) {
  jinja::Values messages;
  NIBBLE_ASSIGN(const std::string_view instructions, body.GetStringOr("instructions", ""));
  if (!instructions.empty()) messages.push_back(ChatMessage("system", std::string(instructions)));
  NIBBLE_ASSIGN(const JsonRef input, body.Get("input"));
  if (input.is_string()) {
    messages.push_back(ChatMessage("user", std::string(*input.String())));
  } else if (!input.is_array() || input.size() == 0 ||
             input.size() > static_cast<size_t>(limits.max_messages)) {
    return Error(Code::kInvalidArgument, "{}: wanted a text or an array of 1 to {} items", input.Where(),
                 limits.max_messages);
  }
  for (size_t i = 0; i < input.size(); ++i) NIBBLE_RETURN_IF_ERROR(AddItem(input[i], &messages));
  chat->input.messages = Value::List(std::move(messages));
  chat->input.add_generation_prompt = true;
  return {};
}

Status ParseTools(JsonRef body, const Limits& limits, ChatConversation* chat) {
  NIBBLE_ASSIGN(const std::vector<JsonRef> tools, ToolList(body, limits));
  jinja::Values declared;
  for (const JsonRef tool : tools) {
    NIBBLE_ASSIGN(const std::string_view type, tool.GetString("type"));
    if (type != "function")
      return Error(Code::kUnsupported, "{}.type: only function tools are known", tool.Where());
    NIBBLE_ASSIGN(const std::string_view name, tool.GetString("name"));
    NIBBLE_ASSIGN(const std::string_view description, tool.GetStringOr("description", ""));
    const auto schema = tool.Find("parameters");
    if (name.empty() || (schema && !schema->is_null() && !schema->is_object()))
      return Error(Code::kInvalidArgument, "{}: wanted a name and parameters", tool.Where());
    const bool given = schema && schema->is_object();
    NIBBLE_ASSIGN(Value parameters, given ? Value::FromJson(*schema) : Value::Dict({}));
    chat->tools.push_back({std::string(name), given ? ToText(*schema) : "{}"});
    declared.push_back(DeclaredTool(name, description, std::move(parameters)));
  }
  if (!declared.empty()) chat->input.tools = Value::List(std::move(declared));
  const auto choice = body.Find("tool_choice");
  if (!choice || choice->is_null()) return {};
  if (choice->is_string()) return ChooseTool(*choice->String(), "", chat);
  NIBBLE_ASSIGN(const std::string_view name, choice->GetString("name"));
  return ChooseTool("tool", name, chat);
}

// text.format says what response_format says in chats.
Status ParseTextFormat(JsonRef body, GenerateFields* f) {
  const auto text = body.Find("text");
  if (!text || text->is_null()) return {};
  const auto format = text->Find("format");
  if (!format || format->is_null()) return {};
  NIBBLE_ASSIGN(const std::string_view type, format->GetString("type"));
  if (type == "text") return {};
  f->structured.field = "text.format";
  f->structured.kind = Structured::Kind::kSchema;
  if (type == "json_object") {
    f->structured.text = R"({"type":"object"})";
  } else if (type == "json_schema") {
    NIBBLE_ASSIGN(const JsonRef schema, format->Get("schema"));
    f->structured.text = ToText(schema);
  } else {
    return Error(Code::kInvalidArgument, "text.format.type: wanted text, json_object or json_schema");
  }
  return {};
}

}  // namespace

Result<ChatRequest> ParseResponsesRequest(JsonRef body, const Limits& limits) {
  ChatRequest request;
  NIBBLE_ASSIGN(
      request.fields,
      ParseGenerateFields(body, limits,
                          {"input", "instructions", "max_output_tokens", "tools", "tool_choice", "text",
                           "store", "previous_response_id", "conversation", "background", "truncation",
                           "parallel_tool_calls", "include", "reasoning", "service_tier",
                           "chat_template_kwargs", "prompt_cache_key", "safety_identifier"}));
  GenerateFields& f = request.fields;
  NIBBLE_RETURN_IF_ERROR(
      RefuseField(body, "store", "nothing is stored here: send store: false or leave it out"));
  NIBBLE_RETURN_IF_ERROR(
      RefuseField(body, "previous_response_id", "nothing is stored here: send the whole input"));
  NIBBLE_RETURN_IF_ERROR(RefuseField(body, "conversation", "nothing is stored here: send the whole input"));
  NIBBLE_RETURN_IF_ERROR(RefuseField(body, "background", "an answer comes at once here"));
  NIBBLE_ASSIGN(const std::string_view truncation, body.GetStringOr("truncation", "disabled"));
  if (truncation != "disabled")
    return Error(Code::kUnsupported, "truncation: a conversation is taken whole or refused");
  const auto max_tokens = body.Find("max_output_tokens");
  if (max_tokens && !max_tokens->is_null()) {
    NIBBLE_ASSIGN(const int64_t tokens, max_tokens->Int(1, kMaxTokenCount));
    f.max_tokens = static_cast<int>(tokens);
  }
  NIBBLE_RETURN_IF_ERROR(ParseTextFormat(body, &f));
  NIBBLE_RETURN_IF_ERROR(ParseInput(body, limits, &request.chat));
  NIBBLE_RETURN_IF_ERROR(ParseTools(body, limits, &request.chat));
  NIBBLE_RETURN_IF_ERROR(ParseTemplateVariables(body, &request.chat.input));
  return request;
}

}  // namespace nibble::server
