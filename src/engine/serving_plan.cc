// SPDX-License-Identifier: Apache-2.0
#include "engine/serving_plan.h"

#include <algorithm>
#include <cmath>

#include "cache/kv_cache.h"
#include "io/fingerprint.h"
#include "quant/kv/codec.h"
#include "recipe/page_rules.h"

namespace nibble {
namespace {

using kv::kPageTokens;

constexpr int kMaxSeqs = 4096, kMaxBatchedTokens = 1 << 16;
constexpr int64_t kDefaultContext = 4096;  // of a sequence, where no size of the pool is given

// Of the recipe and of each layer's, where a plan changes it.
std::string WhyNotAnywhere(Engine& engine, std::string_view (*why_not)(const AttentionRecipe&)) {
  std::string_view reason = why_not(engine.recipe());
  const Plan* plan = engine.parts().plan;
  for (size_t i = 0; plan != nullptr && reason.empty() && i < plan->layers.size(); ++i)
    reason = why_not(Apply(engine.recipe(), plan->layers[i]));
  return std::string(reason);
}

// Tokens of whole pages that fit beside the open pages.
Result<int64_t> TokensIn(int64_t bytes, const ModelConfig& c, const AttentionRecipe& recipe, int seqs) {
  const KvShape shape{c.layers, c.kv_heads, c.head_dim};
  const int64_t open = PlanKv(shape, c.heads, recipe, seqs, 0).pool_bytes;
  const int64_t page = PlanKv(shape, c.heads, recipe, seqs, kPageTokens).pool_bytes - open;
  if (bytes < open + page)
    return Error(Code::kInvalidArgument,
                 "kv_bytes is {}, but the open pages of {} sequences take {} and one page of {} tokens {}",
                 bytes, seqs, open, kPageTokens, page);
  return std::min<int64_t>((bytes - open) / page, INT32_MAX / kPageTokens) * kPageTokens;
}

}  // namespace

Status CheckServing(const ServingOptions& o) {
  const auto check = [](const char* name, auto value, auto least, auto most) -> Status {
    if (value >= least && value <= most) return {};
    return Error(Code::kInvalidArgument, "{} is {}, must be {} to {}", name, value, least, most);
  };
  NIBBLE_RETURN_IF_ERROR(check("max_num_seqs", o.max_num_seqs, 1, kMaxSeqs));
  NIBBLE_RETURN_IF_ERROR(
      check("max_num_batched_tokens", o.max_num_batched_tokens, o.max_num_seqs + 1, kMaxBatchedTokens));
  NIBBLE_RETURN_IF_ERROR(check("kv_tokens", o.kv_tokens, int64_t{0}, int64_t{INT32_MAX}));
  NIBBLE_RETURN_IF_ERROR(check("kv_bytes", o.kv_bytes, int64_t{0}, INT64_MAX));
  if (o.kv_tokens > 0 && o.kv_bytes > 0)
    return Error(Code::kInvalidArgument, "kv_tokens and kv_bytes both give the size of the KV pool");
  NIBBLE_RETURN_IF_ERROR(check("swap_bytes", o.swap_bytes, int64_t{0}, INT64_MAX));
  NIBBLE_RETURN_IF_ERROR(check("max_waiting", o.max_waiting, 1, 1 << 20));
  NIBBLE_RETURN_IF_ERROR(check("max_waiting_tokens", o.max_waiting_tokens, int64_t{1}, int64_t{1} << 40));
  NIBBLE_RETURN_IF_ERROR(check("priority_seconds", o.priority_seconds, 0.001, 1e6));
  NIBBLE_RETURN_IF_ERROR(check("ngram max_draft", o.ngram.max_draft, 0, kPageTokens - 1));
  NIBBLE_RETURN_IF_ERROR(check("ngram longest", o.ngram.longest, 1, 64));
  return check("ngram shortest", o.ngram.shortest, 1, o.ngram.longest);
}

Result<ServingPlan> PlanServing(const ServingOptions& options) {
  NIBBLE_RETURN_IF_ERROR(CheckServing(options));
  ServingPlan plan{.options = options};
  EngineOptions& e = plan.options.engine;
  e.max_seqs = options.max_num_seqs;
  e.prefill_chunk = options.max_num_batched_tokens - options.max_num_seqs;
  return plan;
}

Result<int64_t> PoolTokens(const ServingOptions& o, const ModelConfig& config,
                           const AttentionRecipe& recipe) {
  if (o.kv_bytes > 0) return TokensIn(o.kv_bytes, config, recipe, o.max_num_seqs);
  const int64_t tokens = o.kv_tokens > 0
                             ? o.kv_tokens
                             : o.max_num_seqs * std::min<int64_t>(config.max_position, kDefaultContext);
  return (tokens + kPageTokens - 1) / kPageTokens * kPageTokens;
}

Status FitPlan(Engine& engine, ServingPlan* plan) {
  ServingOptions& o = plan->options;
  NIBBLE_ASSIGN(o.kv_tokens, PoolTokens(o, engine.config(), engine.recipe()));
  plan->why_no_prefixes = o.prefix_cache ? WhyNotAnywhere(engine, WhyNotShared) : "not asked for";
  plan->why_no_guesses = o.ngram.max_draft > 0 ? WhyNotAnywhere(engine, WhyNotUndone) : "not asked for";
  if (!plan->why_no_prefixes.empty()) return {};
  NIBBLE_ASSIGN(const auto weights, io::Weights::Open(o.engine.model));
  NIBBLE_ASSIGN(const std::string model, io::Fingerprint(*weights));
  const Plan* layers = engine.parts().plan;
  plan->prefix_scope =
      fmt::format("{}\n{}\n{}\n{}\n{}", model, ToString(engine.recipe()), int(o.engine.dtype),
                  layers != nullptr ? o.engine.plan : "", o.prefix_salt);
  return {};
}

namespace {

std::string ExplainPreemption(const ServingOptions& o) {
  const double mib = double(o.swap_bytes) / (1 << 20);
  switch (o.preemption) {
    case Preemption::kRecompute:
      return "who loses its pages runs its tokens again";
    case Preemption::kSwap:
      return fmt::format("who loses its pages is copied to {:.0f} MiB of host memory", mib);
    case Preemption::kAuto:
      return fmt::format(
          "who loses its pages is copied to {:.0f} MiB of host memory, below {} tokens runs them again", mib,
          kPageTokens);
  }
  return "";
}

}  // namespace

std::vector<std::string> ExplainServing(const ServingPlan& p) {
  const ServingOptions& o = p.options;
  std::vector<std::string> lines{
      fmt::format("batch: up to {} sequences and {} tokens a step", o.max_num_seqs, o.max_num_batched_tokens),
      fmt::format("KV pool: {} pages of {} tokens", o.kv_tokens / kPageTokens, kPageTokens)};
  lines.push_back(o.admission == Admission::kWhole
                      ? "admission: with all pages that a request may need; none is preempted"
                      : "admission: with the pages of the prompt; " + ExplainPreemption(o));
  lines.push_back(p.why_no_prefixes.empty() ? "prefix cache: pages of equal prefixes are shared"
                                            : "prefix cache: off: " + p.why_no_prefixes);
  lines.push_back(p.why_no_guesses.empty()
                      ? fmt::format("speculation: up to {} tokens by lookup", o.ngram.max_draft)
                      : "speculation: off: " + p.why_no_guesses);
  return lines;
}

}  // namespace nibble
