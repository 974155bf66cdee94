// SPDX-License-Identifier: Apache-2.0
// Floor 5. Finding a model's chat template and giving it what transformers gives it.
#include "text/chat_template.h"

#include <algorithm>
#include <chrono>
#include <iterator>

#include "base/file.h"
#include "base/json.h"
#include "base/printable.h"

namespace nibble {
namespace {

using jinja::Entries;
using jinja::Type;
using jinja::Value;
using jinja::Values;

constexpr const char* kTokens[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                   "pad_token", "cls_token", "mask_token"};
constexpr const char* kReserved[] = {
    "messages",  "tools",         "documents",      "add_generation_prompt",
    "tokenize",  "chat_template", "conversation",   "continue_final_message",
    "tokenizer", "return_dict",   "return_tensors", "return_assistant_tokens_mask"};
// Names of a message's reasoning; the first is the one that templates read.
constexpr const char* kReasoning[] = {"reasoning_content", "thinking", "reasoning"};

Value Text(std::string text) { return Value::String(std::move(text)); }

void SetEntry(Entries* entries, const std::string& name, Value value) {
  for (auto& [key, old] : *entries) {
    if (key.text() == name) {
      old = std::move(value);
      return;
    }
  }
  entries->emplace_back(Text(name), std::move(value));
}

bool IsListOfDicts(const Value& v) {
  return v.is_list() && std::all_of(v.items().begin(), v.items().end(),
                                    [](const Value& item) { return item.is(Type::kDict); });
}

// Entries that are None are dropped, and a reasoning text is there under each name that templates know.
Value Normalized(const Value& message) {
  Entries kept;
  for (const auto& entry : message.entries())
    if (!entry.second.is_none()) kept.push_back(entry);
  const Value plain = Value::Dict(kept);
  const Value* reasoning = nullptr;
  for (const char* name : kReasoning)
    if (!reasoning) reasoning = jinja::Find(plain, name);
  if (!reasoning) return plain;
  Entries entries{{Text("thinking"), *reasoning}};
  for (const auto& [key, value] : kept) {
    if (key.is_string() && key.text() == "thinking") {
      entries[0].second = value;
    } else {
      entries.emplace_back(key, value);
    }
  }
  for (auto& [key, value] : entries) {
    if (!key.is_string() || key.text() != kReasoning[0]) continue;
    value = *reasoning;
    return Value::Dict(std::move(entries));
  }
  entries.emplace_back(Text(kReasoning[0]), *reasoning);
  return Value::Dict(std::move(entries));
}

}  // namespace

Value ChatMessage(std::string role, std::string content) {
  return Value::Dict({{Text("role"), Text(std::move(role))}, {Text("content"), Text(std::move(content))}});
}

Status ChatTemplate::Add(std::string name, std::string_view text, std::string source) {
  NIBBLE_ASSIGN(jinja::Template compiled, jinja::Template::Compile(text, std::move(source)));
  templates_.push_back({std::move(name), std::move(compiled)});
  return {};
}

Status ChatTemplate::AddFiles(const std::string& dir) {
  const auto add = [this](std::string name, const std::string& file) -> Status {
    NIBBLE_ASSIGN(const std::string text, ReadWholeFile(file, jinja::Limits{}.source_bytes));
    return Add(std::move(name), text, file);
  };
  NIBBLE_ASSIGN(const std::vector<std::string> names, NamesIn(dir));
  if (std::find(names.begin(), names.end(), "chat_template.jinja") != names.end())
    NIBBLE_RETURN_IF_ERROR(add("default", dir + "/chat_template.jinja"));
  const std::string more = dir + "/additional_chat_templates";
  if (std::find(names.begin(), names.end(), "additional_chat_templates") == names.end()) return {};
  NIBBLE_ASSIGN(const std::vector<std::string> files, NamesIn(more));
  for (const std::string& file : files) {
    constexpr std::string_view kEnding = ".jinja";
    if (!file.ends_with(kEnding)) continue;
    NIBBLE_RETURN_IF_ERROR(add(file.substr(0, file.size() - kEnding.size()), more + "/" + file));
  }
  return {};
}

Status ChatTemplate::AddFromConfig(const std::string& dir) {
  const std::string file = dir + "/tokenizer_config.json";
  auto config = Json::ReadFile(file, {});
  if (!config.ok()) return config.status().code() == Code::kNotFound ? Status() : config.status();
  const auto found = config->root().Find("chat_template");
  if (!found || found->is_null()) return {};
  const std::string source = file + ": chat_template";
  if (!found->is_array()) {
    NIBBLE_ASSIGN(const std::string_view text, found->String());
    return Add("default", text, source);
  }
  for (size_t i = 0; i < found->size(); ++i) {
    NIBBLE_ASSIGN(const std::string_view name, (*found)[i].GetString("name"));
    NIBBLE_ASSIGN(const std::string_view text, (*found)[i].GetString("template"));
    NIBBLE_RETURN_IF_ERROR(Add(std::string(name), text, source + " " + Printable(name)));
  }
  return {};
}

Status ChatTemplate::ReadTokens(const std::string& dir) {
  for (const char* name : {"/special_tokens_map.json", "/tokenizer_config.json"}) {  // the second one wins
    auto config = Json::ReadFile(dir + name, {});
    if (!config.ok()) {
      if (config.status().code() == Code::kNotFound) continue;
      return config.status();
    }
    for (const char* token : kTokens) {
      auto found = config->root().Find(token);
      if (!found || found->is_null()) continue;
      if (found->is_object()) {
        NIBBLE_ASSIGN(found, found->Get("content"));
      }
      NIBBLE_ASSIGN(const std::string_view text, found->String());
      SetEntry(&tokens_, token, Text(std::string(text)));
    }
  }
  return {};
}

Result<ChatTemplate> ChatTemplate::Load(const std::string& dir) {
  ChatTemplate chat;
  chat.source_ = dir;
  NIBBLE_RETURN_IF_ERROR(chat.AddFiles(dir));
  if (chat.templates_.empty()) NIBBLE_RETURN_IF_ERROR(chat.AddFromConfig(dir));
  if (chat.templates_.empty()) {
    return Error(Code::kNotFound,
                 "{}: the model has no chat template (chat_template.jinja, or chat_template in "
                 "tokenizer_config.json)",
                 dir);
  }
  NIBBLE_RETURN_IF_ERROR(chat.ReadTokens(dir));
  return chat;
}

Result<ChatTemplate> ChatTemplate::LoadFile(const std::string& file, const std::string& dir) {
  ChatTemplate chat;
  chat.source_ = file;
  NIBBLE_ASSIGN(const std::string text, ReadWholeFile(file, jinja::Limits{}.source_bytes));
  NIBBLE_RETURN_IF_ERROR(chat.Add("default", text, file));
  NIBBLE_RETURN_IF_ERROR(chat.ReadTokens(dir));
  return chat;
}

Result<const jinja::Template*> ChatTemplate::Choose(bool with_tools) const {
  const Named* chosen = nullptr;
  std::string names;
  for (const Named& named : templates_) {
    if (named.name == "default" && !chosen) chosen = &named;
    if (named.name == "tool_use" && with_tools) chosen = &named;
    names += (names.empty() ? "" : ", ") + Printable(named.name);
  }
  if (!chosen)
    return Error(Code::kInvalidArgument, "{}: several chat templates ({}) and none named default", source_,
                 names);
  return &chosen->text;
}

Result<std::string> ChatTemplate::Render(const ChatInput& input) const {
  if (!IsListOfDicts(input.messages) || input.messages.items().empty())
    return Error(Code::kInvalidArgument, "messages: wanted a list of at least one dict");
  if (!input.documents.is_none() && !IsListOfDicts(input.documents))
    return Error(Code::kInvalidArgument, "documents: wanted a list of dicts");
  if (!input.tools.is_none() && !IsListOfDicts(input.tools))
    return Error(Code::kInvalidArgument, "tools: wanted a list of dicts");
  NIBBLE_ASSIGN(const jinja::Template* chosen, Choose(!input.tools.is_none()));
  Entries variables = tokens_;
  for (const auto& [name, value] : input.extra) {
    if (!name.is_string()) return Error(Code::kInvalidArgument, "a template variable's name must be a text");
    if (std::find(std::begin(kReserved), std::end(kReserved), name.text()) != std::end(kReserved))
      return Error(Code::kInvalidArgument, "template variable {}: the name is reserved", name.text());
    SetEntry(&variables, name.text(), value);
  }
  Values messages;
  for (const Value& message : input.messages.items()) messages.push_back(Normalized(message));
  SetEntry(&variables, "messages", Value::List(std::move(messages)));
  SetEntry(&variables, "tools", input.tools);
  SetEntry(&variables, "documents", input.documents);
  SetEntry(&variables, "add_generation_prompt", Value::Bool(input.add_generation_prompt));
  const auto now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  return chosen->Render(variables, input.now.value_or(now));
}

}  // namespace nibble
