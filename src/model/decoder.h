// SPDX-License-Identifier: Apache-2.0
// Floor 7. What all decoder-only models here share: embedding, the stack of layers, final norm and head, and
// the steps that a layer is written in. An architecture says how a layer loads and how it runs.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "model/balance.h"
#include "model/loader.h"
#include "model/model.h"

namespace nibble {

// Weights of one pre-norm layer. Optional parts stay null where an architecture has none.
struct LayerWeights {
  const float* input_norm = nullptr;  // [hidden]
  LinearWeight q, k, v, o;  // [heads * head_dim, hidden], [kv_heads * head_dim, hidden] x 2, transposed q
  const float* q_norm = nullptr;               // [head_dim]: Qwen3
  const float* k_norm = nullptr;               // [head_dim]
  const float* post_attention_norm = nullptr;  // [hidden]
  LinearWeight gate, up, down;                 // [intermediate, hidden] x 2, [hidden, intermediate]
};

class Decoder : public Model {
 public:
  Decoder(ModelConfig config, Backend& backend, const ModelOptions& options);
  ~Decoder() override;

  // `packed`, or null: kept, as the weights may lie in its file.
  Status Init(const io::Weights& weights, std::unique_ptr<PackedWeights> packed);
  const ModelConfig& config() const override { return config_; }
  size_t weight_bytes() const override { return weight_bytes_; }
  int max_logit_rows() const override { return options_.max_logit_rows; }
  std::vector<std::string> Explain() const override;
  void Observe(Observer* observer) override { observer_ = observer; }
  Tensor Forward(const Step& step, KvCache& cache) override;
  Tensor Hidden() const override;

 protected:
  // What an architecture defines.
  virtual Status LoadLayer(Loader& load, const std::string& prefix, LayerWeights* layer) = 0;
  virtual void RunLayer(int index, const LayerWeights& layer, Tensor x) = 0;

  // Loading, shared: the projections with or without biases, the two norms.
  Status LoadAttention(Loader& load, const std::string& prefix, Bias qkv, Bias out, LayerWeights* layer);
  Status LoadMlp(Loader& load, const std::string& prefix, Bias bias, LayerWeights* layer);
  Status LoadNorms(Loader& load, const std::string& prefix, LayerWeights* layer);

  // The steps of a layer. Tensors live in the model's work buffers until the same step runs again.
  struct Heads {
    Tensor q, k, v;  // [rows, heads or kv_heads, head_dim]
  };
  Tensor Norm(Tensor x, const float* weight);
  Heads Project(Tensor x, const LayerWeights& layer);  // x W_q, x W_k, x W_v
  void NormHeads(Tensor heads, const float* weight);   // each head by itself, in place
  void Rope(const Heads& heads);
  Tensor Attend(int index, const Heads& heads, int64_t window);          // writes K and V to the cache first
  Tensor GatedMlp(Tensor x, const LayerWeights& layer);                  // act(x W_gate) * (x W_up)
  void AddProjection(Tensor x, const LinearWeight& w, Tensor residual);  // residual += x w^T + bias

  ModelConfig config_;  // constant after Init

 private:
  Status AllocateWork();
  Result<const float*> UploadVector(const std::vector<float>& values);
  Status AllocateRows(Tensor* t, int64_t rows, std::initializer_list<int64_t> rest);
  Tensor Part(const Tensor& all, int64_t first, int64_t width) const;
  Tensor Rows(const Tensor& t) const;  // the first rows_ rows
  void Show(Site site, Tensor x);      // to the observer, if there is one
  Tensor FinalNorm(Tensor x, std::span<const int32_t> rows);
  void RunLayers(const Step& step);  // embedding to logits

  Backend& backend_;
  ModelOptions options_;
  MatmulArith arith_;
  size_t weight_bytes_ = 0;
  int64_t work_bytes_ = 0;
  std::unique_ptr<PackedWeights> packed_;
  std::vector<Buffer> buffers_;
  std::vector<LayerWeights> layers_;
  weight::PackedWeight embedding_, head_;
  const float* final_norm_ = nullptr;
  const float* inv_freq_ = nullptr;  // [head_dim / 2]

  std::vector<std::unique_ptr<Balance>> balance_;  // [layers] of the plan, or null

  // One step.
  int64_t rows_ = 0, logit_rows_ = 0;
  KvCache* cache_ = nullptr;
  int layer_ = 0;  // the one that runs
  Observer* observer_ = nullptr;
  Tensor x_, normed_, qkv_, attended_, gate_up_, cos_, sin_, last_, logits_;
};

// One line each in registry.cc.
std::unique_ptr<Decoder> MakeLlama(ModelConfig config, Backend& backend, const ModelOptions& options);
std::unique_ptr<Decoder> MakeMistral(ModelConfig config, Backend& backend, const ModelOptions& options);
std::unique_ptr<Decoder> MakeQwen2(ModelConfig config, Backend& backend, const ModelOptions& options);
std::unique_ptr<Decoder> MakeQwen3(ModelConfig config, Backend& backend, const ModelOptions& options);

}  // namespace nibble
