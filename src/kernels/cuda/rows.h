// SPDX-License-Identifier: Apache-2.0
// Floor 4. Ops whose rows go straight into a product: each leaves beside its f32 rows what the product reads,
// INT8 codes or bf16, so that no kernel runs between the two. The values are those of Norm, Glu, WidenBf16,
// QuantizeRows and RoundToBf16. On Hopper they start early (programmatic.cuh).
#pragma once
#include "kernels/cuda/dense.h"
#include "kernels/cuda/elementwise.h"

namespace nibble::cuda {

// Of rows [rows, k]: dense, k a multiple of 16.
struct RowCopies {
  int8_t* q = nullptr;         // with scale and row_sum as QuantizeRowsArgs says; null: not wanted
  float* scale = nullptr;      // [rows]
  int32_t* row_sum = nullptr;  // [rows]
  uint16_t* bf16 = nullptr;    // null: not wanted
  bool any() const { return q != nullptr || bf16 != nullptr; }
};

inline constexpr int kMostRowValues = 16384;  // k of the three

Launch NormRows(const NormArgs&, const RowCopies&, Stream);  // inner is 1
Launch GluRows(const GluArgs&, const RowCopies&, Stream);

// The copy in bf16 is x itself and not made.
Launch WidenRows(const WidenArgs&, const RowCopies&, Stream);

}  // namespace nibble::cuda
