// SPDX-License-Identifier: Apache-2.0
// Floor 4. The 4-bit integer matmul for one to four rows, by dot products of four bytes: at that size only
// the weights' bytes count, and no tensor core has to be waited for.
#pragma once
#include "kernels/cuda/linear.h"

namespace nibble::cuda {

inline constexpr int kMostDotRows = 4;

// As LinearInt, for f32 results of kW4A8Group and kW4A8Channel in rows 1 .. kMostDotRows; `plan` is not
// looked at. The same bits.
Launch LinearDot(const LinearIntArgs&, Stream);

// The same of one row that has yet to be made: every block makes its codes for itself, so that no kernel runs
// in between. The values are those of NormRows or WidenRows (kernels/cuda/rows.h).
struct DotRow {
  const float *x, *weight;  // [k] RMS norm of x by weight, or null:
  const uint16_t* bf16;     // [k] as f32
  float eps;
  float* y;  // [k] receives the row; not x
};
inline constexpr int kMostDotRowInputs = 8192;
// `a.x`, its scales and sums are not looked at; a.rows is 1.
Launch LinearDotRow(const LinearIntArgs& a, const DotRow&, Stream);

}  // namespace nibble::cuda
