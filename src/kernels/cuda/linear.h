// SPDX-License-Identifier: Apache-2.0
// Floor 4. Integer matmuls on Hopper: W4A8 per group of 128, W4A8 per channel and W8A8, from 1 row on, and
// the per-token quantization that feeds them. Defined by kernels/ref/linear_int.h and quantize_rows.h:
// integer sums are exact and the float end keeps their order of operations, so f32 results are equal to the
// bit and bf16 results are their rounding.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cuda/linear_layout.h"
#include "kernels/cuda/stream.h"

namespace nibble::cuda {

enum class Real : uint8_t { kF32, kBF16 };

// q[m,k] = rne(x[m,k] / scale[m]) in -127..127, as nibble::QuantizeRowsArgs. The kernels take unsigned
// weights, so all they need for zero points is the sum of a whole row.
struct QuantizeRowsArgs {
  const void* x;  // [rows, k] of `type`, row stride x_stride elements, 16-byte aligned rows
  Real type;
  int8_t* q;         // [rows, k], row stride k
  float* scale;      // [rows]: amax / 127; 0 for a zero row, NaN for one that holds infinity or NaN
  int32_t* row_sum;  // [rows]: sum of q over all k, exact
  int64_t x_stride;
  int rows, k;  // k a multiple of 16
};
Launch QuantizeRows(const QuantizeRowsArgs&, Stream);

// How the work is cut: tiles of 256 outputs x `tokens` rows, k in `split` parts that the blocks of a cluster
// add up in each other's shared memory. kFew: the kernel for up to 16 rows and 4-bit weights, which gives
// every block an equal share of the outputs and all of k; `depth` is that of its warps' rings.
struct LinearPlan {
  enum Kind : uint8_t { kTiles, kFew };
  int tokens = 0;  // 16, 32, 64 or 128, for kFew 8 or 16; 0: the launcher chooses all
  int split = 1;   // 1..8, for kFew 1
  Kind kind = kTiles;
  int depth = 0;  // of kFew: 3, 4, 6 or 8
};

// y[m,n] = float(sum_k w[n,k] x[m,k]) * (scale_w[n] * scale_x[m]) (+ bias[n]) (+ y[m,n])
struct LinearIntArgs {
  LinearWeight w;
  const int8_t* x;         // [rows, k], 16-byte aligned
  const float* x_scale;    // [rows]
  const int32_t* row_sum;  // [rows]
  const float* bias;       // [n] or null
  void* y;                 // [rows, n] of `type`, 16-byte aligned; y_stride a multiple of 8
  Real type;
  int64_t y_stride;
  int rows;         // 1 and up
  bool accumulate;  // y += instead of y =; the sum is rounded once
  // Programmatic launch: the kernel may start, and read weights, before the kernel ahead of it in the stream
  // has ended; it waits for that one before it touches x, x_scale, row_sum or y.
  bool early_start;
  LinearPlan plan;
};

// n a multiple of 8; k a multiple of 128 (kW4A8Group) or 16. Refuses anything else with the rule.
Launch LinearInt(const LinearIntArgs&, Stream);

// What LinearInt takes when `plan` is left to it, on a card of `processors` multiprocessors.
LinearPlan PlanLinear(weight::Storage, int n, int k, int rows, int processors);

// Storage form in device memory -> layout, on the device. `to` has LinearBytes(...) bytes, 128-byte aligned.
Launch PackLinear(const weight::WeightView&, std::byte* to, Stream);

}  // namespace nibble::cuda
