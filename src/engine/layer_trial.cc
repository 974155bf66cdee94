// SPDX-License-Identifier: Apache-2.0
#include "engine/layer_trial.h"

#include <cmath>

#include "model/balance.h"

namespace nibble {

double OutputError::Cosine() const {
  const double norms = std::sqrt(norm2) * std::sqrt(other_norm2);
  return norms > 0 ? dot / norms : 1;
}
double OutputError::RelativeL2() const { return norm2 > 0 ? std::sqrt(error2 / norm2) : 0; }

void OutputError::Add(const OutputError& o) {
  dot += o.dot, norm2 += o.norm2, other_norm2 += o.other_norm2;
  error2 += o.error2, abs_error += o.abs_error, abs += o.abs;
}

OutputError CompareOutputs(std::span<const float> exact, std::span<const float> tried) {
  OutputError e;
  for (size_t i = 0; i < exact.size(); ++i) {
    const double a = double(exact[i]), b = double(tried[i]);
    e.dot += a * b, e.norm2 += a * a, e.other_norm2 += b * b;
    e.error2 += (a - b) * (a - b), e.abs_error += std::fabs(a - b), e.abs += std::fabs(a);
  }
  return e;
}

LayerTrial::~LayerTrial() {
  for (const Buffer& b : {q_, k_, v_, out_}) backend_.Free(b);
}

Status LayerTrial::Init() {
  NIBBLE_ASSIGN(q_, backend_.Alloc(rows_.q.size() * sizeof(float)));
  NIBBLE_ASSIGN(k_, backend_.Alloc(rows_.k.size() * sizeof(float)));
  NIBBLE_ASSIGN(v_, backend_.Alloc(rows_.v.size() * sizeof(float)));
  NIBBLE_ASSIGN(out_, backend_.Alloc(rows_.out.size() * sizeof(float)));
  return {};
}

Result<std::vector<OutputError>> LayerTrial::Run(const AttentionRecipe& recipe, const LayerPlan& plan) {
  const int dim = rows_.head_dim, group = rows_.heads / rows_.kv_heads;
  const auto rows = int64_t(rows_.q.size()) / (rows_.heads * dim);
  const auto tensor = [&](const Buffer& b, int heads) {
    return Tensor::Dense(b.data, DType::kF32, backend_.Info().device, {rows, heads, dim});
  };
  const auto upload = [&](const std::vector<float>& host, const Buffer& b) {
    backend_.Upload(reinterpret_cast<const std::byte*>(host.data()), b.data, host.size() * sizeof(float));
  };
  upload(rows_.q, q_), upload(rows_.k, k_), upload(rows_.v, v_);
  const Tensor q = tensor(q_, rows_.heads), k = tensor(k_, rows_.kv_heads), v = tensor(v_, rows_.kv_heads);
  const Tensor out = tensor(out_, rows_.heads);
  NIBBLE_ASSIGN(const std::unique_ptr<Balance> balance, Balance::Make(backend_, plan, group));

  Plan whole{.heads = rows_.heads, .kv_heads = rows_.kv_heads, .head_dim = dim, .layers = {plan}};
  const auto seqs = int(rows_.lengths.size());
  NIBBLE_ASSIGN(const std::unique_ptr<KvCache> cache,
                KvCache::Make(backend_, {.shape = {.layers = 1, .kv_heads = rows_.kv_heads, .head_dim = dim},
                                         .heads = rows_.heads,
                                         .recipe = recipe,
                                         .plan = &whole,
                                         .max_seqs = seqs,
                                         .max_step_tokens = int(rows),
                                         .max_tokens = rows + int64_t{seqs} * kv::kPageTokens}));
  std::vector<SeqId> ids;
  for (int i = 0; i < seqs; ++i) {
    NIBBLE_ASSIGN(const SeqId id, cache->Open());
    ids.push_back(id);
  }
  NIBBLE_RETURN_IF_ERROR(cache->BeginStep(ids, rows_.lengths));
  if (balance != nullptr) balance->Before(q, k, v);
  const KvView view = cache->View(0);
  backend_.KvAppend({view, k, v});
  backend_.Attention({view, q, out, rows_.heads, 1.0f / std::sqrt(float(dim)), rows_.window});
  if (balance != nullptr) balance->After(out);
  std::vector<float> tried(rows_.out.size());
  backend_.Sync();
  backend_.Download(out_.data, reinterpret_cast<std::byte*>(tried.data()), tried.size() * sizeof(float));

  std::vector<OutputError> errors(size_t(rows_.kv_heads));
  const size_t width = size_t(group) * size_t(dim);
  for (size_t i = 0; i < tried.size(); i += width) {
    errors[i / width % size_t(rows_.kv_heads)].Add(
        CompareOutputs(std::span(rows_.out).subspan(i, width), std::span(tried).subspan(i, width)));
  }
  return errors;
}

}  // namespace nibble
