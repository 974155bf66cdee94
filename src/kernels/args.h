// SPDX-License-Identifier: Apache-2.0
// Floor 4. What kernels take: raw pointers and sizes, one struct an op, a shape on every pointer. No Tensor,
// no model, no allocation. Strides are in elements. A row's result never depends on the other rows of the
// call.
#pragma once
#include <cstddef>
#include <cstdint>

#include "quant/kv/codec.h"
#include "quant/weight/format.h"
#include "recipe/arithmetic.h"
#include "recipe/selection.h"

namespace nibble {

enum class MatmulArith : uint8_t { kF32, kBF16 };  // kBF16: x is rounded to bf16, products summed in f32

// Per-token symmetric INT8 activations: x[m,k] ~ q[m,k] * scale[m].
struct QuantizeRowsArgs {
  const float* x;      // [rows, k], row stride x_stride
  int8_t* q;           // [rows, k], values -127..127, row stride k
  float* scale;        // [rows]: amax / 127; 0 for a zero row
  int32_t* group_sum;  // [rows, ceil(k / 128)]: sum of q over each 128 inputs, exact; for zero points
  int64_t x_stride;
  int rows, k;
};

struct LinearArgs {
  weight::PackedWeight w;
  const float* x;            // [rows, k]: float layouts
  const int8_t* xq;          // [rows, k]: integer layouts, from QuantizeRows
  const float* x_scale;      // [rows]
  const int32_t* group_sum;  // [rows, ceil(k / 128)]
  const float* bias;         // [n] or null
  float* y;                  // [rows, n]
  int64_t x_stride, y_stride;
  int rows;
  int panel_begin, panel_end;  // output panels [begin, end) of 16 to compute: the unit of work split
  MatmulArith arith;
  bool accumulate;  // y += instead of y =
};

struct EmbedArgs {
  weight::PackedWeight table;  // [vocab, k] packed: one copy serves a tied head
  const int32_t* tokens;       // [rows], checked by the caller
  float* y;                    // [rows, k]
  int rows;
};

struct NormArgs {
  const float* x;       // [rows, k], row stride x_stride
  const float* weight;  // [k]
  float* y;             // [rows, k], row stride y_stride; may be x
  int64_t x_stride, y_stride;
  int rows, k;
  float eps;
};

// cos and sin of position * inv_freq, the angle rounded to f32 as transformers does.
struct RopeTableArgs {
  const int32_t* positions;  // [rows]
  const float* inv_freq;     // [head_dim / 2]
  float* cos;                // [rows, head_dim / 2]
  float* sin;                // [rows, head_dim / 2]
  int rows, head_dim;
};

struct RopeArgs {    // rotate-half: pairs (i, i + head_dim/2), in place
  float* x;          // [rows, heads, head_dim], row stride x_stride
  const float* cos;  // [rows, head_dim / 2]
  const float* sin;  // [rows, head_dim / 2]
  int64_t x_stride;
  int rows, heads, head_dim;
};

enum class Activation : uint8_t { kSilu, kGelu, kGeluTanh };

struct GluArgs {      // y = act(gate) * up
  const float* gate;  // [rows, k]
  const float* up;    // [rows, k]
  float* y;           // [rows, k]; may be gate or up
  int64_t gate_stride, up_stride, y_stride;
  int rows, k;
  Activation activation;
};

// Writes rows of f32 K or V of one KV head into a raw page (kF32, kF16 or kBF16 elements).
struct KvWriteArgs {
  const float* x;  // [rows, head_dim], row stride x_stride
  std::byte* raw;  // [page_tokens, head_dim] elements of `raw_type`
  int64_t x_stride;
  int rows, first_token, head_dim;  // rows go to tokens first_token ..
  DType raw_type;
};

struct KvSealArgs {      // a full raw page becomes a codec page
  const std::byte* raw;  // [page_tokens, head_dim] of raw_type
  std::byte* page;
  float* scratch;  // [page_tokens, head_dim]
  kv::CodecId codec;
  kv::PageShape shape;
};

// New tokens of one sequence that lie in one page. Built once a step by the cache, the same for every layer.
struct KvSegment {
  int32_t seq = 0;            // slot of the sequence, < max_seqs
  int32_t row = 0, rows = 0;  // rows of the step's activation matrix
  int32_t position = 0;       // of the first row
  int32_t dense_rows = 0;     // the first rows attend to all they may see, whatever the selection
  int32_t raw_slot = 0;    // raw page that receives and holds these rows: >= 0 tail slot, < 0 scratch ~slot
  int32_t copy_from = -1;  // tail slot whose first position % page_tokens tokens are copied in, or -1
  int32_t seal_page = -1;  // page written when this segment completes its page, or -1
  int32_t table = 0, pages = 0;  // sealed pages before this one: page_table[table .. table + pages)
};

// What approximations did, as integers, so that sums do not depend on the order of threads. What was read is
// counted for decode rows only (not for prefill), a KV head at a time, each row as if it were alone.
struct AttentionCounters {
  int64_t rows;              // decode rows, once a KV head
  int64_t tokens_read;       // K rows read, which is V rows read
  int64_t scalars_read;      // the transfer model of SparQ's appendix: reads, and writes of K, V and the mean
  int64_t bytes_read;        // of the cache, with metadata and side records
  int64_t sas_rows;          // rows of scores that SAS weighed, once a query head
  int64_t sas_dropped;       // weights below SAS's threshold
  int64_t sas_dropped_mass;  // their share of the row's weights, in 2^-32, summed over rows
  int64_t tail_clamped;      // values clamped in the INT8 open page
  int64_t tail_values;       // values written there
  int64_t dense_fallbacks;   // rows that a selection sent to dense attention
};

// Adds rows to an open page of INT8 codes (quant/kv/int8_tail.h), in token order.
struct TailAppendArgs {
  const float* x;           // [rows, head_dim], row stride x_stride
  std::byte* tail;          // kv::Int8Tail
  const std::byte* before;  // the complete tail of the page before (may be `tail`), or null; for token 0
  int64_t x_stride;
  int rows, first_token;  // rows go to tokens first_token ..
  kv::PageShape shape;
  AttentionCounters* counters;  // of the calling thread
};

struct TailSealArgs {     // a full one becomes a codec page
  const std::byte* tail;  // kv::Int8Tail
  std::byte* page;
  kv::CodecId codec;  // of the FlashQ family
  kv::PageShape shape;
};

// Sealed pages are summed in blocks of so many, by absolute position: threads can share a long context.
inline constexpr int kAttentionBlockPages = 16;

// Whether they are: arithmetic that rounds weights relative to the running maximum makes one block of all.
constexpr bool AttendsInBlocks(const Arithmetic& how) {
  return how.softmax == SoftmaxKind::kExact && !IsInteger(how.qk) && IsFloat(how.pv);
}

// Attention of the queries of one sequence that lie in one page, for one KV head. Query row i stands at
// position `position + i` and sees the sealed pages (through the codec) and raw tokens 0 .. (position + i) %
// page_tokens. Tiles (pages in list order, then the raw page) are visited in order with an online softmax, so
// the result of a row does not depend on `rows`. `arithmetic` concerns sealed pages; the raw page is f32.
struct AttentionArgs {
  const float* q;                   // [rows, group, head_dim], row stride q_stride
  float* out;                       // [rows, group, head_dim], row stride out_stride
  const std::byte* const* k_pages;  // [pages] of this KV head
  const std::byte* const* v_pages;  // [pages]
  const int32_t* page_list;         // [list_len] indices into k_pages in ascending order, or null for all
  const std::byte* k_raw;           // [page_tokens, head_dim] of the K codec's raw type, or as `tail` says
  const std::byte* v_raw;           // [page_tokens, head_dim] of the V codec's raw type, or as `tail` says
  float* scratch;                   // AttentionScratchFloats(...) floats, 64-byte aligned
  // [blocks, AttentionStateFloats(...)] of all blocks, from attention_block, or null: made by the call
  // itself.
  float* states;
  int64_t q_stride, out_stride;
  int64_t position;
  int64_t window;  // a query at p sees positions > p - window; 0: no window
  int rows, group, pages, list_len;
  kv::PageShape page;
  kv::CodecId k_codec, v_codec;
  kv::Tail tail;
  float scale;
  Arithmetic arithmetic;
  const float* k_mean;          // [head_dim] taken off K of sealed pages, q . k_mean added back; null: none
  const float* q_mean;          // [group, head_dim] taken off q, its product with K added back; null: none
  AttentionCounters* counters;  // of the calling thread, or null
};

// What a block leaves: [rows, group, head_dim] sums, then by row and head the maximum and the sum of weights.
constexpr int64_t AttentionStateFloats(int rows, int group, kv::PageShape page) {
  return int64_t{rows} * group * (page.head_dim + 2);
}

// Columns and rows of a page, scores, prepared queries, and the states of a block and of all for one call;
// then what sealed pages become in integer arithmetic: codes of K, V, q and P, their scales, and scores of
// the mean query. Each of up to 20 parts begins at a multiple of 64 bytes.
constexpr int64_t AttentionScratchFloats(int rows, int group, kv::PageShape page) {
  const int64_t entries = int64_t{rows} * group, tile = int64_t{page.tokens} * page.head_dim;
  const int64_t floats = 2 * tile + 6 * page.head_dim + entries * (page.tokens + 3 * page.head_dim + 37);
  const int64_t codes =
      (tile + page.tokens * (page.head_dim + 8) + entries * (page.head_dim + page.tokens)) / 4;
  return floats + codes + int64_t{group + 1} * page.tokens + 2 * page.head_dim + 8 + 20 * 16;
}

// Bytes of the cache that reading a token takes: its own in a sealed page, what all tokens of a page need and
// is read once a page, and its raw row in the open page.
struct TokenBytes {
  int64_t token, shared, raw;
};

// A query row that selects the tokens it reads, for one KV head. It sees positions `first` .. `position`:
// those of sealed pages through the codec, those of its own page raw. All arithmetic is f32.
struct SelectRow {
  const float* q;                   // [group, head_dim]
  float* out;                       // [group, head_dim]
  const std::byte* const* k_pages;  // [position / page.tokens] of this KV head
  const std::byte* const* v_pages;  // the same
  const std::byte* const* records;  // the same: side records, or null
  const std::byte* k_raw;           // [page_tokens, head_dim] of the K codec's raw type, or as `tail` says
  const std::byte* v_raw;           // [page_tokens, head_dim] of the V codec's raw type, or as `tail` says
  float* scratch;                   // SelectScratchFloats(...) floats, 64-byte aligned
  int64_t first, position;
  int group;
  kv::PageShape page;
  kv::CodecId k_codec, v_codec;
  kv::Tail tail;
  TokenBytes k_bytes, v_bytes;
  float scale;
  AttentionCounters* counters;  // of the calling thread
};

struct WindowArgs {
  SelectRow row;
  WindowParams window;
};

struct SparqArgs {
  SelectRow row;
  SparqParams sparq;
  int v_sum, k_copy;  // offsets in a side record: recipe/side_layout.h
};

// Rows of a sequence come one after the other, each once.
struct H2oArgs {
  SelectRow row;
  H2oParams h2o;
  // [position / page.tokens + 1] x [page.tokens]: the weight a token has received, negative when it is
  // evicted. The row sets the entry of its own position.
  float* const* scores;
  bool prefill;  // reads and weighs all it sees, evicts nothing and leaves `out` alone
};

// Work memory of a selecting row that sees `tokens` tokens. Only what a row needs is touched.
constexpr int64_t SelectScratchFloats(int64_t tokens, int group, kv::PageShape page) {
  const int64_t capacity = (tokens + 2 * page.tokens - 1) / page.tokens * page.tokens;
  return capacity * (2 * group + 4) + int64_t{page.head_dim} * (page.tokens + 2 * group + 8) + 4096;
}

struct KeyCopyArgs {     // the d-major copy of a page's keys, which ranks tokens
  const std::byte* raw;  // [page_tokens, head_dim] of raw_type, or as `tail` says
  std::byte* copy;       // [head_dim, page_tokens] in `format`, then f16 scales [head_dim, page_tokens / 32]
  float* scratch;        // [page_tokens, head_dim]
  DType raw_type;
  KeyCopy format;
  kv::PageShape shape;
  kv::Tail tail;
};

struct ValueSumArgs {     // sum = before + the rows of a sealed page, in token order
  const std::byte* page;  // of `codec`
  const float* before;    // [head_dim], or null for zeros
  float* sum;             // [head_dim]
  float* scratch;         // [page_tokens, head_dim]
  kv::CodecId codec;
  kv::PageShape shape;
};

// What a row's token is drawn by: the parameters of engine/sampler.h, in its order.
struct DrawRow {
  double uniform;                         // in [0, 1)
  float temperature;                      // 0: the greatest logit
  float top_p, min_p;                     // 1, 0: off
  int32_t top_k;                          // 0: off
  int32_t first_change = 0, changes = 0;  // of the call's changes: before anything else
};
// A logit becomes x + bias, then that over `penalty` if positive or times `penalty`, then that minus `off`.
struct LogitChange {
  int32_t id;  // each once a row
  float bias, penalty, off;
};

struct LogSumExpArgs {  // per row: max, log(sum(exp(x)))
  const float* x;       // [rows, k]
  float* max;           // [rows]
  double* lse;          // [rows], in double: quality figures depend on it
  int32_t* argmax;      // [rows]: lowest index of the maximum
  int64_t x_stride;
  int rows, k;
};

}  // namespace nibble
