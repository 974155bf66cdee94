// SPDX-License-Identifier: Apache-2.0
// OpenAI's routes: a body becomes a plan, the plan a call.
#include <ctime>
#include <random>

#include "apps/server/app.h"
#include "apps/server/embedding_format.h"
#include "apps/server/log.h"
#include "apps/server/openai_format.h"

namespace nibble::server {
namespace {

uint64_t RandomSeed() {
  thread_local std::mt19937_64 random{std::random_device{}()};
  return random();
}

AnswerHead MakeHead(const char* prefix, const GenerateFields& fields, size_t prompts,
                    const ServedModel& model) {
  return {.id = NewAnswerId(prefix),
          .model = model.name(),
          .created = std::time(nullptr),
          .choices = fields.n * static_cast<int>(prompts),
          .include_usage = fields.include_usage,
          .logprobs = fields.logprobs >= 0,
          .words = &model.words()};
}

}  // namespace

Status App::AddPrompt(const ServedModel& model, const GenerateFields& fields, std::vector<int32_t> prompt,
                      std::shared_ptr<Constraint> constraint, bool fill, CallPlan* plan) {
  const int64_t room = model.context() - static_cast<int64_t>(prompt.size());
  ServingRequest request = model.ToRequest(fields, std::move(prompt));
  if (!fields.max_tokens && (fill || room < request.max_tokens)) {
    if (room < 1)
      return nibble::Error(Code::kInvalidArgument, "the prompt fills the context of {} tokens",
                           model.context());
    request.max_tokens = static_cast<int>(room);
  }
  request.constraint = std::move(constraint);
  const uint64_t seed = fields.seed.value_or(fields.sampling.temperature > 0 ? RandomSeed() : 0);
  const size_t index = plan->requests.empty() ? 0 : plan->prompts.back() + 1;
  for (int i = 0; i < fields.best_of; ++i) {
    request.sampling.seed = seed + static_cast<uint64_t>(i);
    plan->requests.push_back(request);
    plan->prompts.push_back(index);
  }
  return {};
}

void App::StartCall(const ServedModel& model, const GenerateFields& fields, CallPlan plan,
                    const ReplyPtr& reply) {
  plan.choices_per_prompt = fields.best_of;
  plan.kept_per_prompt = fields.n;
  plan.stream = fields.stream;
  plan.include_stop = fields.include_stop;
  plan.stops = fields.stop;
  if (!fields.ignored.empty())
    reply->Log("ignored", Quoted(fmt::format("{}", fmt::join(fields.ignored, " "))));
  Call::Start({&model.engine(), &model.metrics(), &queue_}, std::move(plan), reply);
}

Status App::StartCompletions(const HttpRequest& http, const ReplyPtr& reply) {
  NIBBLE_ASSIGN(const Json json, ParseBody(http.body, options_.limits));
  NIBBLE_ASSIGN(CompletionRequest request, ParseCompletionRequest(json.root(), options_.limits));
  GenerateFields& fields = request.fields;
  NIBBLE_ASSIGN(const ServedModel* model, models_->Find(fields.model));
  const bool asked = fields.prompt_logprobs >= 0;
  if (request.echo && fields.logprobs >= 0)
    fields.prompt_logprobs = std::max(fields.prompt_logprobs, fields.logprobs);
  NIBBLE_ASSIGN(const auto constraint, model->MakeConstraint(fields.structured));
  CallPlan plan;
  std::vector<EchoedPrompt> echo;
  for (const Prompt& prompt : request.prompts) {
    NIBBLE_ASSIGN(std::vector<int32_t> ids, model->Encode(prompt, SpecialTokens::kAdd));
    if (request.echo) {
      const auto* text = std::get_if<std::string>(&prompt);
      echo.push_back(
          {text ? *text : model->engine().tokenizer().Decode(ids, /*skip_special=*/false), ids[0]});
    }
    NIBBLE_RETURN_IF_ERROR(AddPrompt(*model, fields, std::move(ids), constraint, /*fill=*/false, &plan));
  }
  plan.format =
      MakeCompletionFormat(MakeHead("cmpl-", fields, request.prompts.size(), *model), std::move(echo), asked);
  StartCall(*model, fields, std::move(plan), reply);
  return {};
}

Status App::StartChat(const HttpRequest& http, const ReplyPtr& reply) {
  NIBBLE_ASSIGN(const Json json, ParseBody(http.body, options_.limits));
  NIBBLE_ASSIGN(const ChatRequest request, ParseChatRequest(json.root(), options_.limits));
  const GenerateFields& fields = request.fields;
  NIBBLE_ASSIGN(const ServedModel* model, models_->Find(fields.model));
  CallPlan plan;
  int64_t prompt_tokens = 0;
  NIBBLE_RETURN_IF_ERROR(PlanChat(*model, request, &plan, &prompt_tokens));
  plan.format = MakeChatFormat(MakeHead("chatcmpl-", fields, 1, *model), SyntaxFor(*model, request));
  StartCall(*model, fields, std::move(plan), reply);
  return {};
}

Status App::StartEmbeddings(const HttpRequest& http, const ReplyPtr& reply) {
  NIBBLE_ASSIGN(const Json json, ParseBody(http.body, options_.limits));
  NIBBLE_ASSIGN(const EmbeddingRequest request, ParseEmbeddingRequest(json.root(), options_.limits));
  NIBBLE_ASSIGN(const ServedModel* model, models_->Find(request.model));
  CallPlan plan;
  for (const Prompt& prompt : request.inputs) {
    ServingRequest one;
    NIBBLE_ASSIGN(one.prompt, model->Encode(prompt, SpecialTokens::kAdd));
    one.max_tokens = 0;
    one.pooling = request.mean ? Pooling::kMean : Pooling::kLast;
    plan.prompts.push_back(plan.requests.size());
    plan.requests.push_back(std::move(one));
  }
  plan.format = MakeEmbeddingFormat(model->name(), request.base64);
  StartCall(*model, {}, std::move(plan), reply);
  return {};
}

void App::Completions(const HttpRequest& request, const ReplyPtr& reply) {
  Answer(StartCompletions(request, reply), reply);
}

void App::Chat(const HttpRequest& request, const ReplyPtr& reply) {
  Answer(StartChat(request, reply), reply);
}

void App::Embeddings(const HttpRequest& request, const ReplyPtr& reply) {
  Answer(StartEmbeddings(request, reply), reply);
}

}  // namespace nibble::server
