// SPDX-License-Identifier: Apache-2.0
// Floor 7. Inverse frequencies of rotary embeddings, rounded as transformers rounds them (all steps in f32).
#pragma once
#include <vector>

#include "model/config.h"

namespace nibble {

// [head_dim / 2]. Scaling "linear": f / factor. "llama3" (Llama 3.1): wavelengths above the low-frequency
// bound are divided by factor, those below the high-frequency bound kept, the rest blended.
std::vector<float> InverseFrequencies(const RopeConfig& rope, int head_dim);

}  // namespace nibble
