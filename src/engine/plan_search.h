// SPDX-License-Identifier: Apache-2.0
// Floor 8. The search of one layer's plan: what can be chosen under a recipe, tried in a fixed order, each
// choice by KV head where heads do not depend on each other.
#pragma once
#include <string>
#include <vector>

#include "engine/head_budget.h"
#include "engine/layer_trial.h"

namespace nibble {

struct LayerChoice {
  LayerPlan plan;
  OutputError before, after;
  std::string words;                 // what was chosen
  std::vector<HeadOptions> by_head;  // what is chosen for all layers together (head_budget.h)
};

class PlanSearch {
 public:
  // `min_score`, `budget`: as of CalibrateOptions.
  PlanSearch(Backend& backend, const LayerRows& rows, const AttentionRecipe& recipe, double min_score,
             double budget)
      : trial_(backend, rows), rows_(rows), recipe_(recipe), min_score_(min_score), budget_(budget) {}

  // kInvalidArgument when the recipe leaves nothing to choose.
  static Status Check(const AttentionRecipe& recipe);
  Result<LayerChoice> Run();

 private:
  enum class Side : uint8_t { kK, kV };
  struct Candidate {  // of the balance of one side
    bool shift = false;
    bool rms = false;  // scale by root mean square instead of greatest magnitude
    float power = 0;   // scale = statistic ^ power
  };
  struct Channels {                     // of one side: [kv_heads, head_dim]
    std::vector<float> mean, max, rms;  // of x; of |x| and x^2, as it is or with the mean taken off
  };

  Channels Statistics(Side side, bool shift) const;
  void Set(Side side, const Candidate& c, int head, LayerPlan* plan) const;
  Status SearchTwoBit(Side side);
  Status SearchBalance(Side side);
  Status SearchMeans();
  Status SearchSage();
  // Of each KV head, at a few settings around the recipe's own.
  Result<std::vector<HeadOptions>> SparqOptions();
  Result<std::vector<HeadOptions>> QaqOptions(Side side);
  Result<OutputError> Total(const LayerPlan& plan);

  LayerTrial trial_;
  const LayerRows& rows_;
  const AttentionRecipe& recipe_;
  double min_score_, budget_;
  LayerPlan plan_;
  std::string words_;
  std::vector<HeadCost> own_costs_;  // [kv_heads] of the recipe without a plan
};

}  // namespace nibble
