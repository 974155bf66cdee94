// SPDX-License-Identifier: Apache-2.0
#include "recipe/plan.h"

namespace nibble {

AttentionRecipe Apply(const AttentionRecipe& recipe, const LayerPlan& plan) {
  AttentionRecipe r = recipe;
  if (plan.qk && IsInteger(r.arithmetic.qk)) r.arithmetic.qk = *plan.qk;
  if (plan.pv && (r.arithmetic.pv == PvArith::kF16 || r.arithmetic.pv == PvArith::kInt8))
    r.arithmetic.pv = *plan.pv;
  if (r.select.kind == SelectKind::kSparq) {
    r.select.sparq.r = plan.sparq_r.value_or(r.select.sparq.r);
    r.select.sparq.k = plan.sparq_k.value_or(r.select.sparq.k);
  }
  return r;
}

}  // namespace nibble
