// SPDX-License-Identifier: Apache-2.0
// Floor 3. What calibration found, by layer and KV head: it overrides a recipe where the recipe leaves a
// choice, and carries the vectors that smoothing needs. File form: docs/formats/plan.md.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "recipe/attention_recipe.h"

namespace nibble {

inline constexpr float kMaxQaqSigma = 1000;
struct QaqBounds {  // of K or V of one KV head
  float sigma;      // the deviation allowed: QaqParams::sigma
  int min, max;     // bits
  bool operator==(const QaqBounds&) const = default;
};

struct LayerPlan {
  std::optional<QkArith> qk;               // SageAttention 2's adaptive precision: INT4 or INT8
  std::optional<PvArith> pv;               // SageAttention 1's: INT8 or f16
  std::vector<int> sparq_r, sparq_k;       // [kv_heads] SparQ's r and k, or empty
  std::vector<QaqBounds> k_qaq, v_qaq;     // [kv_heads] QAQ's bounds, or empty
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

// The recipe of one layer, without what differs by head.
AttentionRecipe Apply(const AttentionRecipe& recipe, const LayerPlan& plan);

// The plan of one KV head and its `group` query heads, as a layer of its own.
LayerPlan OneHead(const LayerPlan& plan, int head, int group, int head_dim);

// What KV head `head` of a layer selects and keeps. `plan`: of the layer, or null.
SparqParams SparqOfHead(const AttentionRecipe& recipe, const LayerPlan* plan, int head);
kv::QaqParams QaqOfHead(const kv::QaqParams& params, const std::vector<QaqBounds>& bounds, int head);

// kInvalidArgument when the plan of a layer gives some head what the recipe or a head of `head_dim` channels
// cannot have: r beyond the head size, k below the local window and sinks, bits outside the recipe's own.
Status CheckHeads(const AttentionRecipe& recipe, const LayerPlan& plan, int kv_heads, int head_dim);

}  // namespace nibble
