// SPDX-License-Identifier: Apache-2.0
// Shorthands of the tests of the SparQ definition.
#pragma once
#include <cmath>

#include "kernels/ref/dense.h"
#include "kernels/ref/sparq.h"
#include "tests/support/ref_cases.h"

namespace nibble::ref {

inline SparqSpec Spec(int r, int k, int local) {
  SparqSpec spec;
  spec.r = r;
  spec.k = k;
  spec.local = local;
  return spec;
}

inline SparqStep Decode(View q, View k, View v, const SparqSpec& spec) {
  return SparqDecode(q, k, k, v, spec);
}

inline AttentionResult Dense(View q, View k, View v) {
  return DenseAttention(q, k, v, 1 / std::sqrt(double(q.dim)), Mask::kFull);
}

}  // namespace nibble::ref
