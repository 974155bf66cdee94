// SPDX-License-Identifier: Apache-2.0
// Floor 4. SAS, the softmax of TurboAttention (arXiv 2412.08585, section 3.3), of one score: what
// kernels/cpu/sas.h computes of sixteen.
#pragma once
#include "recipe/arithmetic.h"

namespace nibble::cuda {

inline constexpr float kSasLowest = -16;

// SAS without a threshold for x <= 0: 0 below kSasLowest, NaN for NaN.
__device__ inline float SasExp(const SasPolynomial& c, float x) {
  constexpr float kPowers[16] = {1.0f,           3.67879441e-1f, 1.35335283e-1f, 4.97870684e-2f,
                                 1.83156389e-2f, 6.73794700e-3f, 2.47875218e-3f, 9.11881966e-4f,
                                 3.35462628e-4f, 1.23409804e-4f, 4.53999298e-5f, 1.67017008e-5f,
                                 6.14421235e-6f, 2.26032941e-6f, 8.31528719e-7f, 3.05902321e-7f};
  const float y = c.base2 ? __fmul_rn(-x, 1.44269504f) : -x;
  const float n = floorf(fminf(fmaxf(y, 0.0f), c.base2 ? 24.0f : 15.0f)), t = y - n;
  float p = __fmaf_rn(c.c3, t, c.c2);
  p = __fmaf_rn(p, t, c.c1);
  p = __fmaf_rn(p, t, c.c0);
  const float power = c.base2 ? exp2f(-n) : kPowers[int(n)];
  return x < kSasLowest ? 0.0f : p * power;
}

}  // namespace nibble::cuda
