// SPDX-License-Identifier: Apache-2.0
#include "apps/server/served_model.h"

#include <algorithm>
#include <ctime>

#include "base/file.h"
#include "base/json.h"
#include "base/printable.h"

namespace nibble::server {
namespace {

constexpr int kDefaultCompletionTokens = 16;  // OpenAI's

std::string LastPart(std::string dir) {
  while (dir.size() > 1 && dir.ends_with('/')) dir.pop_back();
  return dir.substr(dir.rfind('/') + 1);
}

Result<std::optional<ChatTemplate>> LoadTemplate(const std::string& dir, const std::string& file) {
  auto chat = file.empty() ? ChatTemplate::Load(dir) : ChatTemplate::LoadFile(file, dir);
  if (chat.ok()) return std::optional<ChatTemplate>(*std::move(chat));
  if (file.empty() && chat.status().code() == Code::kNotFound) return std::optional<ChatTemplate>();
  return chat.status();
}

// For clients that want to know the names of the special tokens. One that is there is JSON.
Result<std::string> ReadTokenizerConfig(const std::string& dir) {
  const std::string path = dir + "/tokenizer_config.json";
  auto text = ReadWholeFile(path, JsonLimits{}.max_bytes);
  if (!text.ok()) return text.status().code() == Code::kNotFound ? Result<std::string>(std::string()) : text;
  NIBBLE_ASSIGN(const Json json, Json::Parse(*text, {}, path));
  if (!json.root().is_object()) return Error(Code::kCorrupt, "{}: wanted an object", path);
  return text;
}

}  // namespace

ServedModel::ServedModel(ServingEngine* engine, std::string name, std::shared_ptr<const Text> text)
    : engine_(engine),
      name_(std::move(name)),
      text_(std::move(text)),
      context_(std::min(engine->config().max_position, engine->options().kv_tokens)),
      created_(std::time(nullptr)) {}

Result<std::unique_ptr<ServedModel>> ServedModel::Make(ServingEngine* engine, const std::string& dir,
                                                       std::string name, const std::string& template_file) {
  auto text = std::make_shared<Text>();
  NIBBLE_ASSIGN(text->chat, LoadTemplate(dir, template_file));
  if (text->chat) text->tool_syntax = DetectToolSyntax(*text->chat);
  const Tokenizer& tokenizer = engine->tokenizer();
  text->trie = TokenTrie::Make(tokenizer, engine->config().vocab, engine->config().eos_tokens);
  text->words.emplace(tokenizer);
  NIBBLE_ASSIGN(text->tokenizer_config, ReadTokenizerConfig(dir));
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id)
    text->longest_token = std::max(text->longest_token, text->words->Bytes(id).size());
  return std::unique_ptr<ServedModel>(
      new ServedModel(engine, name.empty() ? LastPart(dir) : std::move(name), std::move(text)));
}

std::unique_ptr<ServedModel> ServedModel::WithEngine(ServingEngine* engine, std::string name) const {
  return std::unique_ptr<ServedModel>(new ServedModel(engine, std::move(name), text_));
}

Result<std::vector<int32_t>> ServedModel::Encode(const Prompt& prompt, SpecialTokens special) const {
  std::vector<int32_t> ids;
  if (const auto* given = std::get_if<std::vector<int32_t>>(&prompt)) {
    ids = *given;
  } else {
    const std::string& text = std::get<std::string>(prompt);
    if (text.size() / text_->longest_token >= static_cast<size_t>(context_))
      return Error(Code::kInvalidArgument, "the prompt of {} bytes has more tokens than the context of {}",
                   text.size(), context_);
    NIBBLE_ASSIGN(ids, engine_->tokenizer().Encode(text, special));
  }
  if (ids.empty()) return Error(Code::kInvalidArgument, "the prompt has no tokens");
  if (static_cast<int64_t>(ids.size()) > context_)
    return Error(Code::kInvalidArgument, "the prompt has {} tokens, the context is {}", ids.size(), context_);
  return ids;
}

Result<std::string> ServedModel::RenderChat(const ChatConversation& chat) const {
  if (!text_->chat)
    return Error(Code::kUnsupported,
                 "messages: the model has no chat template; the server's --chat-template-file gives one");
  NIBBLE_ASSIGN(std::string text, text_->chat->Render(chat.input));
  if (!chat.continue_final) return text;
  // The last message without what the template writes behind it.
  std::string_view last = chat.final_text;
  const size_t end = last.find_last_not_of(" \t\r\n");
  last = last.substr(0, end == last.npos ? 0 : end + 1);
  const size_t at = text.rfind(last);
  if (at == text.npos || last.empty())
    return Error(Code::kInvalidArgument,
                 "continue_final_message: the template does not show the last message");
  text.resize(at + last.size());
  return text;
}

Result<std::vector<int32_t>> ServedModel::EncodeChat(const ChatConversation& chat) const {
  NIBBLE_ASSIGN(std::string text, RenderChat(chat));
  return Encode(std::move(text), SpecialTokens::kOmit);  // the template writes them
}

Result<std::shared_ptr<Constraint>> ServedModel::MakeConstraint(const Structured& structured) const {
  if (structured.kind == Structured::Kind::kNone) return std::shared_ptr<Constraint>();
  NIBBLE_ASSIGN(const auto trie, *text_->trie);
  return server::MakeConstraint(structured, trie);
}

Result<std::shared_ptr<Constraint>> ServedModel::MakeToolConstraint(const std::vector<Tool>& tools) const {
  NIBBLE_ASSIGN(const auto trie, *text_->trie);
  return ToolConstraint(text_->tool_syntax, tools, trie);
}

ServingRequest ServedModel::ToRequest(const GenerateFields& fields, std::vector<int32_t> prompt) const {
  ServingRequest request;
  request.max_tokens = fields.max_tokens.value_or(kDefaultCompletionTokens);
  request.prompt = std::move(prompt);
  request.sampling = fields.sampling;
  request.ignore_eos = fields.ignore_eos;
  request.stop = fields.stop;
  request.stop_tokens = fields.stop_tokens;
  request.priority = fields.priority;
  request.cache_salt = fields.cache_salt;
  request.logprobs = fields.best_of > fields.n ? std::max(fields.logprobs, 0) : fields.logprobs;
  request.prompt_logprobs = fields.prompt_logprobs;
  return request;
}

Status ServedModels::Add(std::unique_ptr<ServedModel> model, std::span<const std::string> aliases) {
  std::vector<std::string> names{model->name()};
  names.insert(names.end(), aliases.begin(), aliases.end());
  for (const std::string& name : names)
    if (!by_name_.emplace(name, model.get()).second)
      return Error(Code::kInvalidArgument, "--served-model-name: two models would be called \"{}\"",
                   Printable(name));
  models_.push_back(std::move(model));
  return {};
}

Result<const ServedModel*> ServedModels::Find(const std::string& name) const {
  constexpr size_t kShown = 100;
  if (name.empty()) return models_[0].get();
  if (const auto found = by_name_.find(name); found != by_name_.end()) return found->second;
  std::string known;
  for (const auto& model : models_)
    known += fmt::format("{}\"{}\"", known.empty() ? "" : ", ", model->name());
  return Error(Code::kNotFound, "model: \"{}\" is not served here, {} {}", Printable(name.substr(0, kShown)),
               known, models_.size() == 1 ? "is" : "are");
}

}  // namespace nibble::server
