// SPDX-License-Identifier: Apache-2.0
// Floor 7. The float weights of one decoder layer, which the passes rewrite, and of what surrounds the
// layers.
#pragma once
#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "io/weights.h"
#include "model/config.h"
#include "model/qoq/matrix.h"
#include "model/qoq/memory_weights.h"

namespace nibble::qoq {

enum LinearId : int { kQ, kK, kV, kO, kGate, kUp, kDown, kLinears };
inline constexpr std::array<std::string_view, kLinears> kLinearNames = {
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj",    "mlp.up_proj",      "mlp.down_proj"};

// y = x w^T + bias.
struct FloatLinear {
  Matrix w;                      // [n, k]
  std::vector<float> bias = {};  // [n], or empty
};

struct Layer {
  std::array<FloatLinear, kLinears> linear;
  std::vector<float> input_norm, post_attention_norm;  // [hidden]
  std::vector<float> q_norm, k_norm;                   // [head_dim] or empty
};

// What stands before and after the layers.
struct Ends {
  Matrix embedding;               // [vocab, hidden]
  Matrix head;                    // [vocab, hidden]; no rows while it is the embedding (tied)
  std::vector<float> final_norm;  // [hidden]
};

std::string LayerPrefix(int index);  // "model.layers.3."

// kCorrupt naming the tensor and what is wrong: absent, of another shape or type, or with a value that is not
// finite (then also its row and column).
Result<Layer> ReadLayer(const io::Weights& weights, const ModelConfig& config, int index);
Result<Ends> ReadEnds(const io::Weights& weights, const ModelConfig& config);

// Tensors under their usual names.
void AddLayer(Layer layer, int index, MemoryWeights* weights);
void AddEnds(Ends ends, MemoryWeights* weights);

}  // namespace nibble::qoq
