// SPDX-License-Identifier: Apache-2.0
// Floor 4. y = x w^T over float weights, and bf16 activations. Definition: kernels/ref/linear_dense.h.
#pragma once
#include "kernels/args.h"
#include "kernels/cuda/stream.h"

namespace nibble::cuda {

struct DenseArgs {
  const std::byte* w;  // [n, k] elements of `type`
  DType type;          // kF32, kF16 or kBF16
  const float* x;      // [rows, k], row stride x_stride
  const float* bias;   // [n] or null
  float* y;            // [rows, n], row stride y_stride
  int64_t x_stride, y_stride;
  int rows, n, k;
  bool round_x;     // to bf16 first: MatmulArith::kBF16
  bool accumulate;  // y += instead of y =
};

// Every output is one chain of fused multiply-adds with k ascending, then the bias, then the old value: the
// same bits for every number of rows, and those of the CPU's kernels with fused multiply-add.
Launch Dense(const DenseArgs&, Stream);

// The same for bf16 inputs and weights on tensor cores, sums in f32: instructions of 16 inputs in ascending
// order, so the bits do not depend on the number of rows either. k a multiple of 8, rows 16-byte aligned.
struct DenseBf16Args {
  const uint16_t* w;  // [n, k]
  const uint16_t* x;  // [rows, k]
  const float* bias;  // [n] or null
  float* y;           // [rows, n], row stride y_stride
  int64_t y_stride;
  int rows, n, k;
  bool accumulate;
};
Launch DenseBf16(const DenseBf16Args&, Stream);

// to[rows, k] = x rounded to bf16; k a multiple of 4.
struct RoundArgs {
  const float* x;  // row stride x_stride
  uint16_t* to;
  int64_t x_stride;
  int rows, k;
};
Launch RoundToBf16(const RoundArgs&, Stream);

// to[rows, k] = x [rows, k] bf16 as f32, row stride to_stride.
struct WidenArgs {
  const uint16_t* x;
  float* to;
  int64_t to_stride;
  int rows, k;
};
Launch WidenBf16(const WidenArgs&, Stream);

}  // namespace nibble::cuda
