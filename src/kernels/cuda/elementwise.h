// SPDX-License-Identifier: Apache-2.0
// Floor 4. The ops of a layer that are neither products nor attention, in f32. Definitions:
// kernels/ref/elementwise.h. A row's sums have one order that depends on its length alone.
#pragma once
#include "kernels/args.h"
#include "kernels/cuda/stream.h"

namespace nibble::cuda {

// Vectors of k elements: `inner` of them lie inner_stride apart in each of `rows` rows.
struct NormArgs {
  const float* x;
  const float* weight;  // [k]
  float* y;             // may be x
  int64_t x_stride, y_stride, x_inner_stride, y_inner_stride;
  int rows, inner, k;
  float eps;
};
Launch Norm(const NormArgs&, Stream);

// x = x * scale + shift of x [rows, heads, head_dim]; scale and shift [heads / repeat, head_dim], null: 1, 0.
struct AffineArgs {
  float* x;
  const float *scale, *shift;
  int64_t x_stride, head_stride;
  int rows, heads, head_dim, repeat;
};
Launch Affine(const AffineArgs&, Stream);

// The table as the CUDA backend packs it: float rows [vocab, k], or the blocks of linear_layout.h for s8.
Launch Embed(const EmbedArgs&, Stream);
Launch RopeTable(const RopeTableArgs&, Stream);
Launch Rope(const RopeArgs&, Stream);
Launch Glu(const GluArgs&, Stream);
Launch LogSumExp(const LogSumExpArgs&, Stream);

struct ArgMaxArgs {
  const float* x;  // [rows, k], row stride x_stride
  int32_t* ids;    // [rows]: the lowest index of the maximum, -1 for a row that holds NaN or infinity
  int64_t x_stride;
  int rows, k;
};
Launch ArgMax(const ArgMaxArgs&, Stream);

}  // namespace nibble::cuda
