// SPDX-License-Identifier: Apache-2.0
// Floor 3. Prompts on a GPU under bf16 arithmetic read the pages of a layer decoded to bf16, in memory of its
// own (docs/decisions/0013-cuda-backend.md): which recipes that concerns and how much it takes.
#pragma once
#include <cstdint>

#include "quant/kv/codec.h"
#include "recipe/attention_recipe.h"

namespace nibble {

// Exact attention in bf16, whatever the codecs but those that requantize; where all pages hold bf16 rows as
// they are, there is nothing to decode. And what follows.
bool DecodesPrompts(const AttentionRecipe& recipe, int head_dim);
// SageAttention on INT8 and FP8 tensor cores: over bf16 pages, P V in FP8, the mean of K taken off or none;
// that of Q under INT4.
bool SagePrompts(const AttentionRecipe& recipe, int head_dim);
// TurboAttention on INT8 tensor cores: over FlashQ pages, nothing taken off K, P V in INT8, SAS in base e
// with a whole threshold from -6 to -1, which is what its table of powers holds.
bool TurboPrompts(const AttentionRecipe& recipe, int head_dim);

// Most pages that the longest sequence takes: all it has, and those of a step's tokens once more, raw.
constexpr int64_t PromptPages(int64_t seq_tokens, int step_tokens) {
  const int64_t tokens = kv::kPageTokens, raw = step_tokens / tokens + 2;
  return (seq_tokens + tokens - 1) / tokens + raw;
}
// K and V, bf16 [pages, kv_heads, 64, head_dim] each.
constexpr int64_t PromptBytes(int64_t pages, int kv_heads, int head_dim) {
  return 2 * pages * kv_heads * kv::kPageTokens * head_dim * 2;
}

// SagePrompts: how many tiles of 128 queries run together, and what codes, scales and the results of own
// pages take besides.
constexpr int SageQueryTiles(int step_tokens) { return step_tokens / 128 + 2; }
constexpr int64_t SageKeyTiles(int64_t pages, int step_tokens) {
  return pages / 2 + SageQueryTiles(step_tokens) + 1;
}
constexpr int64_t SageBytes(int64_t pages, int step_tokens, int heads, int kv_heads, int head_dim,
                            Smooth smooth) {
  const int64_t q_tile = 128 * (head_dim + 2 * 4), k_tile = 128 * 2 * head_dim + 16 * 4;
  // Two means a tile, and for each of them a float a key.
  const int64_t means = smooth == Smooth::kQK ? 2 * 4 * (head_dim + (pages / 2 + 1) * 128) : 0;
  return SageQueryTiles(step_tokens) * heads * (q_tile + means) +
         SageKeyTiles(pages, step_tokens) * kv_heads * k_tile + int64_t{step_tokens} * heads * 4 +
         (means > 0 ? 8 : 6) * 256;  // parts begin at multiples of 256
}

// TurboPrompts: tiles of 128 queries that run together, and codes and scales of queries and pages.
constexpr int64_t TurboBytes(int64_t pages, int step_tokens, int heads, int kv_heads, int head_dim) {
  return SageQueryTiles(step_tokens) * heads * 128 * (int64_t{head_dim} + 4) +
         pages * kv_heads * (int64_t{128} * head_dim + 16) + 5 * 256;
}

// What a recipe's prompts take besides PromptBytes.
int64_t PromptCodeBytes(const AttentionRecipe& recipe, int64_t pages, int step_tokens, int heads,
                        int kv_heads, int head_dim);

}  // namespace nibble
