// SPDX-License-Identifier: Apache-2.0
#include "recipe/page_rules.h"

#include "quant/kv/registry.h"

namespace nibble {
namespace {

bool Requantizes(const AttentionRecipe& r) { return kv::Get(r.k).requantizes || kv::Get(r.v).requantizes; }
bool ChoosesHeads(const AttentionRecipe& r) {
  return kv::Get(r.k).two_bit != r.k || kv::Get(r.v).two_bit != r.v;
}

}  // namespace

std::string_view WhyNotShared(const AttentionRecipe& r) {
  if (Requantizes(r)) return "pages change their widths with what their sequence attends to";
  if (r.select.kind == SelectKind::kH2o) return "the weight that a token has received is kept in its page";
  if (ChoosesHeads(r)) return "each sequence chooses the heads that have 2 bits";
  if (r.arithmetic.smooth != Smooth::kNone) return "the mean that is taken off K is kept by sequence";
  if (r.tail == kv::Tail::kInt8) return "the scale of an open page comes from the open page before it";
  return {};
}

// bf16: on a GPU prompts and decode rows are added up by different kernels (decision 13).
bool DecodeFillsPagesAsPrefill(const AttentionRecipe& r) {
  const bool bf16 = r.arithmetic.qk == QkArith::kBF16 && r.arithmetic.pv == PvArith::kBF16;
  return r.select.kind == SelectKind::kAll && !bf16;
}

std::string_view WhyNotUndone(const AttentionRecipe& r) {
  if (Requantizes(r)) return "statistics of queries decide the widths of pages";
  if (r.select.kind == SelectKind::kH2o) return "each row adds to the weights of tokens and evicts one";
  if (r.arithmetic.smooth == Smooth::kQK) return "each row adds to the mean query of its page";
  if (r.tail == kv::Tail::kInt8) return "each row may change the scale of the rows behind it";
  return {};
}

}  // namespace nibble
