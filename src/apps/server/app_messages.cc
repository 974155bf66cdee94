// SPDX-License-Identifier: Apache-2.0
// Chats in other words: Anthropic's messages and OpenAI's responses.
#include <ctime>

#include "apps/server/anthropic.h"
#include "apps/server/app.h"
#include "apps/server/responses.h"

namespace nibble::server {

// The part of a chat that no dialect changes. Also says how long the prompt is.
Status App::PlanChat(const ServedModel& model, const ChatRequest& request, CallPlan* plan,
                     int64_t* prompt_tokens) {
  const GenerateFields& fields = request.fields;
  NIBBLE_ASSIGN(std::vector<int32_t> ids, model.EncodeChat(request.chat));
  NIBBLE_ASSIGN(auto constraint, model.MakeConstraint(fields.structured));
  if (request.chat.forced_tool) {
    NIBBLE_ASSIGN(constraint, model.MakeToolConstraint(request.chat.tools));
  }
  *prompt_tokens = static_cast<int64_t>(ids.size());
  return AddPrompt(model, fields, std::move(ids), constraint, /*fill=*/true, plan);
}

ToolSyntax App::SyntaxFor(const ServedModel& model, const ChatRequest& request) {
  return request.chat.tools.empty() ? ToolSyntax::kNone : model.tool_syntax();
}

Status App::StartMessages(const HttpRequest& http, const ReplyPtr& reply) {
  NIBBLE_ASSIGN(const Json json, ParseBody(http.body, options_.limits));
  NIBBLE_ASSIGN(const ChatRequest request,
                ParseMessagesRequest(json.root(), options_.limits, /*count_only=*/false));
  NIBBLE_ASSIGN(const ServedModel* model, models_->Find(request.fields.model));
  CallPlan plan{.dialect = Dialect::kAnthropic};
  MessageHead head{.id = NewAnswerId("msg_"),
                   .model = model->name(),
                   .stops = request.fields.stop,
                   .tools = SyntaxFor(*model, request)};
  NIBBLE_RETURN_IF_ERROR(PlanChat(*model, request, &plan, &head.prompt_tokens));
  plan.format = MakeMessageFormat(std::move(head));
  StartCall(*model, request.fields, std::move(plan), reply);
  return {};
}

Status App::AnswerTokenCount(const HttpRequest& http, const ReplyPtr& reply) {
  NIBBLE_ASSIGN(const Json json, ParseBody(http.body, options_.limits));
  NIBBLE_ASSIGN(const ChatRequest request,
                ParseMessagesRequest(json.root(), options_.limits, /*count_only=*/true));
  NIBBLE_ASSIGN(const ServedModel* model, models_->Find(request.fields.model));
  NIBBLE_ASSIGN(const std::string text, model->RenderChat(request.chat));
  NIBBLE_ASSIGN(const auto ids, model->engine().tokenizer().Encode(text, SpecialTokens::kOmit));
  reply->Send({.body = fmt::format(R"({{"input_tokens":{}}})", ids.size())});
  return {};
}

Status App::StartResponses(const HttpRequest& http, const ReplyPtr& reply) {
  NIBBLE_ASSIGN(const Json json, ParseBody(http.body, options_.limits));
  NIBBLE_ASSIGN(const ChatRequest request, ParseResponsesRequest(json.root(), options_.limits));
  NIBBLE_ASSIGN(const ServedModel* model, models_->Find(request.fields.model));
  CallPlan plan;
  int64_t prompt_tokens = 0;
  NIBBLE_RETURN_IF_ERROR(PlanChat(*model, request, &plan, &prompt_tokens));
  plan.format = MakeResponseFormat({.id = NewAnswerId("resp_"),
                                    .model = model->name(),
                                    .created = std::time(nullptr),
                                    .max_tokens = request.fields.max_tokens,
                                    .temperature = request.fields.sampling.temperature,
                                    .top_p = request.fields.sampling.top_p,
                                    .tools = SyntaxFor(*model, request)});
  StartCall(*model, request.fields, std::move(plan), reply);
  return {};
}

void App::Messages(const HttpRequest& request, const ReplyPtr& reply) {
  Answer(StartMessages(request, reply), reply, Dialect::kAnthropic);
}

void App::CountTokens(const HttpRequest& request, const ReplyPtr& reply) {
  Answer(AnswerTokenCount(request, reply), reply, Dialect::kAnthropic);
}

void App::Responses(const HttpRequest& request, const ReplyPtr& reply) {
  Answer(StartResponses(request, reply), reply);
}

}  // namespace nibble::server
