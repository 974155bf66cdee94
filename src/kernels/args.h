// SPDX-License-Identifier: Apache-2.0
// Floor 4. What kernels take: raw pointers and sizes, one struct an op, a shape on every pointer. No Tensor,
// no model, no allocation. Strides are in elements. A row's result never depends on the other rows of the
// call.
#pragma once
#include <cstddef>
#include <cstdint>

#include "quant/kv/codec.h"
#include "quant/weight/format.h"

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

// Attention of the queries of one sequence that lie in one page, for one KV head. Query row i stands at
// position `position + i` and sees the sealed pages (through the codec) and raw tokens 0 .. (position + i) %
// page_tokens. Tiles (pages in list order, then the raw page) are visited in order with an online softmax, so
// the result of a row does not depend on `rows`.
struct AttentionArgs {
  const float* q;                   // [rows, group, head_dim], row stride q_stride
  float* out;                       // [rows, group, head_dim], row stride out_stride
  const std::byte* const* k_pages;  // [pages] of this KV head
  const std::byte* const* v_pages;  // [pages]
  const int32_t* page_list;         // [list_len] indices into k_pages in ascending order, or null for all
  const std::byte* k_raw;           // [page_tokens, head_dim] of the K codec's raw type
  const std::byte* v_raw;           // [page_tokens, head_dim] of the V codec's raw type
  float* scratch;                   // AttentionScratchFloats(...) floats, 64-byte aligned
  int64_t q_stride, out_stride;
  int64_t position;
  int64_t window;  // a query at p sees positions > p - window; 0: no window
  int rows, group, pages, list_len;
  kv::PageShape page;
  kv::CodecId k_codec, v_codec;
  float scale;
};

// K tile, V tile, scores, accumulators and per-row softmax state for one call.
constexpr int64_t AttentionScratchFloats(int rows, int group, kv::PageShape page) {
  return int64_t{2} * page.tokens * page.head_dim +
         int64_t{rows} * group * (page.tokens + page.head_dim + 32) + 256;
}

struct LogSumExpArgs {  // per row: max, log(sum(exp(x)))
  const float* x;       // [rows, k]
  float* max;           // [rows]
  double* lse;          // [rows], in double: quality figures depend on it
  int32_t* argmax;      // [rows]: lowest index of the maximum
  int64_t x_stride;
  int rows, k;
};

}  // namespace nibble
