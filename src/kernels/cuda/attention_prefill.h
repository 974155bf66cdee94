// SPDX-License-Identifier: Apache-2.0
// Floor 4. SageAttention2 on Hopper for many queries (arXiv 2411.10958): INT8 Q K^T by thread group on
// smoothed keys, E4M3 P V with two-level accumulation. Two launches: one pass turns bf16 Q, K and V into
// 8-bit tiles, one computes attention from them. With smoothed queries (what INT4 codes want; Hopper
// multiplies them as INT8) a launch between the two makes the delta-S term.
#pragma once
#include <cstddef>
#include <cstdint>

#include "base/macros.h"
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
  // Queries are smoothed where it is not 0: sum over sequences of their q tiles x k tiles.
  int delta_tiles = 0;
};

// What the first launch writes and the second reads; sizes are those of SageBytes. Rows are padded to 128 a
// sequence, padding is zero.
struct SageTiles {
  int8_t* q;       // [heads][q_tiles * 128][head_dim]
  int8_t* k;       // [kv_heads][k_tiles * 128][head_dim], the mean of the first 64 keys taken off
  uint8_t* v;      // [kv_heads][head_dim][k_tiles * 128] E4M3, tokens of each 16 in the order of SageTokenAt
  float* q_scale;  // [heads][q_tiles * 8][8]: of rows r and r + 8 of each 16
  float* scale;    // [kv_heads][k_tiles][16]: K by 64 keys and (key % 8) / 2: 8, then one of V (a power of 2)
  // Of smoothed queries, or null: the mean of the tile's queries, taken off them, [heads][q_tiles][head_dim],
  // and its products with the smoothed keys, each over the scale of K, [heads][delta_tiles][128], those of a
  // sequence by q tile and k tile, keys of each 16 in the order of SageTokenAt. What is missing to the scores
  // of a row is that over its scale of Q: sums of integers begin there, rounded to one of them. Over pages
  // both have two rows a tile, as each of its two pages has a mean. k_mean: [kv_heads][k_tiles][head_dim],
  // not over pages.
  float *q_mean, *k_mean, *delta;
};

// Bytes of each array of SageTiles, each rounded up to 256, and their sum.
struct SageBytes {
  size_t q, k, v, q_scale, scale, q_mean, k_mean, delta, total;
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
  float levels = 127;  // of the codes of Q and K: 127, or 7
};
Launch SageQuantize(const SageQuantizeArgs&, Stream);

// Rows of a sequence that see sealed pages before their own. Tiles of 128 queries begin at positions that are
// multiples of 128. Tile b sees tiles of two pages, 2j and 2j + 1 with j < b, and its second half page 2b
// too, from a tile of its own.
struct SageSequence {
  int32_t query, queries, keys;  // first row of the call, how many, what the last one sees
  int32_t q_tile_end;            // running sum of tiles
  int32_t pairs, alone;          // K tiles: of pages 2j and 2j + 1: pairs + j; of page 2b: alone + b
  int32_t seq;                   // KvSegment::seq
  int32_t delta;                 // of smoothed queries: the first of its delta tiles
};
struct SagePageTile {
  int32_t first, second, seq;  // pages; second -1: none
  int32_t sequence;            // among those of the call
};
// Delta tiles of a sequence: as many a q tile, that of pages 2j and 2j + 1 at j, that of page 2b at b.
NIBBLE_HD int SageDeltaTiles(int keys) { return (keys - 1) / 128 + 1; }

struct SageAttentionArgs {
  SageShape shape;
  SageTiles tiles;
  void* out;  // bf16 [rows][heads][head_dim], row stride out_stride elements
  int64_t out_stride;
  float scale;  // of the scores, usually head_dim^-0.5
  // Or, in the shape only counts of heads, tiles and head_dim, and in q_scale by tile 128 scales and 128
  // terms that a row's scores have besides: the result of sealed pages is added to that of the own page,
  // which is in `out`, with its log-sum-exp.
  const SageSequence* sequences = nullptr;
  const float* lse = nullptr;  // [rows][heads]
};
// The E4M3 range of P is 2^8 under the row's running maximum rounded up to a power of two, so rescaling by it
// is exact and seldom. Bitwise repeatable; a sequence's rows do not depend on the others.
Launch SageAttention(const SageAttentionArgs&, Stream);

