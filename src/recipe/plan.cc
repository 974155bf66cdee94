// SPDX-License-Identifier: Apache-2.0
#include "recipe/plan.h"

#include <algorithm>
#include <type_traits>

#include "recipe/grammar.h"

namespace nibble {

AttentionRecipe Apply(const AttentionRecipe& recipe, const LayerPlan& plan) {
  AttentionRecipe r = recipe;
  if (plan.qk && IsInteger(r.arithmetic.qk)) r.arithmetic.qk = *plan.qk;
  if (plan.pv && (r.arithmetic.pv == PvArith::kF16 || r.arithmetic.pv == PvArith::kInt8))
    r.arithmetic.pv = *plan.pv;
  return r;
}

LayerPlan OneHead(const LayerPlan& plan, int head, int group, int head_dim) {
  LayerPlan one = plan;
  const auto take = [head](auto* values, int each) {
    if (values->empty()) return;
    const auto begin = values->begin() + int64_t{head} * each;
    *values = std::remove_reference_t<decltype(*values)>(begin, begin + each);
  };
  take(&one.sparq_r, 1), take(&one.sparq_k, 1), take(&one.k_qaq, 1), take(&one.v_qaq, 1);
  take(&one.k_two_bit, 1), take(&one.v_two_bit, 1);
  for (auto* values : {&one.k_scale, &one.k_shift, &one.v_scale, &one.v_shift, &one.k_mean})
    take(values, head_dim);
  take(&one.q_mean, group * head_dim);
  return one;
}

SparqParams SparqOfHead(const AttentionRecipe& recipe, const LayerPlan* plan, int head) {
  SparqParams p = recipe.select.sparq;
  if (plan == nullptr) return p;
  if (!plan->sparq_r.empty()) p.r = plan->sparq_r[size_t(head)];
  if (!plan->sparq_k.empty()) p.k = plan->sparq_k[size_t(head)];
  return p;
}

kv::QaqParams QaqOfHead(const kv::QaqParams& params, const std::vector<QaqBounds>& bounds, int head) {
  kv::QaqParams p = params;
  if (bounds.empty()) return p;
  const QaqBounds& b = bounds[size_t(head)];
  p.sigma = b.sigma, p.min = b.min, p.max = b.max;
  return p;
}

Status CheckHeads(const AttentionRecipe& recipe, const LayerPlan& plan, int kv_heads, int head_dim) {
  const auto qaq = [](const char* side, const kv::QaqParams& own,
                      const std::vector<QaqBounds>& bounds) -> Status {
    for (size_t h = 0; h < bounds.size(); ++h)
      if (bounds[h].min < own.min || bounds[h].max > own.max)
        return Error(
            Code::kInvalidArgument,
            "plan: {}_qaq of KV head {} has {} to {} bits, the recipe {}=qaq {} to {}; use the recipe the "
            "plan was made for, or min={},max={}",
            side, h, bounds[h].min, bounds[h].max, side, own.min, own.max, std::min(own.min, bounds[h].min),
            std::max(own.max, bounds[h].max));
    return {};
  };
  if (recipe.k == kv::CodecId::kQaq) NIBBLE_RETURN_IF_ERROR(qaq("k", recipe.k_qaq, plan.k_qaq));
  if (recipe.v == kv::CodecId::kQaq) NIBBLE_RETURN_IF_ERROR(qaq("v", recipe.v_qaq, plan.v_qaq));
  if (recipe.select.kind != SelectKind::kSparq) return {};
  for (int h = 0; h < kv_heads; ++h) {
    AttentionRecipe one = recipe;
    one.select.sparq = SparqOfHead(recipe, &plan, h);
    Status fits = recipe::CheckSelection(one);
    if (fits.ok()) fits = CheckHeadSize(one, head_dim);
    if (!fits.ok()) return Error(fits.code(), "plan: KV head {}: {}", h, fits.message());
  }
  return {};
}

}  // namespace nibble
