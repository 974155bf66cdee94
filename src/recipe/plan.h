// SPDX-License-Identifier: Apache-2.0
// Floor 3. What calibration found, by layer and KV head: it overrides a recipe where the recipe leaves a
// choice, and carries the vectors that smoothing needs. File form: docs/formats/plan.md.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "recipe/attention_recipe.h"

namespace nibble {

struct LayerPlan {
  std::optional<QkArith> qk;  // SageAttention 2's adaptive precision: INT4 or INT8
  std::optional<PvArith> pv;  // SageAttention 1's: INT8 or f16
  std::optional<int> sparq_r, sparq_k;
  std::vector<bool> k_two_bit, v_two_bit;  // [kv_heads] TurboAttention's 2-bit heads, or empty
  // Channel balance. The cache takes (K - k_shift) / k_scale and (V - v_shift) / v_scale, attention takes
  // Q * k_scale and gives out * v_scale + v_shift: softmax does not see a constant added to a row of scores,
  // and its weights sum to 1, so the function stays and codecs see even channels. RoPE-paired: k_scale[i] ==
  // k_scale[i + head_dim / 2]. All [kv_heads, head_dim], or empty.
  std::vector<float> k_scale, k_shift, v_scale, v_shift;
  std::vector<float> k_mean;  // [kv_heads, head_dim] of the balanced K, or empty: smooth=k
  std::vector<float> q_mean;  // [heads, head_dim] of the balanced Q, or empty: smooth=qk
};

struct Plan {
  std::string fingerprint;  // of the model (io/fingerprint.h)
  std::string recipe;       // that it was made for; others may use it too
  int heads = 0, kv_heads = 0, head_dim = 0;
  std::vector<LayerPlan> layers;
};

// The recipe of one layer.
AttentionRecipe Apply(const AttentionRecipe& recipe, const LayerPlan& plan);

}  // namespace nibble
