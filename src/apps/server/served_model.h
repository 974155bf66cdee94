// SPDX-License-Identifier: Apache-2.0
// Floor 9. A loaded model under one recipe as the routes see it: its name, its engine, and what turns
// requests into tokens; and the list of all that are served.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "apps/server/metrics.h"
#include "apps/server/openai_request.h"
#include "apps/server/token_words.h"
#include "apps/server/tool_calls.h"
#include "engine/serving.h"
#include "text/chat_template.h"
#include "text/token_trie.h"

namespace nibble::server {

class ServedModel {
 public:
  // `name`: what clients call the model; "": the last part of the folder. `template_file`: "" takes the
  // model's own template, where it has one. The engine outlives this.
  static Result<std::unique_ptr<ServedModel>> Make(ServingEngine* engine, const std::string& dir,
                                                   std::string name, const std::string& template_file);
  // The same model under the recipe of another engine, with the same template and tables of tokens.
  std::unique_ptr<ServedModel> WithEngine(ServingEngine* engine, std::string name) const;

  ServingEngine& engine() const { return *engine_; }
  const std::string& name() const { return name_; }
  const TokenWords& words() const { return *text_->words; }
  int64_t context() const { return context_; }  // tokens of one request, prompt and answer
  int64_t created() const { return created_; }
  bool has_chat() const { return text_->chat.has_value(); }
  ToolSyntax tool_syntax() const { return text_->tool_syntax; }
  // The folder's tokenizer_config.json; "": it has none.
  const std::string& tokenizer_config() const { return text_->tokenizer_config; }
  Metrics& metrics() const { return *metrics_; }  // of its requests

  // kInvalidArgument for a prompt that cannot fit, before it is cut into tokens where its length shows it.
  Result<std::vector<int32_t>> Encode(const Prompt& prompt, SpecialTokens special) const;
  Result<std::string> RenderChat(const ChatConversation& chat) const;
  Result<std::vector<int32_t>> EncodeChat(const ChatConversation& chat) const;
  Result<std::shared_ptr<Constraint>> MakeConstraint(const Structured& structured) const;
  Result<std::shared_ptr<Constraint>> MakeToolConstraint(const std::vector<Tool>& tools) const;
  // What the request asks for behind one prompt. REQUIRES: the prompt is shorter than context().
  ServingRequest ToRequest(const GenerateFields& fields, std::vector<int32_t> prompt) const;

 private:
  // Of the model, whatever the recipe.
  struct Text {
    std::optional<ChatTemplate> chat;
    ToolSyntax tool_syntax = ToolSyntax::kNone;
    std::optional<Result<std::shared_ptr<const TokenTrie>>> trie;
    std::optional<TokenWords> words;
    size_t longest_token = 1;  // bytes
    std::string tokenizer_config;
  };
  ServedModel(ServingEngine* engine, std::string name, std::shared_ptr<const Text> text);

  ServingEngine* const engine_;
  const std::string name_;
  const std::shared_ptr<const Text> text_;
  const int64_t context_, created_;
  const std::unique_ptr<Metrics> metrics_ = std::make_unique<Metrics>();
};

// All that a server serves, the one that answers requests without a model's name first.
class ServedModels {
 public:
  // kInvalidArgument for a name that is taken. `aliases`: further names of the model.
  Status Add(std::unique_ptr<ServedModel> model, std::span<const std::string> aliases = {});
  // kNotFound for a name that nothing has; "" is the first. REQUIRES one was added.
  Result<const ServedModel*> Find(const std::string& name) const;
  std::span<const std::unique_ptr<ServedModel>> all() const { return models_; }
  const ServedModel& first() const { return *models_[0]; }

 private:
  std::vector<std::unique_ptr<ServedModel>> models_;
  std::map<std::string, const ServedModel*> by_name_;
};

}  // namespace nibble::server
