// SPDX-License-Identifier: Apache-2.0
// Floor 4. Activations of one value.
#pragma once
#include "kernels/args.h"

namespace nibble::cuda {

__device__ __forceinline__ float Activate(Activation activation, float x) {
  switch (activation) {
    case Activation::kSilu:
      return x / (1 + expf(-x));
    case Activation::kGelu:
      return x * 0.5f * erfcf(-x * 0.70710678f);
    default:
      return x * 0.5f * (1 + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
  }
}

}  // namespace nibble::cuda
