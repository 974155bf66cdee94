// SPDX-License-Identifier: Apache-2.0
// Floor 4. Decode attention straight from the pages of the KV cache (docs/formats/kv_pages.md): one to eight
// query rows a sequence against all it has seen. Definition: kernels/ref/attention.h with Arithmetic{}. For
// each entry (a sequence, or a part of one whose rows lie in one page) and KV head, rows 0 .. n - 1 stand at
// positions length - n .. length - 1; row i sees sealed pages through the codec and the tokens of the open
// page up to its own, raw. Rows whose positions lie in two pages are two entries.
//
// Work is cut into chunks of `chunk_pages` pages by absolute position; within a chunk and between chunks
// partial results are merged in a fixed order, without atomics on floats. So an entry's bytes depend neither
// on the other entries of the batch nor on max_pages, and without a window a row's do not depend on the other
// rows of its entry. (With a window, rows that see one chunk more change the order in which sums of chunks
// are added.) Blocks read `lengths` on the device: a captured launch can be replayed as sequences grow.
//
// Arithmetic: codes enter the f16 tensor core as they are, sums are f32, the affine of the codes is folded
// out; weights (and weights x scale of a token) are f16, for bf16 pages two bf16 parts.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cuda/stream.h"
#include "quant/kv/codec.h"

namespace nibble::cuda {

inline constexpr int kDecodeChunkPages = 16;  // 1024 tokens

// K or V. A page and an open page start at multiples of 16 bytes: strides are in bytes, multiples of 16, and
// a page's stride covers its bytes rounded up to 16. Multiples of 32 are read faster: the L2 sends 32 bytes.
struct DecodeSide {
  kv::CodecId codec;
  const std::byte* pool;  // page p of KV head h: pool + p * page_stride + h * head_stride
  int64_t page_stride, head_stride;
  const std::byte* open;  // of entry b: open + open_index[b] * open_stride + h * open_head_stride,
  int64_t open_stride,
      open_head_stride;  // [64, head_dim] of the codec's raw type; after the length: anything
};

struct DecodeArgs {
  const uint16_t*
      q;          // bf16 [rows of all entries, heads, head_dim], row stride q_stride elements; |q| < 65504
  uint16_t* out;  // bf16, the same shape, row stride out_stride; not q
  float* lse;     // [rows of all entries, heads]: ln of the sum of exp(score), or null
  DecodeSide k, v;
  const int32_t* page_table;  // [batch, max_pages]: pages of length / 64 in order; below the window: anything
  const int32_t* open_index;  // [batch], or null: entry b has index b
  const int32_t* lengths;     // [batch]: tokens, the rows of the call included; 0: the entry is skipped
  const int32_t*
      row_begin;    // [batch + 1]: entry b has rows row_begin[b] .. row_begin[b + 1]; null: b * rows ..
  void* workspace;  // DecodeWorkspaceBytes(...); zeroed once, every launch leaves it ready for the next
  int64_t q_stride, out_stride;
  int batch, max_pages;  // sealed pages a sequence may have: below 400 chunk_pages
  int rows;              // of an entry, at most: 1 .. 8
  int heads, kv_heads;   // heads = kv_heads * group, group 1 .. 16
  int head_dim;          // a multiple of 16 up to 256: 64, 128 and 256 read pages by 16 bytes, others by rows
  int window;            // a query at p sees positions > p - window; 0: no window
  float scale;           // of the scores
  int chunk_pages = kDecodeChunkPages;  // 1 .. 32: part of the definition of a result's last bits
  // On Hopper: the kernel may start before the one ahead of it in the stream has ended and reads tables and
  // lengths; it waits for that one before it touches pages, q or out.
  bool early_start = false;
};

// Of arguments that AttentionDecode takes.
int64_t DecodeWorkspaceBytes(const DecodeArgs&);

// K and V of one codec: f16, bf16, int8-token, int4-token, flashq4, flashq2, flashq2-search or qaq. Others
// are refused. sm_80 and later; at most 53 KB of shared memory a block at head_dim <= 128, 98 KB above; qaq
// 57 and 72.
Launch AttentionDecode(const DecodeArgs&, Stream);

}  // namespace nibble::cuda
