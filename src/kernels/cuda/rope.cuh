// SPDX-License-Identifier: Apache-2.0
// Floor 4. The rotation of one pair, rounded the same wherever it is compiled.
#pragma once

namespace nibble::cuda {

struct Pair {
  float low, high;
};
__device__ __forceinline__ Pair Rotate(Pair x, float c, float s) {
  return {__fmaf_rn(x.low, c, -__fmul_rn(x.high, s)), __fmaf_rn(x.high, c, __fmul_rn(x.low, s))};
}

}  // namespace nibble::cuda
