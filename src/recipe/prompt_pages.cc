// SPDX-License-Identifier: Apache-2.0
#include "recipe/prompt_pages.h"

#include <cmath>

#include "quant/kv/registry.h"

namespace nibble {

bool DecodesPrompts(const AttentionRecipe& r, int head_dim) {
  const Arithmetic& a = r.arithmetic;
  if (SagePrompts(r, head_dim) || TurboPrompts(r, head_dim)) return true;
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

bool TurboPrompts(const AttentionRecipe& r, int head_dim) {
  const Arithmetic& a = r.arithmetic;
  const float threshold = a.sas.threshold;
  return a.qk == QkArith::kInt8Block && a.smooth == Smooth::kNone && a.pv == PvArith::kInt8 &&
         a.softmax == SoftmaxKind::kSas && !PolynomialOf(a).base2 && threshold >= -6 && threshold <= -1 &&
         threshold == std::floor(threshold) && kv::Get(r.k).seal_int8 != nullptr &&
         kv::Get(r.v).seal_int8 != nullptr && (head_dim == 64 || head_dim == 128);
}

int64_t PromptCodeBytes(const AttentionRecipe& r, int64_t pages, int step_tokens, int heads, int kv_heads,
                        int head_dim) {
  if (TurboPrompts(r, head_dim)) return TurboBytes(pages, step_tokens, heads, kv_heads, head_dim);
  if (!SagePrompts(r, head_dim)) return 0;
  return SageBytes(pages, step_tokens, heads, kv_heads, head_dim, r.arithmetic.smooth);
}

}  // namespace nibble
