// SPDX-License-Identifier: Apache-2.0
// Floor 8. How far a recipe's attention is from the exact one, layer by layer, on the same tokens. Two views:
//   accumulated  both engines run freely: a layer's error holds what the layers before it did;
//   isolated     the recipe's engine is given the exact engine's queries, keys and values in every layer, so
//                that only its own cache and arithmetic differ.
// Metrics as SageAttention defines them (2410.02367, section 4.1), over all rows and heads of a layer.
#pragma once
#include <functional>
#include <span>
#include <vector>

#include "engine/engine.h"

namespace nibble {

struct LayerError {
  double cosine = 1;       // sum(a b) / sqrt(sum(a^2) sum(b^2))
  double relative_l1 = 0;  // sum|a - b| / sum|b|, b exact
};

class AttentionReference {
 public:
  // Runs `exact` on the tokens and keeps what its layers made. `on_rows` as in RunTrial.
  static Result<AttentionReference> Capture(Engine& exact, std::span<const int32_t> tokens,
                                            const std::function<Status(int64_t rows)>& on_rows);
  // Bytes that Capture keeps for one token.
  static int64_t BytesPerToken(const ModelConfig&);

  enum class View : uint8_t { kAccumulated, kIsolated };
  // One entry a layer. REQUIRES an engine of the same model.
  Result<std::vector<LayerError>> Compare(Engine& engine, View,
                                          const std::function<Status(int64_t rows)>& on_rows) const;
  int64_t tokens() const { return int64_t(tokens_.size()); }

  struct Layer {  // f32, a row a token
    std::vector<float> q, k, v, attended;
  };

 private:
  std::vector<int32_t> tokens_;
  std::vector<Layer> layers_;
};

}  // namespace nibble
