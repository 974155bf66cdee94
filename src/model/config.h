// SPDX-License-Identifier: Apache-2.0
// Floor 7. config.json and generation_config.json of a Hugging Face folder, checked: every used field typed
// and ranged (limits: docs/formats/model_folder.md). Kernels and loader read shapes from here only.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "kernels/args.h"

namespace nibble {

enum class RopeScaling : uint8_t { kNone, kLinear, kLlama3 };

struct RopeConfig {
  double theta = 10000.0;
  RopeScaling scaling = RopeScaling::kNone;
  double factor = 1.0;                                   // linear, llama3
  double low_freq_factor = 1.0, high_freq_factor = 4.0;  // llama3
  int64_t original_max_position = 0;                     // llama3
};

// What quantization_config says of weights that this project wrote; "" when they are floats.
struct WeightFormatConfig {
  std::string format;           // "", "w4a8-g128", "w4a8-chn", "w8a8"
  bool int8_embedding = false;  // embedding (and head) stored as s8 rows
};

struct ModelConfig {
  std::string architecture;  // "LlamaForCausalLM", as in config.json
  int layers = 0, hidden = 0, intermediate = 0, heads = 0, kv_heads = 0, head_dim = 0, vocab = 0;
  int64_t max_position = 0;
  double norm_eps = 0;
  RopeConfig rope;
  Activation activation = Activation::kSilu;
  bool tied_head = false;
  bool qkv_bias = false;                // Qwen2 (always), Llama attention_bias (q, k, v and o)
  bool out_bias = false;                // Llama attention_bias
  bool mlp_bias = false;                // Llama mlp_bias
  int64_t sliding_window = 0;           // 0: none
  std::vector<bool> layer_uses_window;  // [layers]
  int32_t bos_token = -1;               // -1: none
  std::vector<int32_t> eos_tokens;      // config.json and generation_config.json together, unique
  WeightFormatConfig weights;
  std::vector<std::string> notes;  // what was ignored or capped, one line each, for the user
};

// Reads DIR/config.json (required) and DIR/generation_config.json (optional).
Result<ModelConfig> ReadModelConfig(const std::string& dir);
Result<ModelConfig> ParseModelConfig(JsonRef config, const JsonRef* generation_config);

}  // namespace nibble
