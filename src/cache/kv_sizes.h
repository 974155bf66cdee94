// SPDX-License-Identifier: Apache-2.0
// Floor 6. Bytes of the parts of a cache.
#pragma once
#include <algorithm>

#include "cache/kv_cache.h"
#include "quant/kv/codec.h"
#include "recipe/side_layout.h"

namespace nibble {

inline int64_t PagesFor(int64_t tokens) { return (tokens + kv::kPageTokens - 1) / kv::kPageTokens; }

// Of all KV heads of a layer together: a sealed page of each, `two_bit` of them with 2 bits.
int64_t RowBytes(kv::CodecId codec, const KvShape& shape, int two_bit);
// A raw page of one KV head.
int64_t RawBytes(const AttentionRecipe& recipe, kv::CodecId codec, int head_dim);
SideLayout SideOf(const KvShape& shape, int heads, const AttentionRecipe& recipe);

}  // namespace nibble
