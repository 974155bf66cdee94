// SPDX-License-Identifier: Apache-2.0
#include "model/decoder.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <set>

#include "model/rope.h"
#include "model/work_plan.h"

namespace nibble {
namespace {

Tensor Reshape(const Tensor& t, std::initializer_list<int64_t> dims) {
  return Tensor::Dense(t.data, t.dtype, t.device, dims);
}

}  // namespace

Decoder::Decoder(ModelConfig config, Backend& backend, const ModelOptions& options)
    : config_(std::move(config)),
      backend_(backend),
      options_(options),
      arith_(options.arithmetic == DType::kBF16 ? MatmulArith::kBF16 : MatmulArith::kF32) {}

Decoder::~Decoder() {
  for (const Buffer& b : buffers_) backend_.Free(b);
}

Status Decoder::Init(const io::Weights& weights, std::unique_ptr<PackedWeights> packed) {
  packed_ = std::move(packed);
  Loader load(weights, config_, backend_, arith_, packed_.get());
  NIBBLE_ASSIGN(embedding_, load.Embedding("model.embed_tokens", config_.vocab, config_.hidden));
  layers_.resize(static_cast<size_t>(config_.layers));
  for (int i = 0; i < config_.layers; ++i) {
    NIBBLE_RETURN_IF_ERROR(LoadLayer(load, fmt::format("model.layers.{}.", i), &layers_[i]));
  }
  NIBBLE_ASSIGN(final_norm_, load.Vector("model.norm.weight", config_.hidden));
  head_ = embedding_;
  if (!config_.tied_head) {
    NIBBLE_ASSIGN(head_, load.Embedding("lm_head", config_.vocab, config_.hidden));
  }
  NIBBLE_RETURN_IF_ERROR(weights.CheckUnchanged());
  if (packed_ != nullptr) NIBBLE_RETURN_IF_ERROR(CommitPackedWeights(packed_.get(), &config_.notes));
  if (const auto unused = load.Unused(); !unused.empty()) {
    config_.notes.push_back(
        fmt::format("{} tensors are not used, the first is {}", unused.size(), unused[0]));
  }
  weight_bytes_ = load.bytes();
  buffers_ = load.TakeBuffers();
  return AllocateWork();
}

Status Decoder::AllocateRows(Tensor* t, int64_t rows, std::initializer_list<int64_t> rest) {
  int64_t n = rows;
  for (int64_t d : rest) n *= d;
  NIBBLE_ASSIGN(Buffer b, backend_.Alloc(static_cast<size_t>(n) * sizeof(float)));
  buffers_.push_back(b);
  work_bytes_ += static_cast<int64_t>(b.bytes);
  *t = Tensor::Dense(b.data, DType::kF32, backend_.Info().device, {rows, n / rows});
  if (rest.size() == 2) *t = Reshape(*t, {rows, rest.begin()[0], rest.begin()[1]});
  return {};
}

Status Decoder::AllocateWork() {
  const ModelConfig& c = config_;
  const int rows = options_.max_step_rows, logit_rows = options_.max_logit_rows;
  NIBBLE_RETURN_IF_ERROR(AllocateRows(&x_, rows, {c.hidden}));
  NIBBLE_RETURN_IF_ERROR(AllocateRows(&normed_, rows, {c.hidden}));
  NIBBLE_RETURN_IF_ERROR(AllocateRows(&qkv_, rows, {int64_t{c.heads + 2 * c.kv_heads} * c.head_dim}));
  NIBBLE_RETURN_IF_ERROR(AllocateRows(&attended_, rows, {c.heads, c.head_dim}));
  NIBBLE_RETURN_IF_ERROR(AllocateRows(&gate_up_, rows, {int64_t{2} * c.intermediate}));
  NIBBLE_RETURN_IF_ERROR(AllocateRows(&cos_, rows, {c.head_dim / 2}));
  NIBBLE_RETURN_IF_ERROR(AllocateRows(&sin_, rows, {c.head_dim / 2}));
  NIBBLE_RETURN_IF_ERROR(AllocateRows(&last_, logit_rows, {c.hidden}));
  NIBBLE_RETURN_IF_ERROR(AllocateRows(&logits_, logit_rows, {c.vocab}));
  NIBBLE_CHECK(work_bytes_ == PlanWork(c).Bytes(rows, logit_rows, false),
               "work memory is not what PlanWork says");

  NIBBLE_ASSIGN(inv_freq_, UploadVector(InverseFrequencies(c.rope, c.head_dim)));
  balance_.resize(size_t(c.layers));
  for (size_t i = 0; options_.plan != nullptr && i < balance_.size(); ++i) {
    NIBBLE_ASSIGN(balance_[i], Balance::Make(backend_, options_.plan->layers[i], c.heads / c.kv_heads));
  }

  const int max_k = std::max({c.hidden, c.intermediate, c.heads * c.head_dim});
  return backend_.Reserve(std::max(rows, logit_rows), max_k, c.heads, c.kv_heads, c.head_dim);
}

Result<const float*> Decoder::UploadVector(const std::vector<float>& values) {
  NIBBLE_ASSIGN(Buffer b, backend_.Alloc(values.size() * sizeof(float)));
  buffers_.push_back(b);
  backend_.Upload(values.data(), b.data, values.size() * sizeof(float));
  return reinterpret_cast<const float*>(b.data);
}

Status Decoder::LoadAttention(Loader& load, const std::string& prefix, Bias qkv, Bias out,
                              LayerWeights* layer) {
  const ModelConfig& c = config_;
  const int q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  const Loader::Part parts[] = {
      {prefix + "self_attn.q_proj", q}, {prefix + "self_attn.k_proj", kv}, {prefix + "self_attn.v_proj", kv}};
  NIBBLE_ASSIGN(const std::vector<LinearWeight> all, load.Linears(parts, c.hidden, qkv));
  layer->q = all[0], layer->k = all[1], layer->v = all[2];
  NIBBLE_ASSIGN(layer->o, load.Linear(prefix + "self_attn.o_proj", c.hidden, q, out));
  return {};
}

Status Decoder::LoadMlp(Loader& load, const std::string& prefix, Bias bias, LayerWeights* layer) {
  const int hidden = config_.hidden, inner = config_.intermediate;
  const Loader::Part parts[] = {{prefix + "mlp.gate_proj", inner}, {prefix + "mlp.up_proj", inner}};
  NIBBLE_ASSIGN(const std::vector<LinearWeight> all, load.Linears(parts, hidden, bias));
  layer->gate = all[0], layer->up = all[1];
  NIBBLE_ASSIGN(layer->down, load.Linear(prefix + "mlp.down_proj", hidden, inner, bias));
  return {};
}

Status Decoder::LoadNorms(Loader& load, const std::string& prefix, LayerWeights* layer) {
  NIBBLE_ASSIGN(layer->input_norm, load.Vector(prefix + "input_layernorm.weight", config_.hidden));
  NIBBLE_ASSIGN(layer->post_attention_norm,
                load.Vector(prefix + "post_attention_layernorm.weight", config_.hidden));
  return {};
}

Tensor Decoder::Rows(const Tensor& t) const {
  Tensor out = t;
  out.dim[0] = rows_;
  return out;
}

// Columns of a work matrix, as products of one input leave them; where somebody looks, dense instead.
Tensor Decoder::Part(const Tensor& all, int64_t first, int64_t width) const {
  const bool columns = observer_ == nullptr;
  Tensor t = Tensor::Dense(all.as<float>() + (columns ? first : first * rows_), all.dtype, all.device,
                           {rows_, width});
  if (columns) t.stride[0] = all.stride[0];
  return t;
}

Tensor Decoder::Norm(Tensor x, const float* weight) {
  const Tensor y = Rows(normed_);
  backend_.Norm(x, weight, static_cast<float>(config_.norm_eps), y);
  return y;
}

void Decoder::Show(Site site, Tensor x) {
  if (observer_ == nullptr) return;
  backend_.Sync();
  observer_->Observe(layer_, site, x);
}

Decoder::Heads Decoder::Project(Tensor x, const LayerWeights& layer) {
  Show(Site::kAttentionInput, x);
  const int64_t dim = config_.head_dim, q = config_.heads * dim, kv = config_.kv_heads * dim;
  const std::array<LinearOut, 3> outs{LinearOut{&layer.q.w, layer.q.bias, Part(qkv_, 0, q)},
                                      LinearOut{&layer.k.w, layer.k.bias, Part(qkv_, q, kv)},
                                      LinearOut{&layer.v.w, layer.v.bias, Part(qkv_, q + kv, kv)}};
  backend_.Linear(x, outs, arith_);
  const auto heads = [dim](const Tensor& t) {
    Tensor h = Tensor::Dense(t.data, t.dtype, t.device, {t.dim[0], t.dim[1] / dim, dim});
    h.stride[0] = t.stride[0];
    return h;
  };
  return {heads(outs[0].y), heads(outs[1].y), heads(outs[2].y)};
}

void Decoder::NormHeads(Tensor heads, const float* weight) {
  backend_.Norm(heads, weight, static_cast<float>(config_.norm_eps), heads);
}

void Decoder::Rope(const Heads& heads) {
  backend_.Rope(heads.q, Rows(cos_), Rows(sin_));
  backend_.Rope(heads.k, Rows(cos_), Rows(sin_));
}

Tensor Decoder::Attend(int index, const Heads& heads, int64_t window) {
  Show(Site::kQuery, heads.q), Show(Site::kKey, heads.k), Show(Site::kValue, heads.v);
  const Balance* balance = balance_[size_t(index)].get();
  if (balance != nullptr) balance->Before(heads.q, heads.k, heads.v);
  const KvView view = cache_->View(index);
  backend_.KvAppend({view, heads.k, heads.v});
  const Tensor out = Rows(attended_);
  const float scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
  backend_.Attention({view, heads.q, out, config_.heads, scale, window});
  if (balance != nullptr) balance->After(out);
  const Tensor attended = Reshape(out, {rows_, out.dim[1] * out.dim[2]});
  Show(Site::kAttended, attended);
  return attended;
}

Tensor Decoder::GatedMlp(Tensor x, const LayerWeights& layer) {
  Show(Site::kMlpInput, x);
  const int64_t inner = config_.intermediate;
  const Tensor gate = Part(gate_up_, 0, inner), up = Part(gate_up_, inner, inner);
  const std::array<LinearOut, 2> outs{LinearOut{&layer.gate.w, layer.gate.bias, gate},
                                      LinearOut{&layer.up.w, layer.up.bias, up}};
  backend_.Linear(x, outs, arith_);
  backend_.Glu(gate, up, config_.activation, gate);
  Show(Site::kGated, gate);
  return gate;
}

void Decoder::AddProjection(Tensor x, const LinearWeight& w, Tensor residual) {
  const LinearOut out{&w.w, w.bias, residual, /*accumulate=*/true};
  backend_.Linear(x, {&out, 1}, arith_);
}

// Gathers the wanted rows while normalizing: one call a run of neighbours.
Tensor Decoder::FinalNorm(Tensor x, std::span<const int32_t> rows) {
  const int64_t hidden = config_.hidden;
  const auto slice = [hidden](const Tensor& t, int64_t first, int64_t n) {
    return Tensor::Dense(t.as<float>() + first * hidden, t.dtype, t.device, {n, hidden});
  };
  for (size_t i = 0; i < rows.size();) {
    size_t run = 1;
    while (i + run < rows.size() && rows[i + run] == rows[i] + static_cast<int32_t>(run)) ++run;
    const auto n = static_cast<int64_t>(run);
    backend_.Norm(slice(x, rows[i], n), final_norm_, static_cast<float>(config_.norm_eps),
                  slice(last_, static_cast<int64_t>(i), n));
    i += run;
  }
  return slice(last_, 0, static_cast<int64_t>(rows.size()));
}

Tensor Decoder::Forward(const Step& step, KvCache& cache) {
  rows_ = static_cast<int64_t>(step.tokens.size());
  logit_rows_ = static_cast<int64_t>(step.logit_rows.size());
  cache_ = &cache;
  NIBBLE_CHECK(rows_ > 0 && rows_ <= x_.dim[0], "rows of a step");
  NIBBLE_CHECK(step.logit_rows.size() <= static_cast<size_t>(options_.max_logit_rows),
               "logit rows of a step");
  NIBBLE_CHECK(cache.Positions().size() == step.tokens.size(), "cache step and tokens differ");

  const KvView view = cache.View(0);
  backend_.RunStep({.tokens = step.tokens,
                    .positions = cache.Positions(),
                    .logit_rows = step.logit_rows,
                    .segments = view.segments,
                    .page_table = view.page_table,
                    .model = this,
                    .cache = &cache,
                    .selects = view.recipe->select.kind != SelectKind::kAll,
                    .observed = observer_ != nullptr},
                   [this, &step] { RunLayers(step); });
  return Reshape(logits_, {static_cast<int64_t>(step.logit_rows.size()), config_.vocab});
}

Tensor Decoder::Hidden() const {
  Tensor hidden = last_;
  hidden.dim[0] = logit_rows_;
  return hidden;
}

void Decoder::RunLayers(const Step& step) {
  const Tensor x = Rows(x_);
  backend_.Embed(step.tokens, embedding_, x);
  backend_.RopeTable(cache_->Positions(), inv_freq_, Rows(cos_), Rows(sin_));
  for (layer_ = 0; layer_ < config_.layers; ++layer_) RunLayer(layer_, layers_[layer_], x);
  const auto wanted = static_cast<int64_t>(step.logit_rows.size());
  if (wanted == 0) return;
  const LinearOut out{&head_, nullptr, Reshape(logits_, {wanted, config_.vocab})};
  backend_.Linear(FinalNorm(x, step.logit_rows), {&out, 1}, arith_);
}

std::vector<std::string> Decoder::Explain() const {
  const LayerWeights& l = layers_.front();
  std::vector<std::string> lines;
  if (packed_ != nullptr && packed_->reader != nullptr)
    lines.push_back(fmt::format("weights: mapped from {}", packed_->path));
  lines.push_back("embedding: " + backend_.ExplainLinear(embedding_, arith_));
  const std::array<std::pair<const char*, const LinearWeight*>, 7> parts{{{"q_proj", &l.q},
                                                                          {"k_proj", &l.k},
                                                                          {"v_proj", &l.v},
                                                                          {"o_proj", &l.o},
                                                                          {"gate_proj", &l.gate},
                                                                          {"up_proj", &l.up},
                                                                          {"down_proj", &l.down}}};
  for (const auto& [name, w] : parts) {
    lines.push_back(
        fmt::format("layers 0-{} {}: {}", config_.layers - 1, name, backend_.ExplainLinear(w->w, arith_)));
  }
  lines.push_back(
      fmt::format("head{}: {}", config_.tied_head ? " (tied)" : "", backend_.ExplainLinear(head_, arith_)));
  return lines;
}

}  // namespace nibble
