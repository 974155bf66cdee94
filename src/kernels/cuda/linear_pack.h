// SPDX-License-Identifier: Apache-2.0
// Floor 4. Packing weights on the device as rows of a larger matrix.
#pragma once
#include "kernels/cuda/linear_layout.h"
#include "kernels/cuda/stream.h"

namespace nibble::cuda {

// As PackLinear of linear.h, to where `to` points, whose memory is written: the rows of `to`, the last block
// padded with zeros.
Launch PackLinearRows(const weight::WeightView&, const LinearWeight& to, Stream);

}  // namespace nibble::cuda
