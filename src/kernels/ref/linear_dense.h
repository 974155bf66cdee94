// SPDX-License-Identifier: Apache-2.0
// Floor 4. The definition of the dense matmul: scalar, in double, never optimised.
#pragma once
#include "kernels/args.h"

namespace nibble::ref {

// y [rows, n] of LinearArgs in double: the columns of the panels asked for, others untouched. Reads the
// packed bytes, and a.y where a.accumulate.
void LinearDense(const LinearArgs& a, double* y);

// Element (row, k) of a packed weight of any layout but the 4-bit ones.
double PackedElement(const weight::PackedWeight& w, int row, int k);

}  // namespace nibble::ref
