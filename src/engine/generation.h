// SPDX-License-Identifier: Apache-2.0
// Floor 8. The step loop of one Generate call: admits requests while pages last, mixes one row a decoding
// sequence with chunks of waiting prompts, samples, stops. A step that only decodes allocates nothing but the
// answer's text.
#pragma once
#include <atomic>
#include <span>
#include <vector>

#include "engine/engine.h"

namespace nibble {

struct GenerationContext {
  Model& model;
  const Tokenizer& tokenizer;
  Backend& backend;
  const AttentionRecipe& recipe;
  const EngineOptions& options;
  const Plan* plan;  // or null
};

// kInvalidArgument when the prompt is empty, an id lies outside the vocabulary, or prompt + new tokens exceed
// the model's context.
Status CheckPrompt(std::span<const int32_t> prompt, const ModelConfig& config, int64_t new_tokens);

Result<std::vector<Completion>> RunGeneration(const GenerationContext& context,
                                              std::span<const Request> requests,
                                              const std::atomic<bool>* cancel);

}  // namespace nibble
