// SPDX-License-Identifier: Apache-2.0
// Floor 4. TurboAttention's prompts on integer tensor cores (arXiv 2412.08585): INT8 Q K^T and P V over the
// codes of sealed FlashQ pages, the own page of a row in bf16, the softmax of both by SAS.
#pragma once
#include <cstdint>

#include "kernels/cuda/attention_prefill.h"
#include "kernels/cuda/pages.h"
#include "kernels/cuda/stream.h"
#include "kernels/cuda/unpack.h"
#include "recipe/arithmetic.h"

namespace nibble::cuda {

// Codes as the kernel reads them. A tile of queries has the positions 128 b .. 128 b + 127 of its sequence.
struct TurboTiles {
  int8_t* q;  // [heads][q_tiles][128][head_dim], 0 for rows of another step
  int8_t* k;  // [kv_heads][pages][64][head_dim]
  int8_t* v;  // [kv_heads][pages][head_dim][64], tokens of each 32 in the order of token_of (fragment.cuh)
  float* q_scale;  // [heads][q_tiles][128], the scale of the scores in it
  float* scale;    // [kv_heads][pages][4]: of K, of V, nothing
};
TurboTiles TurboTilesAt(int heads, int kv_heads, int head_dim, int q_tiles, int pages, void* base,
                        size_t* bytes);

// Sequences, their pages and tiles of queries as ExactAttentionArgs has them with `bases`.
struct TurboPlan {
  int heads, kv_heads, head_dim, q_tiles, pages;
  const int32_t *q_offsets, *k_offsets, *q_tile_ends;
  const PageBases* bases;
};

// The codes of query rows, each quantized by itself, and of sealed pages.
struct TurboCodesArgs {
  TurboPlan plan;
  PagedKv kv;
  const UnpackedPage* page_list;  // [pages]; open ones are passed over
  const float* q;                 // [rows][heads][head_dim], row stride q_stride
  int64_t q_stride;
  float scale;  // of the scores
  TurboTiles tiles;
};
// REQUIRES codecs whose pages are INT8 codes (kv::HasInt8Codes).
Launch TurboCodes(const TurboCodesArgs&, Stream);

struct TurboAttentionArgs {
  TurboPlan plan;
  TurboTiles tiles;
  const void* q;      // bf16 [q_rows][heads][head_dim], row stride q_stride
  const void *k, *v;  // bf16 [pages][kv_heads][64][head_dim]: own pages, finite behind their last rows
  int64_t q_stride;
  int q_rows;
  void* out;  // bf16 [q_rows][heads][head_dim]
  int64_t out_stride;
  float scale;  // of the scores
  SasPolynomial polynomial;
  int threshold;  // of SAS, -6 .. -1: what a table of powers in registers holds
};
// Pages are visited in the order of the definition, so that what a weight is relative to is the same. SAS in
// f16, as its paper has it: table, argument and polynomial. Bitwise repeatable; a sequence's rows do not
// depend on the others.
Launch TurboAttention(const TurboAttentionArgs&, Stream);

}  // namespace nibble::cuda
