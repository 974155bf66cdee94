// SPDX-License-Identifier: Apache-2.0
// Floor 5. A model's chat template: messages to the text of a prompt, as apply_chat_template of Hugging Face
// transformers renders them.
#pragma once
#include <ctime>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "text/jinja/template.h"

namespace nibble {

// What a template is given. Lists of dicts, as JSON has them; tools and documents may be None.
struct ChatInput {
  jinja::Value messages;
  jinja::Value tools = jinja::Value::None();
  jinja::Value documents = jinja::Value::None();
  bool add_generation_prompt = false;
  // Further variables, such as enable_thinking; they take the place of special tokens of the same name. Names
  // that the renderer itself sets or takes (messages, tools, tokenize, ...) are refused.
  jinja::Entries extra;
  std::optional<std::time_t> now;  // for strftime_now; the clock's without it
};

class ChatTemplate {
 public:
  // From a model folder: chat_template.jinja and additional_chat_templates/NAME.jinja, else chat_template in
  // tokenizer_config.json, which may be a list of named templates. Special tokens come from
  // tokenizer_config.json and special_tokens_map.json. kNotFound when the model has no template.
  static Result<ChatTemplate> Load(const std::string& dir);
  // The template of a file, with the special tokens of a model folder.
  static Result<ChatTemplate> LoadFile(const std::string& file, const std::string& dir);

  // The template "tool_use" where there is one and tools are given, else "default".
  Result<std::string> Render(const ChatInput& input) const;

 private:
  struct Named {
    std::string name;
    jinja::Template text;
  };
  ChatTemplate() = default;
  Status Add(std::string name, std::string_view text, std::string source);
  Status AddFiles(const std::string& dir);
  Status AddFromConfig(const std::string& dir);
  Status ReadTokens(const std::string& dir);
  Result<const jinja::Template*> Choose(bool with_tools) const;

  std::string source_;  // for messages
  std::vector<Named> templates_;
  jinja::Entries tokens_;
};

// A message of one role and text.
jinja::Value ChatMessage(std::string role, std::string content);

}  // namespace nibble
