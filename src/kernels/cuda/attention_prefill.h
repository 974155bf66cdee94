// SPDX-License-Identifier: Apache-2.0
// Floor 4. SageAttention2 on Hopper for many queries (arXiv 2411.10958): INT8 Q K^T by thread group on
// smoothed keys, E4M3 P V with two-level accumulation. Two launches: one pass turns bf16 Q, K and V into
// 8-bit tiles, one computes attention from them.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cuda/stream.h"

namespace nibble::cuda {

// Packed sequences of different lengths. Sequence s has query rows q_offsets[s] .. q_offsets[s + 1] and key
// rows k_offsets[s] .. k_offsets[s + 1]; its last query sees its last key (bottom-right causal mask).
struct SageShape {
  int sequences = 0, heads = 0, kv_heads = 0;
  int head_dim = 128;          // 64 or 128
  int q_tiles = 0;             // sum over sequences of ceil(queries / 128)
  int k_tiles = 0;             // sum over sequences of ceil(keys / 128)
  const int32_t* q_offsets;    // [sequences + 1]
  const int32_t* k_offsets;    // [sequences + 1]
  const int32_t* q_tile_ends;  // [sequences]: running sums of ceil(queries / 128)
  const int32_t* k_tile_ends;  // [sequences]
  bool causal = true;
};

// What the first launch writes and the second reads; sizes are those of SageBytes. Rows are padded to 128 a
// sequence, padding is zero.
struct SageTiles {
  int8_t* q;       // [heads][q_tiles * 128][head_dim]
  int8_t* k;       // [kv_heads][k_tiles * 128][head_dim], the mean of the first 64 keys taken off
  uint8_t* v;      // [kv_heads][head_dim][k_tiles * 128] E4M3, tokens of each 16 in the order of SageTokenAt
  float* q_scale;  // [heads][q_tiles * 8][8]: of rows r and r + 8 of each 16
  float* scale;    // [kv_heads][k_tiles][16]: K by 64 keys and (key % 8) / 2: 8, then one of V (a power of 2)
};

// Bytes of each array of SageTiles, each rounded up to 256, and their sum.
struct SageBytes {
  size_t q, k, v, q_scale, scale, total;
};
SageBytes SageTileBytes(const SageShape&);
SageTiles SageTilesAt(const SageShape&, void* base);  // base: SageBytes::total bytes, 256-byte aligned

// Position p (0..15) of V's order holds token SageTokenAt(p): a lane's scores of two 8-key slices become four
// consecutive inputs of the E4M3 product without shuffles.
constexpr int SageTokenAt(int p) { return 8 * (p % 4 / 2) + 2 * (p / 4) + p % 2; }

struct SageQuantizeArgs {
  SageShape shape;
  const void* q;  // bf16 [rows][heads][head_dim], row stride q_stride elements, 16-byte aligned
  const void* k;  // bf16 [rows][kv_heads][head_dim]
  const void* v;  // bf16 [rows][kv_heads][head_dim]
  int64_t q_stride, k_stride, v_stride;
  SageTiles tiles;
};
Launch SageQuantize(const SageQuantizeArgs&, Stream);

struct SageAttentionArgs {
  SageShape shape;
  SageTiles tiles;
  void* out;  // bf16 [rows][heads][head_dim], row stride out_stride elements
  int64_t out_stride;
  float scale;  // of the scores, usually head_dim^-0.5
};
// The E4M3 range of P is 2^8 under the row's running maximum rounded up to a power of two, so rescaling by it
// is exact and seldom. Bitwise repeatable; a sequence's rows do not depend on the others.
Launch SageAttention(const SageAttentionArgs&, Stream);

// K or V in pages of 64 rows, bf16 [64][head_dim] of one KV head each. Strides are in bytes, multiples of a
// row; `bytes` are those of the memory, all of which may be read.
struct KvPages {
  const void *pool, *open;
  int64_t page_stride, head_stride, open_stride, open_head_stride;
  int64_t pool_bytes, open_bytes;
};

// Exact attention, bf16 in and out, sums in f32. Sequences as SageShape has them; K and V are packed rows or,
// where page_table is given, pages: key t of sequence s lies in page page_table[s][t / 64], those of its last
// page in page open_index[s] of `open`. What lies behind the last key may be anything, NaN too.
struct ExactAttentionArgs {
  int sequences, heads, kv_heads;
  int head_dim;  // 64 or 128
  int q_tiles;   // sum over sequences of ceil(queries / 128)
  const int32_t *q_offsets, *k_offsets, *q_tile_ends;
  bool causal;
  const void* q;      // bf16 [q_rows][heads][head_dim], row stride q_stride elements
  const void *k, *v;  // bf16 [k_rows][kv_heads][head_dim], or null
  int64_t q_stride, k_stride, v_stride;
  int q_rows, k_rows;
  KvPages k_pages, v_pages;
  const int32_t* page_table;  // [sequences, max_pages], or null
  const int32_t* open_index;  // [sequences], or null: sequence s has index s
  int max_pages;
  void* out;  // bf16 [q_rows][heads][head_dim]
  int64_t out_stride;
  float* lse;   // [q_rows][heads]: ln of the sum of exp(score), -infinity of a row that sees nothing; or null
  float scale;  // of the scores
};
Launch ExactAttention(const ExactAttentionArgs&, Stream);

}  // namespace nibble::cuda
