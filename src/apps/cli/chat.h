// SPDX-License-Identifier: Apache-2.0
// Floor 9. --chat: a prompt becomes a user's message in the model's chat template.
#pragma once
#include <optional>
#include <string>

#include "apps/cli/common.h"
#include "text/chat_template.h"

namespace nibble::cli {

struct ChatOptions {
  bool chat = false;
  std::optional<std::string> system;
  std::string template_file, variables;
};
void AddChat(Parser parser, ChatOptions& options);

// Loads the template once and renders prompts with it.
class ChatPrompts {
 public:
  static Result<ChatPrompts> Load(const ChatOptions& options, const std::string& model);
  // The text that the model is to continue. It has its special tokens, so none are added when it is encoded.
  Result<std::string> Text(const std::string& prompt) const;

 private:
  ChatPrompts(ChatTemplate chat, ChatInput input) : chat_(std::move(chat)), input_(std::move(input)) {}
  ChatTemplate chat_;
  ChatInput input_;  // its messages are those before the prompt
};

}  // namespace nibble::cli
