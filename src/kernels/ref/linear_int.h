// SPDX-License-Identifier: Apache-2.0
// Floor 4. The definition of the integer matmuls (kI4Group, kI4Channel, kI8Channel): every weight is decoded
// to an integer, products are summed in int64, and the end is float in a fixed order of operations, which
// every kernel must match to the bit.
#pragma once
#include "kernels/args.h"

namespace nibble::ref {

// The weight (n, k) of a packed integer matrix without its float scale: (u - z) * s2, u - z, or w.
int32_t IntWeight(const weight::PackedWeight& w, int n, int k);

void LinearInt(const LinearArgs& args);

}  // namespace nibble::ref
