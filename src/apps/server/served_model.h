// SPDX-License-Identifier: Apache-2.0
// Floor 9. The loaded model as the routes see it: its name, its engine, and what turns requests into tokens.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

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

  ServingEngine& engine() const { return *engine_; }
  const std::string& name() const { return name_; }
  const TokenWords& words() const { return *words_; }
  int64_t context() const { return context_; }  // tokens of one request, prompt and answer
  int64_t created() const { return created_; }
  bool has_chat() const { return chat_.has_value(); }
  ToolSyntax tool_syntax() const { return tool_syntax_; }

  // kNotFound for another model's name; "" is this one.
  Status CheckName(const std::string& name) const;
  // kInvalidArgument for a prompt that cannot fit, before it is cut into tokens where its length shows it.
  Result<std::vector<int32_t>> Encode(const Prompt& prompt, SpecialTokens special) const;
  Result<std::string> RenderChat(const ChatConversation& chat) const;
  Result<std::vector<int32_t>> EncodeChat(const ChatConversation& chat) const;
  Result<std::shared_ptr<Constraint>> MakeConstraint(const Structured& structured) const;
  Result<std::shared_ptr<Constraint>> MakeToolConstraint(const std::vector<Tool>& tools) const;
  // What the request asks for behind one prompt. REQUIRES: the prompt is shorter than context().
  ServingRequest ToRequest(const GenerateFields& fields, std::vector<int32_t> prompt) const;

 private:
  ServedModel() = default;

  ServingEngine* engine_ = nullptr;
  std::string name_;
  std::optional<ChatTemplate> chat_;
  ToolSyntax tool_syntax_ = ToolSyntax::kNone;
  std::optional<Result<std::shared_ptr<const TokenTrie>>> trie_;
  std::optional<TokenWords> words_;
  size_t longest_token_ = 1;  // bytes
  int64_t context_ = 0, created_ = 0;
};

}  // namespace nibble::server
