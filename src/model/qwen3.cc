// SPDX-License-Identifier: Apache-2.0
// Floor 7. Qwen3 (Qwen3ForCausalLM): every Q and K head is normalized before the rotation; the head size is
// its own number, not hidden / heads.
#include "model/decoder.h"

namespace nibble {
namespace {

class Qwen3 final : public Decoder {
 public:
  using Decoder::Decoder;

 private:
  Status LoadLayer(Loader& load, const std::string& prefix, LayerWeights* layer) override {
    const Bias qkv = config_.qkv_bias ? Bias::kYes : Bias::kNone;
    const Bias out = config_.out_bias ? Bias::kYes : Bias::kNone;
    NIBBLE_RETURN_IF_ERROR(LoadNorms(load, prefix, layer));
    NIBBLE_RETURN_IF_ERROR(LoadAttention(load, prefix, qkv, out, layer));
    NIBBLE_ASSIGN(layer->q_norm, load.Vector(prefix + "self_attn.q_norm.weight", config_.head_dim));
    NIBBLE_ASSIGN(layer->k_norm, load.Vector(prefix + "self_attn.k_norm.weight", config_.head_dim));
    return LoadMlp(load, prefix, Bias::kNone, layer);
  }

  void RunLayer(int index, const LayerWeights& layer, Tensor x) override {
    const int64_t window = config_.layer_uses_window[index] ? config_.sliding_window : 0;
    const Heads heads = Project(Norm(x, layer.input_norm), layer);
    NormHeads(heads.q, layer.q_norm);
    NormHeads(heads.k, layer.k_norm);
    Rope(heads);
    AddProjection(Attend(index, heads, window), layer.o, x);
    AddProjection(GatedMlp(Norm(x, layer.post_attention_norm), layer), layer.down, x);
  }
};

}  // namespace

std::unique_ptr<Decoder> MakeQwen3(ModelConfig config, Backend& backend, const ModelOptions& options) {
  return std::make_unique<Qwen3>(std::move(config), backend, options);
}

}  // namespace nibble
