// SPDX-License-Identifier: Apache-2.0
#include "engine/layer_trial.h"

#include <algorithm>
#include <cmath>

#include "model/balance.h"
#include "quant/kv/head_mix.h"
#include "recipe/two_bit_heads.h"

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
  const auto alloc = [&](size_t floats) {
    return backend_.Alloc(floats / size_t(rows_.kv_heads) * sizeof(float));
  };
  NIBBLE_ASSIGN(q_, alloc(rows_.q.size()));
  NIBBLE_ASSIGN(k_, alloc(rows_.k.size()));
  NIBBLE_ASSIGN(v_, alloc(rows_.v.size()));
  NIBBLE_ASSIGN(out_, alloc(rows_.out.size()));
  return {};
}

// Heads [head, head + count) of rows [n, heads, head_dim].
void LayerTrial::Upload(const std::vector<float>& rows, int heads, int head, int count, const Buffer& to) {
  const auto dim = size_t(rows_.head_dim), width = size_t(heads) * dim;
  staging_.clear();
  for (size_t i = size_t(head) * dim; i < rows.size(); i += width)
    staging_.insert(staging_.end(), rows.begin() + int64_t(i),
                    rows.begin() + int64_t(i + size_t(count) * dim));
  backend_.Upload(staging_.data(), to.data, staging_.size() * sizeof(float));
  backend_.Sync();
}

Result<OutputError> LayerTrial::RunHead(const AttentionRecipe& recipe, const LayerPlan& plan, int head) {
  const int dim = rows_.head_dim, group = rows_.heads / rows_.kv_heads;
  const auto rows = int64_t(rows_.q.size()) / (rows_.heads * dim);
  const auto tensor = [&](const Buffer& b, int heads) {
    return Tensor::Dense(b.data, DType::kF32, backend_.Info().device, {rows, heads, dim});
  };
  Upload(rows_.q, rows_.heads, head * group, group, q_);
  Upload(rows_.k, rows_.kv_heads, head, 1, k_);
  Upload(rows_.v, rows_.kv_heads, head, 1, v_);
  const Tensor q = tensor(q_, group), k = tensor(k_, 1), v = tensor(v_, 1), out = tensor(out_, group);
  const Plan whole{
      .heads = group, .kv_heads = 1, .head_dim = dim, .layers = {OneHead(plan, head, group, dim)}};
  NIBBLE_ASSIGN(const std::unique_ptr<Balance> balance, Balance::Make(backend_, whole.layers[0], group));
  const auto seqs = int(rows_.lengths.size());
  NIBBLE_ASSIGN(const std::unique_ptr<KvCache> cache,
                KvCache::Make(backend_, {.shape = {.layers = 1, .kv_heads = 1, .head_dim = dim},
                                         .heads = group,
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
  const KvUsage k_before = backend_.Usage(KvSide::kK), v_before = backend_.Usage(KvSide::kV);
  backend_.TakeCounters();
  if (balance != nullptr) balance->Before(q, k, v);
  const KvView view = cache->View(0);
  backend_.KvAppend({view, k, v});
  backend_.Attention({view, q, out, group, 1.0f / std::sqrt(float(dim)), rows_.window});
  if (balance != nullptr) balance->After(out);
  backend_.Sync();
  const auto bits = [&](KvSide side, const KvUsage& before) {
    const KvUsage now = backend_.Usage(side);
    return now.values > before.values ? double(now.bits - before.bits) / double(now.values - before.values)
                                      : 0;
  };
  costs_.push_back(
      {bits(KvSide::kK, k_before), bits(KvSide::kV, v_before), double(backend_.TakeCounters().bytes_read)});
  const size_t width = size_t(group) * size_t(dim);
  staging_.resize(size_t(rows) * width);
  backend_.Download(out_.data, staging_.data(), staging_.size() * sizeof(float));
  OutputError error;
  for (size_t row = 0; row < size_t(rows); ++row)
    error.Add(CompareOutputs(
        std::span(rows_.out).subspan((row * size_t(rows_.kv_heads) + size_t(head)) * width, width),
        std::span(staging_).subspan(row * width, width)));
  return error;
}

// Heads that run alone cannot choose which of them have 2 bits. Where the plan does not say it either, the
// first sequence's first page does, as it would in a cache.
void LayerTrial::ChooseWidths(const AttentionRecipe& recipe, LayerPlan* plan) const {
  for (const bool is_v : {false, true}) {
    const int count = TwoBitHeads(recipe, is_v, rows_.kv_heads);
    std::vector<bool>& two_bit = is_v ? plan->v_two_bit : plan->k_two_bit;
    if (count == 0 || count == rows_.kv_heads || !two_bit.empty()) continue;
    const std::vector<float>& x = is_v ? rows_.v : rows_.k;
    const kv::PageShape page{rows_.head_dim, std::min<int>(kv::kPageTokens, rows_.lengths[0])};
    std::vector<kv::HeadPlace> heads(static_cast<size_t>(rows_.kv_heads));
    for (int h = 0; h < rows_.kv_heads; ++h) {
      std::vector<float> rows;
      for (int t = 0; t < page.tokens; ++t)
        for (int d = 0; d < page.head_dim; ++d)
          rows.push_back(HalfToFloat(FloatToHalf(x[size_t((t * rows_.kv_heads + h) * page.head_dim + d)])));
      heads[size_t(h)].priority = kv::HeadPriority(page, rows.data());
    }
    kv::PlaceByPriority(heads, count);
    for (const kv::HeadPlace& head : heads) two_bit.push_back(head.two_bit != 0);
  }
}

Result<std::vector<OutputError>> LayerTrial::Run(const AttentionRecipe& recipe, const LayerPlan& plan) {
  std::vector<OutputError> errors;
  costs_.clear();
  LayerPlan widths = plan;
  ChooseWidths(recipe, &widths);
  for (int h = 0; h < rows_.kv_heads; ++h) {
    AttentionRecipe alone = recipe;  // all of one head, or none
    if (!widths.k_two_bit.empty()) alone.k_two_bit = widths.k_two_bit[size_t(h)] ? 1.0f : 0.0f;
    if (!widths.v_two_bit.empty()) alone.v_two_bit = widths.v_two_bit[size_t(h)] ? 1.0f : 0.0f;
    NIBBLE_ASSIGN(const OutputError error, RunHead(alone, widths, h));
    errors.push_back(error);
  }
  return errors;
}

}  // namespace nibble
