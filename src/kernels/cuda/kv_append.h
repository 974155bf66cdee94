// SPDX-License-Identifier: Apache-2.0
// Floor 4. New rows of K and V into the cache, and full pages through their codec. The order within a layer
// (docs/engine.md): copy all open rows, write all rows, seal.
#pragma once
#include "kernels/cuda/pages.h"
#include "kernels/cuda/stream.h"

namespace nibble::cuda {

struct AppendArgs {
  PagedKv kv;
  const float *k, *v;  // [rows, kv_heads, head_dim], RoPE applied
  int64_t k_stride, v_stride, k_head_stride, v_head_stride;
  unsigned long long* clamped;  // values clamped in INT8 open pages are added here
};

// Open rows of a page that this step completes in scratch: KvSegment::copy_from.
Launch CopyOpenRows(const PagedKv&, Stream);
Launch AppendRows(const AppendArgs&, Stream);

// A step of one row a segment, in order, and float open pages: Rope of q and k in place and AppendRows in one
// launch. On Hopper it starts early (programmatic.cuh).
struct RopeAppendArgs {
  AppendArgs append;  // k as it is before the rotation
  float *q, *k;       // [rows, heads, head_dim], [rows, kv_heads, head_dim] dense in a row; strides of rows:
  int64_t q_stride;   // k's is append.k_stride
  const float *cos, *sin;  // [rows, head_dim / 2]
  uint16_t* q_bf16;        // [rows, heads, head_dim] dense: q rounded, or null
  int heads;
};
Launch RopeAndAppend(const RopeAppendArgs&, Stream);

// Which heads get 2 bits, where a page is the first of its sequence (backend/head_choice.h): as `planned`
// says
// ([kv_heads], 1: 2 bits), or with null the `two_bit` heads of lowest priority. K or V; before SealPages.
Launch ChooseHeads(const PagedKv&, bool is_v, int two_bit, const uint8_t* planned, Stream);

// Pages that the step completed, K and V. `mean` (a byte offset in the sequence's record; -1: none) receives
// the mean of the first page's raw rows of K.
Launch SealPages(const PagedKv&, int mean, Stream);

// The same of several layers in one launch, where nothing hangs on it before the step's end: decode steps of
// codecs that need nothing else done (no choice of heads, no mean, no records).
inline constexpr int kMostSealLayers = 64;
struct SealLayersArgs {
  PagedKv kv;  // of one of them: all but the addresses below
  struct Layer {
    std::byte *k_pool, *v_pool, *k_tail, *v_tail;
  };
  Layer layers[kMostSealLayers];
  int count;
};
Launch SealLayers(const SealLayersArgs&, Stream);

}  // namespace nibble::cuda
