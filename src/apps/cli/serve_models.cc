// SPDX-License-Identifier: Apache-2.0
#include "apps/cli/serve_models.h"

#include "apps/cli/memory_plan.h"
#include "engine/serving_plan.h"
#include "model/work_plan.h"

namespace nibble::cli {
namespace {

constexpr double kMiB = 1 << 20;

double MiB(uint64_t bytes) { return static_cast<double>(bytes) / kMiB; }

// Of the steps; on a GPU where the device may be one.
uint64_t WorkBytes(const ServingOptions& o, const ModelConfig& config) {
  const int rows = o.max_num_batched_tokens, logit_rows = LogitRows(config.vocab, o.max_num_seqs, rows);
  return uint64_t(PlanWork(config).Bytes(rows, logit_rows, o.engine.device != DeviceChoice::kCpu));
}

// The engines of one model, and what clients call them: NAME is the first recipe, NAME:RECIPE each of them.
Status LoadModel(const ServeOptions& o, size_t index, Served* served) {
  const std::string& dir = o.models[index];
  NIBBLE_ASSIGN(auto engines, ServingEngine::StartAll(ToServingOptions(o, dir), o.recipes, &served->turns));
  const std::string name = index < o.names.size() ? o.names[index] : "";
  NIBBLE_ASSIGN(auto first, server::ServedModel::Make(engines[0].get(), dir, name, o.template_file));
  const server::ServedModel& model = *first;
  std::vector<std::string> aliases;
  if (o.models.size() == 1 && o.names.size() > 1) aliases.assign(o.names.begin() + 1, o.names.end());
  const auto with_recipe = [&](size_t recipe) { return model.name() + ":" + o.recipes[recipe]; };
  if (o.recipes.size() > 1) aliases.push_back(with_recipe(0));
  NIBBLE_RETURN_IF_ERROR(served->models.Add(std::move(first), aliases));
  for (size_t i = 1; i < engines.size(); ++i)
    NIBBLE_RETURN_IF_ERROR(served->models.Add(model.WithEngine(engines[i].get(), with_recipe(i))));
  for (auto& engine : engines) served->engines.push_back(std::move(engine));
  return {};
}

}  // namespace

Status PrintServePlan(const ServeOptions& o) {
  if (o.common.quiet) return {};
  uint64_t total = 0;
  for (const std::string& dir : o.models) {
    const ServingOptions options = ToServingOptions(o, dir);
    NIBBLE_ASSIGN(const ModelConfig config, ReadModelConfig(dir));
    NIBBLE_ASSIGN(const auto weights, io::Weights::Open(dir));
    const uint64_t bytes = PackedWeightBytes(weights->tensors(), options.engine.dtype);
    total += bytes;
    const uint64_t work = WorkBytes(options, config);
    total += work;
    fmt::print(stderr, "nibble: plan: {}: weights {:.1f} MiB, steps {:.1f} MiB, once for all recipes\n", dir,
               MiB(bytes), MiB(work));
    for (const std::string& name : o.recipes) {
      NIBBLE_ASSIGN(const AttentionRecipe recipe, ParseRecipe(name, options.engine.dtype));
      NIBBLE_ASSIGN(const int64_t tokens, PoolTokens(options, config, recipe));
      const KvSizes kv = PlanKv({config.layers, config.kv_heads, config.head_dim}, config.heads, recipe,
                                options.max_num_seqs, tokens);
      total += static_cast<uint64_t>(kv.pool_bytes);
      fmt::print(stderr,
                 "nibble: plan: {} {}: {:.2f} KV bits, pool of {} tokens and {} open pages {:.1f} MiB\n", dir,
                 name, kv.bits_per_value, tokens, options.max_num_seqs,
                 MiB(static_cast<uint64_t>(kv.pool_bytes)));
    }
  }
  fmt::print(
      stderr,
      "nibble: plan: {:.1f} MiB of weights, steps and pools at most; a pool takes memory as it fills\n",
      MiB(total));
  return {};
}

Status LoadServed(const ServeOptions& o, Served* served) {
  for (size_t i = 0; i < o.models.size(); ++i) NIBBLE_RETURN_IF_ERROR(LoadModel(o, i, served));
  return {};
}

}  // namespace nibble::cli
