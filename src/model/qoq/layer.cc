// SPDX-License-Identifier: Apache-2.0
#include "model/qoq/layer.h"

#include <cmath>
#include <cstring>

#include "base/half.h"
#include "base/printable.h"

namespace nibble::qoq {
namespace {

// One float tensor as f32; data may lie at an odd address.
Result<std::vector<float>> ReadFloats(const io::Weights& weights, const std::string& name,
                                      std::vector<int64_t> shape) {
  const io::TensorInfo* t = weights.Find(name);
  if (t == nullptr) {
    return Error(Code::kNotFound, "tensor \"{}\" is missing (the config asks for [{}])", Printable(name),
                 fmt::join(shape, ","));
  }
  if (t->shape != shape) {
    return Error(Code::kCorrupt, "tensor \"{}\" has shape [{}], but the config says [{}]", Printable(name),
                 fmt::join(t->shape, ","), fmt::join(shape, ","));
  }
  const bool f32 = t->element == io::Element::kF32, f16 = t->element == io::Element::kF16;
  if (!f32 && !f16 && t->element != io::Element::kBF16) {
    return Error(Code::kUnsupported, "tensor \"{}\": dtype {}, expected F32, F16 or BF16", Printable(name),
                 t->dtype);
  }
  std::vector<float> out(t->bytes / (f32 ? 4 : 2));
  const int64_t columns = shape.back();
  for (size_t i = 0; i < out.size(); ++i) {
    uint16_t bits;
    if (f32) {
      std::memcpy(&out[i], t->data + 4 * i, 4);
    } else {
      std::memcpy(&bits, t->data + 2 * i, 2);
      out[i] = f16 ? HalfToFloat(bits) : Bf16ToFloat(bits);
    }
    if (!std::isfinite(out[i])) {
      return Error(Code::kInvalidArgument,
                   "tensor \"{}\": row {}, column {}: weight is {}, expected a finite number",
                   Printable(name), shape.size() == 1 ? 0 : static_cast<int64_t>(i) / columns,
                   static_cast<int64_t>(i) % columns, out[i]);
    }
  }
  NIBBLE_RETURN_IF_ERROR(weights.CheckUnchanged());
  weights.Release(*t);
  return out;
}

Result<Matrix> ReadMatrix(const io::Weights& weights, const std::string& name, int n, int k) {
  Matrix m;
  m.rows = n;
  m.cols = k;
  NIBBLE_ASSIGN(m.v, ReadFloats(weights, name, {n, k}));
  return m;
}

// Which linears have a bias: as the architectures load them.
bool HasBias(const ModelConfig& c, int id) {
  if (id <= kV) return c.qkv_bias;
  return id == kO ? c.out_bias : c.mlp_bias;
}

}  // namespace

std::string LayerPrefix(int index) { return fmt::format("model.layers.{}.", index); }

Result<Layer> ReadLayer(const io::Weights& weights, const ModelConfig& c, int index) {
  const std::string prefix = LayerPrefix(index);
  const int q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  const std::array<std::array<int, 2>, kLinears> shapes = {{{q, c.hidden},
                                                            {kv, c.hidden},
                                                            {kv, c.hidden},
                                                            {c.hidden, q},
                                                            {c.intermediate, c.hidden},
                                                            {c.intermediate, c.hidden},
                                                            {c.hidden, c.intermediate}}};
  Layer layer;
  for (int id = 0; id < kLinears; ++id) {
    const std::string name = prefix + std::string(kLinearNames[id]);
    FloatLinear& linear = layer.linear[id];
    NIBBLE_ASSIGN(linear.w, ReadMatrix(weights, name + ".weight", shapes[id][0], shapes[id][1]));
    if (HasBias(c, id)) {
      NIBBLE_ASSIGN(linear.bias, ReadFloats(weights, name + ".bias", {shapes[id][0]}));
    }
  }
  NIBBLE_ASSIGN(layer.input_norm, ReadFloats(weights, prefix + "input_layernorm.weight", {c.hidden}));
  NIBBLE_ASSIGN(layer.post_attention_norm,
                ReadFloats(weights, prefix + "post_attention_layernorm.weight", {c.hidden}));
  if (c.architecture == "Qwen3ForCausalLM") {
    NIBBLE_ASSIGN(layer.q_norm, ReadFloats(weights, prefix + "self_attn.q_norm.weight", {c.head_dim}));
    NIBBLE_ASSIGN(layer.k_norm, ReadFloats(weights, prefix + "self_attn.k_norm.weight", {c.head_dim}));
  }
  return layer;
}

Result<Ends> ReadEnds(const io::Weights& weights, const ModelConfig& c) {
  Ends ends;
  NIBBLE_ASSIGN(ends.embedding, ReadMatrix(weights, "model.embed_tokens.weight", c.vocab, c.hidden));
  NIBBLE_ASSIGN(ends.final_norm, ReadFloats(weights, "model.norm.weight", {c.hidden}));
  if (!c.tied_head) {
    NIBBLE_ASSIGN(ends.head, ReadMatrix(weights, "lm_head.weight", c.vocab, c.hidden));
  }
  return ends;
}

void AddLayer(Layer layer, int index, MemoryWeights* weights) {
  const std::string prefix = LayerPrefix(index);
  for (int id = 0; id < kLinears; ++id) {
    const std::string name = prefix + std::string(kLinearNames[id]);
    weights->Add(name + ".weight", std::move(layer.linear[id].w));
    if (!layer.linear[id].bias.empty()) weights->Add(name + ".bias", std::move(layer.linear[id].bias));
  }
  weights->Add(prefix + "input_layernorm.weight", std::move(layer.input_norm));
  weights->Add(prefix + "post_attention_layernorm.weight", std::move(layer.post_attention_norm));
  if (!layer.q_norm.empty()) weights->Add(prefix + "self_attn.q_norm.weight", std::move(layer.q_norm));
  if (!layer.k_norm.empty()) weights->Add(prefix + "self_attn.k_norm.weight", std::move(layer.k_norm));
}

void AddEnds(Ends ends, MemoryWeights* weights) {
  weights->Add("model.embed_tokens.weight", std::move(ends.embedding));
  if (ends.head.rows > 0) weights->Add("lm_head.weight", std::move(ends.head));
  weights->Add("model.norm.weight", std::move(ends.final_norm));
}

}  // namespace nibble::qoq
