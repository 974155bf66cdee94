// SPDX-License-Identifier: Apache-2.0
// Floor 5. The full scan of float tensors for NaN and infinity, on request: it reads every byte.
#pragma once
#include "base/result.h"
#include "io/weights.h"

namespace nibble::io {

// kCorrupt naming the tensor, the index of the first value that is not finite, and the value. Tensors of
// integers pass.
Status CheckFinite(const TensorInfo& tensor);

// CheckFinite of every tensor, and that no scale (name ending in "_scale", f16) is negative.
Status CheckWeights(const Weights& weights);

}  // namespace nibble::io
