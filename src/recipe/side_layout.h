// SPDX-License-Identifier: Apache-2.0
// Floor 3. What a recipe keeps beside the K and V page of one KV head: one record a page pair, and one a
// sequence, which begins with the same layout for its open page (its running state). Sections are 64-byte
// aligned; what a recipe does not need has size 0. All of it counts: a page's record in the bits a value, a
// sequence's in its tail.
#pragma once
#include <cstdint>
#include <utility>

#include "quant/kv/codec.h"
#include "recipe/attention_recipe.h"

namespace nibble {

struct SideLayout {
  struct Section {
    int offset = 0, bytes = 0;
    explicit operator bool() const { return bytes > 0; }
  };
  Section k_mean;  // f32 [head_dim]: smooth=k, qk. Sequences only: the mean of the K rows of the first page
  Section q_sum;   // f32 [group, head_dim]: smooth=qk. The sum of the page's query rows
  Section v_sum;   // f32 [head_dim]: sparq. Sum of all V rows up to the page's end, in token order, as the
                   // codec gives them: what attention would have read. Pages only
  Section k_copy;  // sparq: raw K as KeyCopy says, [head_dim, tokens], then its scales. Pages only
  Section h2o;     // f32 [tokens]: h2o. The weight a token has received; negative: evicted
  int bytes = 0, seq_bytes = 0;  // of a page's record, of a sequence's

  static SideLayout Of(const AttentionRecipe& recipe, kv::PageShape page, int group) {
    SideLayout s;
    const auto add = [&s](bool wanted, Section* section, int size) {
      if (!wanted) return;
      *section = {s.bytes, size};
      s.bytes += (size + 63) / 64 * 64;
    };
    const int row = page.head_dim * 4, values = page.head_dim * page.tokens;
    const Smooth smooth = recipe.arithmetic.smooth;
    const bool sparq = recipe.select.kind == SelectKind::kSparq;
    const int scales = page.head_dim * ((page.tokens + 31) / 32) * 2;  // f16, one a channel and 32 tokens
    const int copy = recipe.select.sparq.copy == KeyCopy::kF16    ? values * 2
                     : recipe.select.sparq.copy == KeyCopy::kInt8 ? values + scales
                                                                  : values / 2 + scales;
    add(smooth == Smooth::kQK, &s.q_sum, row * group);
    add(sparq, &s.v_sum, row);
    add(sparq, &s.k_copy, copy);
    add(recipe.select.kind == SelectKind::kH2o, &s.h2o, page.tokens * 4);
    const int page_bytes = s.bytes;
    add(smooth != Smooth::kNone, &s.k_mean, row);  // behind what a page's record has
    s.seq_bytes = std::exchange(s.bytes, page_bytes);
    return s;
  }
};

}  // namespace nibble
