// SPDX-License-Identifier: Apache-2.0
#include "recipe/prompt_pages.h"

#include "quant/kv/registry.h"

namespace nibble {

bool DecodesPrompts(const AttentionRecipe& r, int head_dim) {
  const Arithmetic& a = r.arithmetic;
  if (SagePrompts(r, head_dim)) return true;
  const bool raw = r.k == kv::CodecId::kBF16 && r.v == kv::CodecId::kBF16 && r.tail == kv::Tail::kFloat;
  return a.qk == QkArith::kBF16 && a.pv == PvArith::kBF16 && a.softmax == SoftmaxKind::kExact && !raw &&
         !kv::Get(r.k).requantizes && !kv::Get(r.v).requantizes && (head_dim == 64 || head_dim == 128);
}

bool SagePrompts(const AttentionRecipe& r, int head_dim) {
  const Arithmetic& a = r.arithmetic;
  return IsInteger(a.qk) && a.pv == PvArith::kFp8 &&
         (a.smooth != Smooth::kQK || a.qk == QkArith::kInt4Thread) && a.softmax == SoftmaxKind::kExact &&
         r.k == kv::CodecId::kBF16 && r.v == kv::CodecId::kBF16 && r.tail == kv::Tail::kFloat &&
         (head_dim == 64 || head_dim == 128);
}

}  // namespace nibble
