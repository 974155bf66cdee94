// SPDX-License-Identifier: Apache-2.0
#include "apps/server/openai_request.h"

#include <climits>

namespace nibble::server {
namespace {

Result<std::vector<int32_t>> ParseIds(JsonRef array) {
  std::vector<int32_t> ids;
  ids.reserve(array.size());
  for (size_t i = 0; i < array.size(); ++i) {
    NIBBLE_ASSIGN(const int64_t id, array[i].Int(0, INT_MAX));
    ids.push_back(static_cast<int32_t>(id));
  }
  return ids;
}

Result<Prompt> ParsePrompt(JsonRef value) {
  if (value.is_array()) {
    if (value.size() == 0) return Error(Code::kInvalidArgument, "{}: empty, wanted token ids", value.Where());
    NIBBLE_ASSIGN(std::vector<int32_t> ids, ParseIds(value));
    return Prompt(std::move(ids));
  }
  NIBBLE_ASSIGN(const std::string_view text, value.String());
  return Prompt(std::string(text));
}

// In completions a number: so many of the best beside the chosen one.
Status ParseCompletionLogprobs(JsonRef body, const Limits& limits, GenerateFields* f) {
  NIBBLE_ASSIGN(const int64_t logprobs, body.GetIntOr("logprobs", -1, 0, limits.max_logprobs));
  f->logprobs = static_cast<int>(logprobs);
  return {};
}

// In chats a bool, and top_logprobs the number.
Status ParseChatLogprobs(JsonRef body, const Limits& limits, GenerateFields* f) {
  NIBBLE_ASSIGN(const bool logprobs, body.GetBoolOr("logprobs", false));
  NIBBLE_ASSIGN(const int64_t top, body.GetIntOr("top_logprobs", -1, 0, limits.max_logprobs));
  if (top >= 0 && !logprobs)
    return Error(Code::kInvalidArgument, "top_logprobs: wanted only with logprobs: true");
  f->logprobs = !logprobs ? -1 : static_cast<int>(top < 0 ? 0 : top);
  return {};
}

Result<std::optional<int>> ParseMaxTokens(JsonRef body, std::string_view key) {
  const auto value = body.Find(key);
  if (!value || value->is_null()) return std::optional<int>();
  NIBBLE_ASSIGN(const int64_t tokens, value->Int(0, kMaxTokenCount));
  return std::optional<int>(static_cast<int>(tokens));
}

}  // namespace

Result<std::vector<Prompt>> ParsePrompts(JsonRef body, std::string_view key, size_t most) {
  NIBBLE_ASSIGN(const JsonRef value, body.Get(key));
  std::vector<Prompt> prompts;
  const bool list = value.is_array() && value.size() > 0 && (value[0].is_array() || value[0].is_string());
  if (list && value.size() > most)
    return Error(Code::kInvalidArgument, "{}: {} prompts, at most {} are taken", value.Where(), value.size(),
                 most);
  for (size_t i = 0; i < (list ? value.size() : 1); ++i) {
    const JsonRef item = list ? value[i] : value;
    if (list && item.type() != value[0].type())
      return Error(Code::kInvalidArgument, "{}: wanted all texts or all arrays of token ids", item.Where());
    NIBBLE_ASSIGN(Prompt prompt, ParsePrompt(item));
    prompts.push_back(std::move(prompt));
  }
  return prompts;
}

Result<CompletionRequest> ParseCompletionRequest(JsonRef body, const Limits& limits) {
  CompletionRequest request;
  NIBBLE_ASSIGN(request.fields,
                ParseGenerateFields(body, limits, {"prompt", "echo", "logprobs", "max_tokens"}));
  GenerateFields& f = request.fields;
  NIBBLE_RETURN_IF_ERROR(ParseCompletionLogprobs(body, limits, &f));
  NIBBLE_ASSIGN(f.max_tokens, ParseMaxTokens(body, "max_tokens"));
  NIBBLE_ASSIGN(request.prompts,
                ParsePrompts(body, "prompt", static_cast<size_t>(limits.max_queued_requests)));
  NIBBLE_ASSIGN(request.echo, body.GetBoolOr("echo", false));
  if (request.echo && f.best_of > f.n) return Error(Code::kInvalidArgument, "echo: wanted without best_of");
  if (f.max_tokens == 0 && !request.echo && f.prompt_logprobs < 0)
    return Error(Code::kInvalidArgument,
                 "max_tokens: 0 leaves nothing to answer without echo or prompt_logprobs");
  return request;
}

Result<ChatRequest> ParseChatRequest(JsonRef body, const Limits& limits) {
  ChatRequest request;
  NIBBLE_ASSIGN(
      request.fields,
      ParseGenerateFields(
          body, limits,
          {"messages", "tools", "tool_choice", "parallel_tool_calls", "logprobs", "top_logprobs",
           "max_tokens", "max_completion_tokens", "add_generation_prompt", "continue_final_message",
           "chat_template_kwargs", "documents", "modalities", "store", "reasoning_effort", "service_tier"}));
  GenerateFields& f = request.fields;
  NIBBLE_RETURN_IF_ERROR(RefuseField(body, "store", "nothing is stored here"));
  NIBBLE_RETURN_IF_ERROR(ParseChatLogprobs(body, limits, &f));
  NIBBLE_ASSIGN(f.max_tokens, ParseMaxTokens(body, "max_completion_tokens"));
  NIBBLE_ASSIGN(const std::optional<int> older_name, ParseMaxTokens(body, "max_tokens"));
  if (!f.max_tokens) f.max_tokens = older_name;
  if (f.max_tokens == 0 && f.prompt_logprobs < 0)
    return Error(Code::kInvalidArgument, "max_tokens: 0 leaves nothing to answer");
  NIBBLE_ASSIGN(request.chat, ParseChat(body, limits));
  if (request.chat.forced_tool && f.structured.kind != Structured::Kind::kNone)
    return Error(Code::kInvalidArgument, "tool_choice: {} already says what the answer must be",
                 f.structured.field);
  return request;
}

Result<EmbeddingRequest> ParseEmbeddingRequest(JsonRef body, const Limits& limits) {
  EmbeddingRequest request;
  NIBBLE_ASSIGN(request.model, body.GetStringOr("model", ""));
  NIBBLE_ASSIGN(request.inputs, ParsePrompts(body, "input", static_cast<size_t>(limits.max_queued_requests)));
  NIBBLE_RETURN_IF_ERROR(RefuseField(body, "dimensions", "the model's own size is all there is"));
  NIBBLE_ASSIGN(const std::string_view format, body.GetStringOr("encoding_format", "float"));
  if (format != "float" && format != "base64")
    return Error(Code::kInvalidArgument, "encoding_format: wanted float or base64");
  request.base64 = format == "base64";
  NIBBLE_ASSIGN(const std::string_view pooling, body.GetStringOr("pooling", "mean"));
  if (pooling != "mean" && pooling != "last")
    return Error(Code::kInvalidArgument, "pooling: wanted mean or last");
  request.mean = pooling == "mean";
  return request;
}

}  // namespace nibble::server
