// SPDX-License-Identifier: Apache-2.0
// Floor 4. From rows of logits to tokens, as engine/sampler.h says. Weights exp((x - max) / temperature) are
// rounded to multiples of 2^-44, so that their sums are exact in any order: a token differs from the CPU's,
// which adds doubles up, where a bound falls into that rounding (about one draw in 10^8), or where weights
// are below 2^-45 of the greatest, which nobody draws here.
#pragma once
#include <cstdint>

#include "kernels/args.h"
#include "kernels/cuda/stream.h"

namespace nibble::cuda {

struct DrawArgs {
  float* x;                    // [count, k], row stride x_stride; changed in place as the rows say
  const DrawRow* rows;         // [count]
  const LogitChange* changes;  // of all rows
  int32_t* ids;                // [count]: -1 for a row that holds NaN or infinity
  void* workspace;             // DrawWorkspaceBytes(count, k), 16-byte aligned
  int64_t x_stride;
  int count, k;  // k at most 2^20
};
int64_t DrawWorkspaceBytes(int count, int k);
Launch Draw(const DrawArgs&, Stream);

}  // namespace nibble::cuda
