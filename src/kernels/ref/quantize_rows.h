// SPDX-License-Identifier: Apache-2.0
// Floor 4. The definition of per-token INT8 activations.
//
// Of a row: amax = max |x|, inverse = f32(127 / amax), scale = f32(amax / 127), q = rne(f32(x * inverse))
// clamped to -127..127, group_sum = sums of q over each 128 inputs. rne rounds to nearest, ties to even.
// Two kinds of rows are special:
//   amax < 2^-119         scale 0, q 0: 127 / amax or the scale would leave the normal f32 numbers. Includes
//   0. an infinity or a NaN  scale NaN, q 0: the products of this row become NaN, never a plausible number.
#pragma once
#include "kernels/args.h"

namespace nibble::ref {

void QuantizeRows(const QuantizeRowsArgs& args);

}  // namespace nibble::ref