// The codes of query rows and pages. Rows are quantized each by itself: q_scale as SageAttentionArgs says.
struct SagePagesArgs {
  int heads, kv_heads, head_dim, q_tiles, k_tiles;
  const SageSequence* sequences;
  const SagePageTile* page_tiles;  // [k_tiles]
  const float* q;                  // [rows][heads][head_dim], row stride q_stride
  const void *k, *v;               // bf16 [pages][kv_heads][64][head_dim]
  int64_t q_stride;
  // What is taken off K: [kv_heads][head_dim], or of sequence n and KV head h at records + (n * kv_heads + h)
  // * record_stride, or nothing.
  const float* k_mean;
  const std::byte* records;
  int64_t record_stride;
  // What is taken off Q, where tiles.delta is given: [heads][head_dim]; or, by page, sums of 64 queries: of
  // page n and KV head h f32 [heads / kv_heads][head_dim] at q_sums + (n * kv_heads + h) * q_sum_stride, with
  // the page for each half of a q tile in sum_pages [q_tiles][2], -1: none.
  const float* q_mean;
  const std::byte* q_sums;
  int64_t q_sum_stride;
  const int32_t* sum_pages;
  int delta_tiles;
  float levels;  // of codes: 127, or 7
  bool by_page;  // one scale for the keys of a page, not four
  float scale;   // of the scores
  SageTiles tiles;
};
SageTiles SagePageTilesAt(int heads, int kv_heads, int head_dim, int q_tiles, int k_tiles, int delta_tiles,
                          void* base, size_t* bytes);
Launch SageQuantizePages(const SagePagesArgs&, Stream);

// K or V in pages of 64 rows, bf16 [64][head_dim] of one KV head each. Strides are in bytes, multiples of a
// row; `bytes` are those of the memory, all of which may be read.
struct KvPages {
  const void *pool, *open;
  int64_t page_stride, head_stride, open_stride, open_head_stride;
  int64_t pool_bytes, open_bytes;
};

// Two kinds of rows a page: a query sees the own page of its position as page `own + position / 64` and every
// page p before it as page `older + p`.
struct PageBases {
  int32_t older, own;
};

// Exact attention, bf16 in and out, sums in f32. Sequences as SageShape has them; K and V are packed rows or,
// where page_table is given, pages: key t of sequence s lies in page page_table[s][t / 64], those of its last
// page in page open_index[s] of `open`. What lies behind the last key may be anything, NaN too.
//
// Or, where `bases` is given, `k` and `v` are [pages, kv_heads, 64, head_dim] without gaps, k_rows counts
// their rows over all KV heads, and a sequence has two pages for some positions (PageBases); rows behind the
// last key must be finite. Tiles of queries then begin at positions that are multiples of 128: q_tiles and
// q_tile_ends count ceil(keys / 128) - floor(first query / 128) a sequence. REQUIRES causal.
struct ExactAttentionArgs {
  int sequences, heads, kv_heads;
  int head_dim;  // 64 or 128
  int q_tiles;   // sum over sequences of ceil(queries / 128)
  const int32_t *q_offsets, *k_offsets, *q_tile_ends;
  bool causal;
  const void* q;           // bf16 [q_rows][heads][head_dim], row stride q_stride elements
  const void *k, *v;       // bf16 [k_rows][kv_heads][head_dim], or as `bases` says, or null
  const PageBases* bases;  // [sequences], or null
  int64_t q_stride, k_stride, v_stride;
  int q_rows, k_rows;
  KvPages k_pages, v_pages;
  const int32_t* page_table;  // [sequences, max_pages], or null
  const int32_t* open_index;  // [sequences], or null: sequence s has index s
  int max_pages;
  bool own_only = false;  // with `bases`: no page but a query's own
  void* out;              // bf16 [q_rows][heads][head_dim]
  int64_t out_stride;
  float* lse;   // [q_rows][heads]: ln of the sum of exp(score), -infinity of a row that sees nothing; or null
  float scale;  // of the scores
};
Launch ExactAttention(const ExactAttentionArgs&, Stream);

}  // namespace nibble::cuda
