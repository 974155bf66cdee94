// SPDX-License-Identifier: Apache-2.0
// Floor 8. What serving does with a recipe: how large the pool is, what may be shared and guessed, and why
// not.
#pragma once
#include <string>
#include <vector>

#include "engine/serving.h"

namespace nibble {

struct ServingPlan {
  ServingOptions options;                       // of the engine and the pool filled in
  std::string prefix_scope;                     // empty: no prefix cache
  std::string why_no_prefixes, why_no_guesses;  // empty where there are
};

Result<ServingPlan> PlanServing(const ServingOptions& options);  // before the model is loaded
// Tokens that the pool will hold, whole pages: what the options say, or what they leave open.
Result<int64_t> PoolTokens(const ServingOptions& options, const ModelConfig& config,
                           const AttentionRecipe& recipe);
Status FitPlan(Engine& engine, ServingPlan* plan);  // to the model, its recipe and its plan
std::vector<std::string> ExplainServing(const ServingPlan& plan);

}  // namespace nibble
