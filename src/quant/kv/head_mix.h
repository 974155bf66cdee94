// SPDX-License-Identifier: Apache-2.0
// Floor 2. Precision by head (TurboAttention, arXiv 2412.08585): of the KV heads of a layer, a fixed number
// get 2 bits and the others 4, K and V apart. Which ones is a matter of the sequence, or of a plan. The pages
// that all heads have for the same tokens lie one after the other, a row; the bytes of a row are the same
// whichever heads have 2 bits. Definition: kernels/ref/flashq.h.
#pragma once
#include <cstdint>
#include <span>

#include "quant/kv/head_place.h"
#include "quant/kv/registry.h"

namespace nibble::kv {

// The whole number of heads nearest to `share` of them; half a head keeps 4 bits.
int TwoBitHeads(float share, int kv_heads);

// Of the pages of all heads for the same tokens, `two_bit` of them with 2 bits.
int64_t RowBytes(const CodecInfo& codec, PageShape page, int kv_heads, int two_bit);

// gap * population std of the channels' gaps, gap = greatest - least, over rows [tokens, head_dim]. Infinite
// where a row is not finite.
double HeadPriority(PageShape page, const float* rows);

// The `two_bit` heads of lowest priority get 2 bits; of equal ones the lower head keeps 4.
void PlaceByPriority(std::span<HeadPlace> heads, int two_bit);
// As HeadPlace::two_bit says.
void Place(std::span<HeadPlace> heads);

}  // namespace nibble::kv
