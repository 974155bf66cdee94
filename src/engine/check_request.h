// SPDX-License-Identifier: Apache-2.0
// Floor 8. What a model can be asked for. kInvalidArgument names what cannot be and the numbers.
#pragma once
#include <span>

#include "engine/serving.h"

namespace nibble {

// When the prompt is empty, an id lies outside the vocabulary, or prompt + new tokens exceed the context.
Status CheckPrompt(std::span<const int32_t> prompt, const ModelConfig& config, int64_t new_tokens);

// Everything but the room for it.
Status CheckRequest(const ServingRequest& request, const ModelConfig& config);

}  // namespace nibble
