// SPDX-License-Identifier: Apache-2.0
// Floor 7. Mistral (MistralForCausalLM): Llama without biases, with a sliding attention window.
#include "model/decoder.h"

namespace nibble {
namespace {

class Mistral final : public Decoder {
 public:
  using Decoder::Decoder;

 private:
  Status LoadLayer(Loader& load, const std::string& prefix, LayerWeights* layer) override {
    NIBBLE_RETURN_IF_ERROR(LoadNorms(load, prefix, layer));
    NIBBLE_RETURN_IF_ERROR(LoadAttention(load, prefix, Bias::kNone, Bias::kNone, layer));
    return LoadMlp(load, prefix, Bias::kNone, layer);
  }

  void RunLayer(int index, const LayerWeights& layer, Tensor x) override {
    const Heads heads = Project(Norm(x, layer.input_norm), layer);
    Rope(heads);
    AddProjection(Attend(index, heads, config_.sliding_window), layer.o, x);
    AddProjection(GatedMlp(Norm(x, layer.post_attention_norm), layer), layer.down, x);
  }
};

}  // namespace

std::unique_ptr<Decoder> MakeMistral(ModelConfig config, Backend& backend, const ModelOptions& options) {
  return std::make_unique<Mistral>(std::move(config), backend, options);
}

}  // namespace nibble
