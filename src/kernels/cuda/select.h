// SPDX-License-Identifier: Apache-2.0
// Floor 4. Decode rows that select the tokens they read (recipe/selection.h), and what is kept beside sealed
// pages for them. Definition: kernels/ref/select.h. One block a row and KV head, after H2O a sequence and KV
// head; all arithmetic is f32, as on the CPU.
#pragma once
#include "kernels/cuda/pages.h"
#include "kernels/cuda/stream.h"

namespace nibble::cuda {

// What selecting rows read, as nibble::AttentionCounters; added to on the device.
struct SelectCounters {
  unsigned long long rows, tokens, scalars, bytes, fallbacks;
};

struct SelectArgs {
  PagedKv kv;
  const float* q;  // [rows, heads, head_dim], row stride q_stride
  float* out;      // the same, row stride out_stride
  int64_t q_stride, out_stride;
  int rows, heads;
  float scale;
  int64_t window;  // of the layer; 0: none
  SelectKind kind;
  WindowParams keep;               // of kWindow
  H2oParams h2o;                   // of kH2o
  const SparqParams* sparq;        // of kSparq: [kv_heads]
  int v_sum, k_copy, h2o_weights;  // offsets in a page's record: recipe/side_layout.h
  TokenBytes k_bytes, v_bytes;
  std::byte* work;  // SelectWorkBytes(...)
  int64_t tokens;   // that a row may see, as SelectWorkBytes was told
  SelectCounters* counters;
};

int64_t SelectWorkBytes(int64_t tokens, int group);
Launch SelectAttention(const SelectArgs&, Stream);

// SparQ's records of the pages that this step completed: the d-major copy of the raw keys, and the running
// sum of V. After the pages are sealed.
Launch SealRecords(const PagedKv&, KeyCopy format, int v_sum, int k_copy, Stream);

}  // namespace nibble::cuda
