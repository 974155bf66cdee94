// SPDX-License-Identifier: Apache-2.0
// Floor 9. Prompts through a chat template.
#include "apps/cli/chat.h"

#include "base/json.h"
#include "base/utf8.h"

namespace nibble::cli {
namespace {

using jinja::Value;

Result<ChatTemplate> LoadTemplate(const ChatOptions& options, const std::string& model) {
  if (!options.template_file.empty()) return ChatTemplate::LoadFile(options.template_file, model);
  auto chat = ChatTemplate::Load(model);
  if (!chat.ok() && chat.status().code() == Code::kNotFound)
    return Error(Code::kNotFound, "{}; --chat-template-file gives one", chat.status().message());
  return chat;
}

Status CheckUtf8(const std::string& text) {
  const size_t bad = FindInvalidUtf8(text);
  return bad == std::string::npos ? Status() : Error(Code::kInvalidArgument, "byte {} is not UTF-8", bad);
}

}  // namespace

void AddChat(Parser parser, ChatOptions& options) {
  const char* group = "Chat";
  const Option chat =
      parser
          .Flag("--chat", options.chat, "Put each prompt into the model's chat template, as a user's message")
          .Group(group);
  parser.Add("--system,--system-prompt", options.system, "Text of a system message before it")
      .Type("TEXT")
      .Needs(chat)
      .Group(group);
  parser.Add("--chat-template-file", options.template_file, "Take this Jinja template, not the model's")
      .Type("FILE")
      .Needs(chat)
      .Group(group);
  parser
      .Add("--chat-template-kwargs", options.variables,
           "Further variables of the template, such as {\"enable_thinking\": false}")
      .Type("JSON")
      .Needs(chat)
      .Group(group);
}

Result<ChatPrompts> ChatPrompts::Load(const ChatOptions& options, const std::string& model) {
  NIBBLE_ASSIGN(ChatTemplate chat, LoadTemplate(options, model));
  ChatInput input;
  input.add_generation_prompt = true;
  jinja::Values messages;
  if (options.system) {
    if (const Status status = CheckUtf8(*options.system); !status.ok())
      return Error(status.code(), "--system: {}", status.message());
    messages.push_back(ChatMessage("system", *options.system));
  }
  input.messages = Value::List(std::move(messages));
  if (!options.variables.empty()) {
    NIBBLE_ASSIGN(const nibble::Json json,
                  nibble::Json::Parse(options.variables, {}, "--chat-template-kwargs"));
    NIBBLE_ASSIGN(const Value variables, Value::FromJson(json.root()));
    if (!variables.is(jinja::Type::kDict))
      return Error(Code::kInvalidArgument, "--chat-template-kwargs: wanted a JSON object");
    input.extra = variables.entries();
  }
  return ChatPrompts(std::move(chat), std::move(input));
}

Result<std::string> ChatPrompts::Text(const std::string& prompt) const {
  NIBBLE_RETURN_IF_ERROR(CheckUtf8(prompt));
  ChatInput input = input_;
  jinja::Values messages = input_.messages.items();
  messages.push_back(ChatMessage("user", prompt));
  input.messages = Value::List(std::move(messages));
  return chat_.Render(input);
}

}  // namespace nibble::cli
