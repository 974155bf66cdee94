// SPDX-License-Identifier: Apache-2.0
// Floor 7. What calibration sees: a text as windows of tokens, and a layer's attention over them. Windows are
// fed layer by layer, so that one layer's weights and activations are in memory at a time.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/config.h"
#include "model/qoq/layer.h"
#include "recipe/attention_recipe.h"
#include "text/tokenizer.h"

namespace nibble::qoq {

struct Tokens {
  std::vector<int32_t> ids;  // window after window
  int window = 0;            // tokens of each
};

// The first `tokens` tokens of the text (0: all), cut into windows that start with the begin-of-text token if
// the model has one; what is left at the end is dropped. kInvalidArgument when not even one window is full.
Result<Tokens> CutCalibration(const Tokenizer& tokenizer, const ModelConfig& config, std::string_view text,
                              int window, int64_t tokens);

// Row t is the embedding of token t.
Matrix EmbedTokens(const Matrix& embedding, std::span<const int32_t> ids);

// What attention makes of the residual stream; rows as in the stream.
struct AttentionTrace {
  Matrix input;     // [rows, hidden] after the norm
  Matrix q;         // [rows, heads * head_dim] after RoPE
  Matrix k, v;      // [rows, kv_heads * head_dim] as the cache takes them
  Matrix attended;  // [rows, heads * head_dim]
};

struct AttentionOptions {
  int layer = 0;            // whose attention window counts
  int window = 0;           // tokens of a sequence
  bool int8 = false;        // the input of q, k and v is rounded to 8 bits, as W4A8 and W8A8 do
  bool keep_heads = false;  // q, k, v as well
  AttentionRecipe recipe;   // how the cache holds them
  int threads = 1;
};

// Runs the architecture's own attention (norm, q, k, v, head norms, RoPE, cache) over `stream` [rows,
// hidden].
Result<AttentionTrace> TraceAttention(const ModelConfig& config, const Layer& layer, const Matrix& stream,
                                      const AttentionOptions& options);

}  // namespace nibble::qoq
