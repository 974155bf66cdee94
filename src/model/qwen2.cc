// SPDX-License-Identifier: Apache-2.0
// Floor 7. Qwen2 and Qwen2.5 (Qwen2ForCausalLM): biases on Q, K and V; some layers may attend through a
// window.
#include "model/decoder.h"

namespace nibble {
namespace {

class Qwen2 final : public Decoder {
 public:
  using Decoder::Decoder;

 private:
  Status LoadLayer(Loader& load, const std::string& prefix, LayerWeights* layer) override {
    NIBBLE_RETURN_IF_ERROR(LoadNorms(load, prefix, layer));
    NIBBLE_RETURN_IF_ERROR(LoadAttention(load, prefix, Bias::kYes, Bias::kNone, layer));
    return LoadMlp(load, prefix, Bias::kNone, layer);
  }

  void RunLayer(int index, const LayerWeights& layer, Tensor x) override {
    const int64_t window = config_.layer_uses_window[index] ? config_.sliding_window : 0;
    const Heads heads = Project(Norm(x, layer.input_norm), layer);
    Rope(heads);
    AddProjection(Attend(index, heads, window), layer.o, x);
    AddProjection(GatedMlp(Norm(x, layer.post_attention_norm), layer), layer.down, x);
  }
};

}  // namespace

std::unique_ptr<Decoder> MakeQwen2(ModelConfig config, Backend& backend, const ModelOptions& options) {
  return std::make_unique<Qwen2>(std::move(config), backend, options);
}

}  // namespace nibble
