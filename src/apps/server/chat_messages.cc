// SPDX-License-Identifier: Apache-2.0
#include "apps/server/chat_messages.h"

#include <algorithm>

#include "apps/server/json_text.h"
#include "base/printable.h"

namespace nibble::server {
namespace {

using jinja::Value;

constexpr std::string_view kRoles[] = {"system", "developer", "user", "assistant", "tool"};
constexpr size_t kMaxToolNameBytes = 128, kShownBytes = 64;

Value Text(std::string_view text) { return Value::String(std::string(text)); }

// OpenAI sends the arguments of a call as the text of a JSON object; templates want the object.
Result<Value> ParseArguments(JsonRef arguments) {
  if (arguments.is_object()) return Value::FromJson(arguments);
  NIBBLE_ASSIGN(const std::string_view text, arguments.String());
  NIBBLE_ASSIGN(const Json json, Json::Parse(text.empty() ? "{}" : text, {}, arguments.Where()));
  if (!json.root().is_object())
    return Error(Code::kInvalidArgument, "{}: wanted the text of a JSON object", arguments.Where());
  return Value::FromJson(json.root());
}

Result<Value> ParseToolCalls(JsonRef calls) {
  if (!calls.is_array()) return Error(Code::kInvalidArgument, "{}: wanted an array", calls.Where());
  jinja::Values list;
  for (size_t i = 0; i < calls.size(); ++i) {
    NIBBLE_ASSIGN(const JsonRef function, calls[i].Get("function"));
    NIBBLE_ASSIGN(const std::string_view name, function.GetString("name"));
    NIBBLE_ASSIGN(const JsonRef arguments, function.Get("arguments"));
    NIBBLE_ASSIGN(const std::string_view id, calls[i].GetStringOr("id", ""));
    NIBBLE_ASSIGN(Value call, PastCall(id, name, arguments));
    list.push_back(std::move(call));
  }
  return Value::List(std::move(list));
}

Result<Value> ParseMessage(JsonRef message) {
  NIBBLE_ASSIGN(std::string_view role, message.GetString("role"));
  if (std::find(std::begin(kRoles), std::end(kRoles), role) == std::end(kRoles))
    return Error(Code::kInvalidArgument,
                 "{}.role: wanted system, developer, user, assistant or tool, found \"{}\"", message.Where(),
                 Printable(role.substr(0, kShownBytes)));
  const auto content = message.Find("content");
  const auto calls = message.Find("tool_calls");
  const bool has_calls = calls && !calls->is_null() && role == "assistant";
  jinja::Entries entries;
  if (role == "developer") role = "system";  // the newer name; templates know the older one
  entries.emplace_back(Text("role"), Text(role));
  if (content && !content->is_null()) {
    NIBBLE_ASSIGN(std::string text, ContentText(*content));
    entries.emplace_back(Text("content"), Value::String(std::move(text)));
  } else if (has_calls) {
    entries.emplace_back(Text("content"), Text(""));
  } else {
    return Error(Code::kInvalidArgument, "{}.content: wanted a string or parts of text", message.Where());
  }
  if (has_calls) {
    NIBBLE_ASSIGN(Value list, ParseToolCalls(*calls));
    entries.emplace_back(Text("tool_calls"), std::move(list));
  }
  for (const char* key : {"name", "tool_call_id", "reasoning_content"}) {
    NIBBLE_ASSIGN(const std::string_view text, message.GetStringOr(key, ""));
    if (!text.empty()) entries.emplace_back(Text(key), Text(text));
  }
  return Value::Dict(std::move(entries));
}

Status ParseMessages(JsonRef body, const Limits& limits, ChatConversation* chat) {
  NIBBLE_ASSIGN(const JsonRef messages, body.Get("messages"));
  if (!messages.is_array() || messages.size() == 0 ||
      messages.size() > static_cast<size_t>(limits.max_messages))
    return Error(Code::kInvalidArgument, "{}: wanted an array of 1 to {} messages", messages.Where(),
                 limits.max_messages);
  jinja::Values list;
  for (size_t i = 0; i < messages.size(); ++i) {
    NIBBLE_ASSIGN(Value message, ParseMessage(messages[i]));
    list.push_back(std::move(message));
  }
  const Value* role = jinja::Find(list.back(), "role");
  if (chat->continue_final) {
    if (role->text() != "assistant")
      return Error(Code::kInvalidArgument, "continue_final_message: the last message is not the assistant's");
    chat->final_text = jinja::Find(list.back(), "content")->text();
  }
  chat->input.messages = Value::List(std::move(list));
  return {};
}

Result<Tool> ParseTool(JsonRef tool) {
  NIBBLE_ASSIGN(const std::string_view type, tool.GetStringOr("type", "function"));
  if (type != "function")
    return Error(Code::kUnsupported, "{}.type: only function tools are known, found \"{}\"", tool.Where(),
                 Printable(type.substr(0, kShownBytes)));
  NIBBLE_ASSIGN(const JsonRef function, tool.Get("function"));
  NIBBLE_ASSIGN(const std::string_view name, function.GetString("name"));
  if (name.empty() || name.size() > kMaxToolNameBytes)
    return Error(Code::kInvalidArgument, "{}.name: {} bytes, wanted 1 to {}", function.Where(), name.size(),
                 kMaxToolNameBytes);
  const auto parameters = function.Find("parameters");
  if (!parameters || parameters->is_null()) return Tool{std::string(name), "{}"};
  if (!parameters->is_object())
    return Error(Code::kInvalidArgument, "{}: wanted a JSON schema", parameters->Where());
  return Tool{std::string(name), ToText(*parameters)};
}

// "auto", "none", "required", or the function to call.
Status ParseToolChoice(JsonRef body, ChatConversation* chat) {
  const auto choice = body.Find("tool_choice");
  if (!choice || choice->is_null()) return {};
  if (choice->is_string()) return ChooseTool(*choice->String(), "", chat);
  NIBBLE_ASSIGN(const JsonRef function, choice->Get("function"));
  NIBBLE_ASSIGN(const std::string_view name, function.GetString("name"));
  return ChooseTool("tool", name, chat);
}

Status ParseTools(JsonRef body, const Limits& limits, ChatConversation* chat) {
  NIBBLE_ASSIGN(const std::vector<JsonRef> tools, ToolList(body, limits));
  for (const JsonRef tool : tools) {
    NIBBLE_ASSIGN(Tool parsed, ParseTool(tool));
    chat->tools.push_back(std::move(parsed));
  }
  if (!tools.empty()) {
    NIBBLE_ASSIGN(chat->input.tools, Value::FromJson(*body.Find("tools")));
  }
  return ParseToolChoice(body, chat);
}

Status CheckModalities(JsonRef body) {
  const auto list = body.Find("modalities");
  if (!list || list->is_null()) return {};
  const bool text =
      list->is_array() && list->size() == 1 && (*list)[0].is_string() && *(*list)[0].String() == "text";
  return text ? Status() : Error(Code::kUnsupported, "modalities: answers are text alone");
}

}  // namespace

Result<std::vector<JsonRef>> ToolList(JsonRef body, const Limits& limits) {
  std::vector<JsonRef> tools;
  const auto list = body.Find("tools");
  if (!list || list->is_null()) return tools;
  if (!list->is_array() || list->size() > static_cast<size_t>(limits.max_tools))
    return Error(Code::kInvalidArgument, "{}: wanted an array of at most {} tools", list->Where(),
                 limits.max_tools);
  for (size_t i = 0; i < list->size(); ++i) tools.push_back((*list)[i]);
  return tools;
}

Result<Value> PastCall(std::string_view id, std::string_view name, JsonRef arguments) {
  NIBBLE_ASSIGN(Value parsed, ParseArguments(arguments));
  Value inner = Value::Dict({{Text("name"), Text(name)}, {Text("arguments"), std::move(parsed)}});
  return Value::Dict(
      {{Text("id"), Text(id)}, {Text("type"), Text("function")}, {Text("function"), std::move(inner)}});
}

Value PastCalls(std::string text, jinja::Values calls) {
  return Value::Dict({{Text("role"), Text("assistant")},
                      {Text("content"), Value::String(std::move(text))},
                      {Text("tool_calls"), Value::List(std::move(calls))}});
}

Value ToolResult(std::string_view call_id, std::string text) {
  return Value::Dict({{Text("role"), Text("tool")},
                      {Text("content"), Value::String(std::move(text))},
                      {Text("tool_call_id"), Text(call_id)}});
}

Value DeclaredTool(std::string_view name, std::string_view description, Value parameters) {
  jinja::Entries function{{Text("name"), Text(name)}};
  if (!description.empty()) function.emplace_back(Text("description"), Text(description));
  function.emplace_back(Text("parameters"), std::move(parameters));
  return Value::Dict(
      {{Text("type"), Text("function")}, {Text("function"), Value::Dict(std::move(function))}});
}

Status ChooseTool(std::string_view choice, std::string_view name, ChatConversation* chat) {
  if (choice == "auto") return {};
  if (choice == "none") {
    chat->tools.clear();
    chat->input.tools = Value::None();
    return {};
  }
  if (choice != "required" && choice != "any" && choice != "tool")
    return Error(Code::kInvalidArgument,
                 "tool_choice: wanted auto, none, required or a function, found \"{}\"",
                 Printable(choice.substr(0, kShownBytes)));
  if (choice == "tool") std::erase_if(chat->tools, [name](const Tool& tool) { return tool.name != name; });
  chat->forced_tool = true;
  if (!chat->tools.empty()) return {};
  return Error(Code::kInvalidArgument, "tool_choice: there is no tool{}{}{}",
               choice == "tool" ? " called \"" : "", Printable(name.substr(0, kShownBytes)),
               choice == "tool" ? "\"" : "");
}

Status ParseTemplateVariables(JsonRef body, ChatInput* input) {
  const auto variables = body.Find("chat_template_kwargs");
  if (variables && !variables->is_null()) {
    if (!variables->is_object())
      return Error(Code::kInvalidArgument, "{}: wanted an object", variables->Where());
    NIBBLE_ASSIGN(const Value value, Value::FromJson(*variables));
    input->extra = value.entries();
  }
  NIBBLE_ASSIGN(const std::string_view effort, body.GetStringOr("reasoning_effort", ""));
  if (!effort.empty()) input->extra.emplace_back(Text("reasoning_effort"), Text(effort));
  const auto documents = body.Find("documents");
  if (documents && !documents->is_null()) {
    if (!documents->is_array())
      return Error(Code::kInvalidArgument, "{}: wanted an array", documents->Where());
    NIBBLE_ASSIGN(input->documents, Value::FromJson(*documents));
  }
  return {};
}

Result<std::string> ContentText(JsonRef content) {
  if (content.is_string()) return std::string(*content.String());
  if (!content.is_array())
    return Error(Code::kInvalidArgument, "{}: wanted a string or parts of text", content.Where());
  std::string text;
  for (size_t i = 0; i < content.size(); ++i) {
    NIBBLE_ASSIGN(const std::string_view type, content[i].GetString("type"));
    if (type != "text" && type != "input_text" && type != "output_text")
      return Error(Code::kUnsupported, "{}.type: only text is read, found \"{}\"", content[i].Where(),
                   Printable(type.substr(0, kShownBytes)));
    NIBBLE_ASSIGN(const std::string_view part, content[i].GetString("text"));
    text += part;
  }
  return text;
}

Result<ChatConversation> ParseChat(JsonRef body, const Limits& limits) {
  ChatConversation chat;
  NIBBLE_RETURN_IF_ERROR(CheckModalities(body));
  NIBBLE_ASSIGN(chat.continue_final, body.GetBoolOr("continue_final_message", false));
  NIBBLE_ASSIGN(chat.input.add_generation_prompt,
                body.GetBoolOr("add_generation_prompt", !chat.continue_final));
  if (chat.continue_final && chat.input.add_generation_prompt)
    return Error(Code::kInvalidArgument, "continue_final_message: wanted without add_generation_prompt");
  NIBBLE_RETURN_IF_ERROR(ParseMessages(body, limits, &chat));
  NIBBLE_RETURN_IF_ERROR(ParseTools(body, limits, &chat));
  NIBBLE_RETURN_IF_ERROR(ParseTemplateVariables(body, &chat.input));
  return chat;
}

}  // namespace nibble::server
