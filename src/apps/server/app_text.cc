// SPDX-License-Identifier: Apache-2.0
// Text to tokens and back, for clients that count.
#include "apps/server/app.h"
#include "apps/server/log.h"

namespace nibble::server {
namespace {

Result<std::vector<int32_t>> ReadTokens(JsonRef body) {
  NIBBLE_ASSIGN(const JsonRef tokens, body.Get("tokens"));
  if (!tokens.is_array())
    return Error(Code::kInvalidArgument, "{}: wanted an array of token ids", tokens.Where());
  std::vector<int32_t> ids;
  for (size_t i = 0; i < tokens.size(); ++i) {
    NIBBLE_ASSIGN(const int64_t id, tokens[i].Int(0, kMaxTokenCount));
    ids.push_back(static_cast<int32_t>(id));
  }
  return ids;
}

// vLLM says `prompt`, llama.cpp `content`; a chat has messages.
Result<std::vector<int32_t>> TokensOf(JsonRef body, const ServedModel& model, const Limits& limits) {
  if (body.Find("messages")) {
    NIBBLE_ASSIGN(const ChatConversation chat, ParseChat(body, limits));
    NIBBLE_ASSIGN(const std::string text, model.RenderChat(chat));
    return model.engine().tokenizer().Encode(text, SpecialTokens::kOmit);
  }
  const char* key = body.Find("content") ? "content" : "prompt";
  NIBBLE_ASSIGN(const std::string_view text, body.GetString(key));
  const bool add_default = key[0] == 'p';
  NIBBLE_ASSIGN(const bool add,
                body.GetBoolOr(add_default ? "add_special_tokens" : "add_special", add_default));
  return model.engine().tokenizer().Encode(text, add ? SpecialTokens::kAdd : SpecialTokens::kOmit);
}

Result<std::string> TokenizeBody(const HttpRequest& request, const ServedModels& models,
                                 const Limits& limits) {
  NIBBLE_ASSIGN(const Json json, ParseBody(request.body, limits));
  const JsonRef body = json.root();
  NIBBLE_ASSIGN(const std::string_view name, body.GetStringOr("model", ""));
  NIBBLE_ASSIGN(const ServedModel* model, models.Find(std::string(name)));
  NIBBLE_ASSIGN(const std::vector<int32_t> ids, TokensOf(body, *model, limits));
  NIBBLE_ASSIGN(const bool words, body.GetBoolOr("return_token_strs", false));
  std::string strings;
  for (size_t i = 0; words && i < ids.size(); ++i)
    strings += (i > 0 ? "," : "") + model->words().Word(ids[i]);
  return fmt::format(R"({{"count":{},"max_model_len":{},"tokens":[{}],"token_strs":{}}})", ids.size(),
                     model->context(), fmt::join(ids, ","), words ? "[" + strings + "]" : "null");
}

Result<std::string> DetokenizeBody(const HttpRequest& request, const ServedModels& models,
                                   const Limits& limits) {
  NIBBLE_ASSIGN(const Json json, ParseBody(request.body, limits));
  NIBBLE_ASSIGN(const std::string_view name, json.root().GetStringOr("model", ""));
  NIBBLE_ASSIGN(const ServedModel* model, models.Find(std::string(name)));
  NIBBLE_ASSIGN(const std::vector<int32_t> ids, ReadTokens(json.root()));
  for (const int32_t id : ids)
    if (id >= model->engine().tokenizer().vocab_size())
      return Error(Code::kInvalidArgument, "tokens: {} is not in the vocabulary of {}", id,
                   model->engine().tokenizer().vocab_size());
  const std::string text = Quoted(model->engine().tokenizer().Decode(ids, /*skip_special=*/false));
  return fmt::format(R"({{"prompt":{},"content":{}}})", text, text);
}

Result<std::string> TemplateBody(const HttpRequest& request, const ServedModels& models,
                                 const Limits& limits) {
  NIBBLE_ASSIGN(const Json json, ParseBody(request.body, limits));
  NIBBLE_ASSIGN(const std::string_view name, json.root().GetStringOr("model", ""));
  NIBBLE_ASSIGN(const ServedModel* model, models.Find(std::string(name)));
  NIBBLE_ASSIGN(const ChatConversation chat, ParseChat(json.root(), limits));
  NIBBLE_ASSIGN(const std::string text, model->RenderChat(chat));
  return fmt::format(R"({{"prompt":{}}})", Quoted(text));
}

void SendBody(Result<std::string> body, const std::shared_ptr<Reply>& reply) {
  if (body.ok()) reply->Send({.body = *std::move(body)});
}

}  // namespace

void App::Tokenize(const HttpRequest& request, const ReplyPtr& reply) {
  auto body = TokenizeBody(request, *models_, options_.limits);
  Answer(body.status(), reply);
  SendBody(std::move(body), reply);
}

void App::Detokenize(const HttpRequest& request, const ReplyPtr& reply) {
  auto body = DetokenizeBody(request, *models_, options_.limits);
  Answer(body.status(), reply);
  SendBody(std::move(body), reply);
}

void App::ApplyTemplate(const HttpRequest& request, const ReplyPtr& reply) {
  auto body = TemplateBody(request, *models_, options_.limits);
  Answer(body.status(), reply);
  SendBody(std::move(body), reply);
}

// Of the first model: the request names none.
void App::TokenizerInfo(const HttpRequest&, const ReplyPtr& reply) {
  const std::string& config = models_->first().tokenizer_config();
  if (config.empty()) return reply->Send(ErrorResponse(404, "the model has no tokenizer_config.json"));
  reply->Send({.body = config});
}

}  // namespace nibble::server
