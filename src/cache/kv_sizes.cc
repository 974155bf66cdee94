// SPDX-License-Identifier: Apache-2.0
#include "cache/kv_sizes.h"

#include "cache/qaq_storage.h"
#include "quant/kv/registry.h"
#include "recipe/prompt_pages.h"
#include "recipe/two_bit_heads.h"

namespace nibble {

using kv::kPageTokens;

int64_t RowBytes(kv::CodecId codec, const KvShape& shape, int two_bit) {
  return kv::RowBytes(kv::Get(codec), {.head_dim = shape.head_dim, .tokens = kPageTokens}, shape.kv_heads,
                      two_bit);
}
int64_t RawBytes(const AttentionRecipe& r, kv::CodecId codec, int head_dim) {
  return kv::TailBytes(r.tail, kv::Get(codec).raw, {.head_dim = head_dim, .tokens = kPageTokens});
}

SideLayout SideOf(const KvShape& shape, int heads, const AttentionRecipe& recipe) {
  return SideLayout::Of(recipe, {.head_dim = shape.head_dim, .tokens = kPageTokens},
                        std::max(1, heads / shape.kv_heads));
}

namespace {

// Sealed bytes of a row of pages, one a KV head, K or V.
QaqPageBytes SealedBytes(kv::CodecId codec, const kv::QaqParams& params, const KvShape& shape, int two_bit) {
  const int64_t row = RowBytes(codec, shape, two_bit);
  if (!kv::Get(codec).requantizes) return {row, row};
  const QaqPageBytes page = PlanQaqPage({.head_dim = shape.head_dim, .tokens = kPageTokens}, params);
  return {shape.kv_heads * page.least, shape.kv_heads * page.most};
}

int64_t PlanPrompts(const KvShape& shape, int heads, const AttentionRecipe& recipe, int64_t tokens,
                    int step_tokens) {
  if (!DecodesPrompts(recipe, shape.head_dim)) return 0;
  const int64_t pages = PromptPages(tokens, step_tokens);
  return PromptBytes(pages, shape.kv_heads, shape.head_dim) +
         PromptCodeBytes(recipe, pages, step_tokens, heads, shape.kv_heads, shape.head_dim);
}

}  // namespace

KvSizes PlanKv(const KvShape& shape, int heads, const AttentionRecipe& recipe, int max_seqs,
               int64_t max_tokens, int step_tokens) {
  const SideLayout layout = SideOf(shape, heads, recipe);
  const int64_t side = layout.bytes, dim = shape.head_dim;
  const int k_two_bit = TwoBitHeads(recipe, false, shape.kv_heads);
  const int v_two_bit = TwoBitHeads(recipe, true, shape.kv_heads);
  const QaqPageBytes k = SealedBytes(recipe.k, recipe.k_qaq, shape, k_two_bit);
  const QaqPageBytes v = SealedBytes(recipe.v, recipe.v_qaq, shape, v_two_bit);
  // Of all KV heads of a layer together: `most`, `least`; of one: `raw`, `host`.
  const int64_t sides = shape.kv_heads * side;
  const int64_t most = k.most + v.most + sides, least = k.least + v.least + sides;
  int64_t raw = RawBytes(recipe, recipe.k, shape.head_dim) + RawBytes(recipe, recipe.v, shape.head_dim) +
                layout.seq_bytes;
  raw += ((k_two_bit > 0) + (v_two_bit > 0)) * int64_t{sizeof(kv::HeadPlace)};
  const bool k_qaq = kv::Get(recipe.k).requantizes, v_qaq = kv::Get(recipe.v).requantizes;
  if (k_qaq || v_qaq) raw += int64_t{sizeof(QaqState)};
  int64_t host = 0;  // of a page
  if (k_qaq && recipe.k_qaq.source == kv::QaqSource::kHost)
    host += RawBytes(recipe, recipe.k, shape.head_dim);
  if (v_qaq && recipe.v_qaq.source == kv::QaqSource::kHost)
    host += RawBytes(recipe, recipe.v, shape.head_dim);
  const int64_t all_heads = int64_t{shape.layers} * shape.kv_heads;
  const auto bits = [&](int64_t bytes) {
    return 8.0 * double(bytes) / (2.0 * kPageTokens * double(dim) * shape.kv_heads);
  };
  return {.bits_per_value = bits(most),
          .least_bits_per_value = bits(least),
          .k_bits = bits(2 * k.most),
          .v_bits = bits(2 * v.most),
          .bytes_per_token = (shape.layers * most + kPageTokens - 1) / kPageTokens,
          .tail_bytes_per_seq = all_heads * raw,
          .pool_bytes =
              (shape.layers * most + all_heads * host) * PagesFor(max_tokens) + all_heads * raw * max_seqs,
          .prompt_bytes = PlanPrompts(shape, heads, recipe, max_tokens, step_tokens)};
}

}  // namespace nibble
