// SPDX-License-Identifier: Apache-2.0
// Floor 7. Llama 1, 2, 3 and 3.1 (LlamaForCausalLM): pre-norm, rotary attention with grouped KV heads,
// SwiGLU.
#include "model/decoder.h"

namespace nibble {
namespace {

class Llama final : public Decoder {
 public:
  using Decoder::Decoder;

 private:
  Status LoadLayer(Loader& load, const std::string& prefix, LayerWeights* layer) override {
    const Bias qkv = config_.qkv_bias ? Bias::kYes : Bias::kNone;
    const Bias out = config_.out_bias ? Bias::kYes : Bias::kNone;
    const Bias mlp = config_.mlp_bias ? Bias::kYes : Bias::kNone;
    NIBBLE_RETURN_IF_ERROR(LoadNorms(load, prefix, layer));
    NIBBLE_RETURN_IF_ERROR(LoadAttention(load, prefix, qkv, out, layer));
    return LoadMlp(load, prefix, mlp, layer);
  }

  void RunLayer(int index, const LayerWeights& layer, Tensor x) override {
    const Heads heads = Project(Norm(x, layer.input_norm), layer);
    Rope(heads);
    AddProjection(Attend(index, heads, /*window=*/0), layer.o, x);
    AddProjection(GatedMlp(Norm(x, layer.post_attention_norm), layer), layer.down, x);
  }
};

}  // namespace

std::unique_ptr<Decoder> MakeLlama(ModelConfig config, Backend& backend, const ModelOptions& options) {
  return std::make_unique<Llama>(std::move(config), backend, options);
}

}  // namespace nibble
