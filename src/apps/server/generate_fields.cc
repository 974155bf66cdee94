// SPDX-License-Identifier: Apache-2.0
#include "apps/server/generate_fields.h"

#include <algorithm>
#include <climits>

#include "apps/server/api_error.h"
#include "base/printable.h"

namespace nibble::server {
namespace {

constexpr size_t kMaxSaltBytes = 256;
constexpr double kMaxTemperature = 100, kMaxPenalty = 2, kMaxRepetition = 100, kMaxBias = 100;
constexpr int kMaxPriority = 1'000'000;

// What a route of text reads here, and what says nothing about the text.
constexpr std::string_view kCommonFields[] = {"model",
                                              "temperature",
                                              "top_p",
                                              "top_k",
                                              "min_p",
                                              "repetition_penalty",
                                              "frequency_penalty",
                                              "presence_penalty",
                                              "logit_bias",
                                              "seed",
                                              "n",
                                              "best_of",
                                              "stream",
                                              "stream_options",
                                              "ignore_eos",
                                              "stop",
                                              "stop_token_ids",
                                              "include_stop_str_in_output",
                                              "prompt_logprobs",
                                              "priority",
                                              "cache_salt",
                                              "response_format",
                                              "structured_outputs",
                                              "guided_json",
                                              "guided_regex",
                                              "guided_grammar",
                                              "guided_choice",
                                              "grammar",
                                              "json_schema",
                                              "user",
                                              "metadata"};

// Clients send these to choose what is not done here; silence would be a wrong answer.
struct Refused {
  std::string_view key, reason;
};
constexpr Refused kRefused[] = {
    {"suffix", "text is only continued here, not filled in"},
    {"audio", "answers are text"},
    {"prediction", "predicted outputs are not known here"},
    {"functions", "use tools"},
    {"function_call", "use tool_choice"},
    {"web_search_options", "there is no search here"},
    {"use_beam_search", "there is no beam search here"},
    {"length_penalty", "it belongs to beam search, which is not known here"},
    {"min_tokens", "a least length is not known here"},
    {"bad_words", "use logit_bias"},
    {"allowed_token_ids", "use logit_bias or a grammar"},
    {"logits_processors", "code from outside is not run"},
    {"chat_template", "the template is the server's own"},
    {"guided_decoding_backend", "there is one way of doing it"},
    {"truncate_prompt_tokens", "a prompt is taken whole or refused"},
};

// A number in [min, max].
Result<float> Number(JsonRef body, std::string_view key, double fallback, double min, double max) {
  NIBBLE_ASSIGN(const double value, body.GetNumberOr(key, fallback));
  if (!(value >= min && value <= max))
    return Error(Code::kInvalidArgument, "{}: wanted {} to {}, found {}", key, min, max, value);
  return static_cast<float>(value);
}

Status ParseSampling(JsonRef body, SamplingParams* s) {
  NIBBLE_ASSIGN(s->temperature, Number(body, "temperature", 1, 0, kMaxTemperature));
  NIBBLE_ASSIGN(s->top_p, Number(body, "top_p", 1, 0, 1));
  if (s->top_p == 0) return Error(Code::kInvalidArgument, "top_p: wanted more than 0, found 0");
  NIBBLE_ASSIGN(s->min_p, Number(body, "min_p", 0, 0, 1));
  NIBBLE_ASSIGN(const int64_t top_k, body.GetIntOr("top_k", 0, -1, INT_MAX));
  s->top_k = static_cast<int>(std::max<int64_t>(top_k, 0));  // -1 is how vLLM says "all"
  NIBBLE_ASSIGN(s->repetition_penalty, Number(body, "repetition_penalty", 1, 0, kMaxRepetition));
  if (s->repetition_penalty == 0)
    return Error(Code::kInvalidArgument, "repetition_penalty: wanted more than 0, found 0");
  NIBBLE_ASSIGN(s->frequency_penalty, Number(body, "frequency_penalty", 0, -kMaxPenalty, kMaxPenalty));
  NIBBLE_ASSIGN(s->presence_penalty, Number(body, "presence_penalty", 0, -kMaxPenalty, kMaxPenalty));
  return {};
}

// "17" -> 17; -1 for anything else.
int32_t TokenId(std::string_view key) {
  constexpr size_t kMostDigits = 9;
  if (key.empty() || key.size() > kMostDigits) return -1;
  int32_t id = 0;
  for (const char c : key) {
    if (c < '0' || c > '9') return -1;
    id = id * 10 + (c - '0');
  }
  return id;
}

Status ParseBias(JsonRef body, const Limits& limits, SamplingParams* s) {
  const auto bias = body.Find("logit_bias");
  if (!bias || bias->is_null()) return {};
  if (!bias->is_object())
    return Error(Code::kInvalidArgument, "{}: wanted an object of token ids and numbers", bias->Where());
  if (bias->size() > static_cast<size_t>(limits.max_logit_biases))
    return Error(Code::kInvalidArgument, "{}: {} tokens, at most {} are taken", bias->Where(), bias->size(),
                 limits.max_logit_biases);
  for (size_t i = 0; i < bias->size(); ++i) {
    const int32_t id = TokenId(bias->KeyAt(i));
    if (id < 0)
      return Error(Code::kInvalidArgument, "{}: wanted token ids as keys, found \"{}\"", bias->Where(),
                   Printable(bias->KeyAt(i).substr(0, 64)));
    NIBBLE_ASSIGN(const double value, (*bias)[i].Number());
    if (!(value >= -kMaxBias && value <= kMaxBias))
      return Error(Code::kInvalidArgument, "{}: wanted -100 to 100, found {}", (*bias)[i].Where(), value);
    s->logit_bias.emplace_back(id, static_cast<float>(value));
  }
  return {};
}

Status ParseSeed(JsonRef body, std::optional<uint64_t>* seed) {
  const auto value = body.Find("seed");
  if (!value || value->is_null()) return {};
  if (value->type() == JsonType::kUint) {
    NIBBLE_ASSIGN(*seed, value->Uint());
    return {};
  }
  // Negative ones are seeds as good as others, and clients send them; -1 included.
  NIBBLE_ASSIGN(const int64_t number, value->Int(INT64_MIN, INT64_MAX));
  *seed = static_cast<uint64_t>(number);
  return {};
}

Status ParseStream(JsonRef body, GenerateFields* f) {
  NIBBLE_ASSIGN(f->stream, body.GetBoolOr("stream", false));
  const auto options = body.Find("stream_options");
  if (!options || options->is_null()) return {};
  if (!f->stream) return Error(Code::kInvalidArgument, "stream_options: wanted only with stream: true");
  if (!options->is_object()) return Error(Code::kInvalidArgument, "{}: wanted an object", options->Where());
  NIBBLE_ASSIGN(f->include_usage, options->GetBoolOr("include_usage", false));
  return {};
}

Status ParseStopTokens(JsonRef body, const Limits& limits, std::vector<int32_t>* tokens) {
  const auto ids = body.Find("stop_token_ids");
  if (!ids || ids->is_null()) return {};
  if (!ids->is_array() || ids->size() > static_cast<size_t>(limits.max_logit_biases))
    return Error(Code::kInvalidArgument, "{}: wanted an array of at most {} token ids", ids->Where(),
                 limits.max_logit_biases);
  for (size_t i = 0; i < ids->size(); ++i) {
    NIBBLE_ASSIGN(const int64_t id, (*ids)[i].Int(0, INT_MAX));
    tokens->push_back(static_cast<int32_t>(id));
  }
  return {};
}

Status ParseCounts(JsonRef body, const Limits& limits, GenerateFields* f) {
  NIBBLE_ASSIGN(const int64_t n, body.GetIntOr("n", 1, 1, limits.max_choices));
  NIBBLE_ASSIGN(const int64_t best_of, body.GetIntOr("best_of", n, 1, limits.max_choices));
  if (best_of < n)
    return Error(Code::kInvalidArgument, "best_of: wanted at least n, which is {}, found {}", n, best_of);
  if (best_of > n && f->stream)
    return Error(Code::kInvalidArgument,
                 "best_of: which answers are the best is known at the end, so not with stream");
  f->n = static_cast<int>(n), f->best_of = static_cast<int>(best_of);
  return {};
}

}  // namespace

Result<Json> ParseBody(std::string_view body, const Limits& limits) {
  const JsonLimits json{.max_bytes = limits.max_body_bytes,
                        .max_depth = limits.max_json_depth,
                        .max_nodes = limits.max_json_nodes};
  NIBBLE_ASSIGN(Json parsed, Json::Parse(body, json, kBodySource));
  if (!parsed.root().is_object()) return Error(Code::kInvalidArgument, "the body: wanted a JSON object");
  return parsed;
}

Result<std::vector<std::string>> ParseStops(JsonRef body, std::string_view key, const Limits& limits) {
  std::vector<std::string> stops;
  const auto value = body.Find(key);
  if (!value || value->is_null()) return stops;
  const bool list = value->is_array();
  if (list && value->size() > static_cast<size_t>(limits.max_stops))
    return Error(Code::kInvalidArgument, "{}: {} texts, at most {} are taken", value->Where(), value->size(),
                 limits.max_stops);
  for (size_t i = 0; i < (list ? value->size() : 1); ++i) {
    const JsonRef item = list ? (*value)[i] : *value;
    NIBBLE_ASSIGN(const std::string_view text, item.String());
    if (text.empty() || text.size() > limits.max_stop_bytes)
      return Error(Code::kInvalidArgument, "{}: {} bytes, wanted 1 to {}", item.Where(), text.size(),
                   limits.max_stop_bytes);
    stops.emplace_back(text);
  }
  return stops;
}

Status RefuseField(JsonRef body, std::string_view key, std::string_view reason) {
  const auto value = body.Find(key);
  if (!value || value->is_null()) return {};
  const bool nothing = (value->type() == JsonType::kBool && !*value->Bool()) ||
                       (value->type() == JsonType::kInt && *value->Int(INT64_MIN, INT64_MAX) == 0) ||
                       (value->is_string() && value->String()->empty()) ||
                       ((value->is_array() || value->is_object()) && value->size() == 0);
  if (nothing) return {};
  return Error(Code::kUnsupported, "{}: {}", key, reason);
}

std::vector<std::string> IgnoredFields(JsonRef body, const std::vector<std::string_view>& known) {
  constexpr size_t kMostNamed = 16, kMostBytes = 64;
  std::vector<std::string> ignored;
  for (size_t i = 0; i < body.size() && ignored.size() < kMostNamed; ++i) {
    const std::string_view key = body.KeyAt(i);
    const auto is_key = [key](std::string_view other) { return other == key; };
    if (std::any_of(known.begin(), known.end(), is_key)) continue;
    if (std::any_of(std::begin(kCommonFields), std::end(kCommonFields), is_key)) continue;
    if (std::any_of(std::begin(kRefused), std::end(kRefused),
                    [&](const Refused& r) { return is_key(r.key); }))
      continue;
    ignored.push_back(Printable(key.substr(0, kMostBytes)));
  }
  return ignored;
}

Result<GenerateFields> ParseGenerateFields(JsonRef body, const Limits& limits,
                                           const std::vector<std::string_view>& known) {
  GenerateFields f;
  for (const Refused& refused : kRefused)
    NIBBLE_RETURN_IF_ERROR(RefuseField(body, refused.key, refused.reason));
  NIBBLE_ASSIGN(f.model, body.GetStringOr("model", ""));
  NIBBLE_RETURN_IF_ERROR(ParseSampling(body, &f.sampling));
  NIBBLE_RETURN_IF_ERROR(ParseBias(body, limits, &f.sampling));
  NIBBLE_RETURN_IF_ERROR(ParseSeed(body, &f.seed));
  NIBBLE_RETURN_IF_ERROR(ParseStream(body, &f));
  NIBBLE_RETURN_IF_ERROR(ParseCounts(body, limits, &f));
  NIBBLE_ASSIGN(f.ignore_eos, body.GetBoolOr("ignore_eos", false));
  NIBBLE_ASSIGN(f.stop, ParseStops(body, "stop", limits));
  NIBBLE_ASSIGN(f.include_stop, body.GetBoolOr("include_stop_str_in_output", false));
  NIBBLE_RETURN_IF_ERROR(ParseStopTokens(body, limits, &f.stop_tokens));
  NIBBLE_ASSIGN(const int64_t prompt_logprobs, body.GetIntOr("prompt_logprobs", -1, 0, limits.max_logprobs));
  f.prompt_logprobs = static_cast<int>(prompt_logprobs);
  NIBBLE_ASSIGN(const int64_t priority, body.GetIntOr("priority", 0, -kMaxPriority, kMaxPriority));
  f.priority = static_cast<int>(priority);
  NIBBLE_ASSIGN(const std::string_view salt, body.GetStringOr("cache_salt", ""));
  if (salt.size() > kMaxSaltBytes)
    return Error(Code::kInvalidArgument, "cache_salt: {} bytes, at most {} are taken", salt.size(),
                 kMaxSaltBytes);
  f.cache_salt = salt;
  NIBBLE_ASSIGN(f.structured, ParseStructured(body));
  if (f.structured.kind != Structured::Kind::kNone && f.ignore_eos)
    return Error(Code::kInvalidArgument, "ignore_eos: {} says where the text ends", f.structured.field);
  f.ignored = IgnoredFields(body, known);
  return f;
}

}  // namespace nibble::server
