// SPDX-License-Identifier: Apache-2.0
// Floor 4. Attention over pages of any codec, in every arithmetic of a recipe: the complete path, for prompts
// and decode rows alike. Definition: kernels/ref/attention.h. A block takes some query rows of a segment, all
// of whose pages it visits in order with an online softmax; integers are held in f32, which is exact.
//
// A row's bytes depend neither on the other rows of the call nor on how a prompt was cut.
#pragma once
#include "kernels/cuda/pages.h"
#include "kernels/cuda/stream.h"

namespace nibble::cuda {

inline constexpr int kMaxAttentionHeadDim = 256, kMaxAttentionGroup = 64;

// SAS's part of nibble::AttentionCounters, added to on the device.
struct SasCounters {
  unsigned long long rows, dropped, dropped_mass;
};

// What smoothing takes off K and Q of sealed pages. The plan's vectors, else those of the side records.
struct Means {
  const float *k, *q;  // [kv_heads, head_dim], [heads, head_dim] of the plan, or null
  int k_record,
      q_record;  // byte offsets of the mean of K in a sequence's record, of the sum of Q in a page's; -1
};

struct PageAttentionArgs {
  PagedKv kv;
  const float* q;  // [rows, heads, head_dim], row stride q_stride
  float* out;      // the same, row stride out_stride
  int64_t q_stride, out_stride;
  int heads, most_rows;  // of a segment
  float scale;
  int64_t window;  // 0: none
  Arithmetic arithmetic;
  Means means;
  bool skip_dense;  // not the first KvSegment::dense_rows of a segment, which another kernel has
  bool selecting;   // only those
  SasCounters* counters;
};
Launch PageAttention(const PageAttentionArgs&, Stream);

// smooth=qk: adds the step's queries to the running sums of their sequences, in token order.
Launch SumQueries(const PageAttentionArgs&, Stream);

}  // namespace nibble::cuda
