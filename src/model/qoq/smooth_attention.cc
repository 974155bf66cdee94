// SPDX-License-Identifier: Apache-2.0
#include "model/qoq/smooth_attention.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "model/qoq/search.h"

namespace nibble::qoq {
namespace {

constexpr int kSampleRows = 512;  // keys that the search quantizes

// Q^T Q over the query heads of one KV head: score errors of a key error d are d^T (Q^T Q) d in sum.
Matrix QueryMoment(const Matrix& q, HeadShape s, int kv_head, Math& math) {
  const int group = s.heads / s.kv_heads, d = s.head_dim;
  Matrix rows(q.rows * group, d);
  for (int t = 0; t < q.rows; ++t)
    for (int g = 0; g < group; ++g)
      std::copy_n(q.Row(t) + (kv_head * group + g) * d, d, rows.Row(t * group + g));
  return math.Gram(rows);
}

struct Head {
  Matrix k;                         // sampled keys [rows, head_dim]
  Matrix moment;                    // [head_dim, head_dim]
  std::vector<float> k_max, q_max;  // [head_dim]
};

Head MakeHead(const Matrix& q, const Matrix& k, HeadShape s, int kv_head, Math& math) {
  const int group = s.heads / s.kv_heads, d = s.head_dim;
  Head head;
  head.moment = QueryMoment(q, s, kv_head, math);
  head.k = SampleColumns(k, kv_head * d, d, kSampleRows);
  head.k_max = ColumnMax(k, kv_head * d, d);
  head.q_max.assign(static_cast<size_t>(d), 0.0f);
  for (int g = 0; g < group; ++g) {
    const std::vector<float> max = ColumnMax(q, (kv_head * group + g) * d, d);
    for (size_t i = 0; i < max.size(); ++i) head.q_max[i] = std::max(head.q_max[i], max[i]);
  }
  return head;
}

}  // namespace

std::vector<float> PairedLambda(std::span<const float> k_max, std::span<const float> q_max, double alpha,
                                double beta) {
  NIBBLE_CHECK(k_max.size() == q_max.size() && k_max.size() % 2 == 0, "pairs of channels");
  const size_t half = k_max.size() / 2;
  std::vector<float> lambda(k_max.size());
  for (size_t i = 0; i < half; ++i) {
    const double k = std::max(k_max[i], k_max[i + half]), q = std::max(q_max[i], q_max[i + half]);
    const double value = k > 0 && q > 0 ? std::pow(k, alpha) / std::pow(q, beta) : 1.0;
    lambda[i] = lambda[i + half] = static_cast<float>(value);
  }
  return lambda;
}

AttentionSmoothing FindAttentionSmoothing(const Matrix& q, const Matrix& k, HeadShape s,
                                          std::optional<double> alpha, bool shared, Math& math) {
  AttentionSmoothing out;
  out.lambda.resize(static_cast<size_t>(s.kv_heads) * static_cast<size_t>(s.head_dim));
  std::vector<Head> heads;
  for (int h = 0; h < s.kv_heads; ++h) heads.push_back(MakeHead(q, k, s, h, math));
  if (shared) {  // every head has the greatest of all
    Head& first = heads.front();
    for (const Head& head : heads)
      for (size_t i = 0; i < first.k_max.size(); ++i) {
        first.k_max[i] = std::max(first.k_max[i], head.k_max[i]);
        first.q_max[i] = std::max(first.q_max[i], head.q_max[i]);
      }
    for (Head& head : heads) head.k_max = first.k_max, head.q_max = first.q_max;
  }
  double before = 0, after = 0, energy = 0;
  for (int h = 0; h < s.kv_heads;) {
    const int count = shared ? s.kv_heads : 1;  // heads that are decided together
    const auto error = [&](const std::vector<float>& lambda) {
      double sum = 0;
      for (int i = h; i < h + count; ++i) {
        const Head& head = heads[static_cast<size_t>(i)];
        sum += WeightedInt4Error(head.k, lambda, head.moment, math);
      }
      return sum;
    };
    const Head& head = heads[static_cast<size_t>(h)];
    const auto lambda_of = [&](double a, double b) { return PairedLambda(head.k_max, head.q_max, a, b); };
    const Choice none{0, 0, error(lambda_of(0, 0))};
    const Choice best =
        alpha ? Choice{*alpha, 0, error(lambda_of(*alpha, 0))}
              : SearchExponents(none, [&](double a, double b) { return error(lambda_of(a, b)); });
    const std::vector<float> lambda = lambda_of(best.alpha, best.beta);
    for (int i = h; i < h + count; ++i) {
      std::copy(lambda.begin(), lambda.end(), out.lambda.begin() + int64_t{i} * s.head_dim);
      out.alpha.push_back(best.alpha), out.beta.push_back(best.beta);
      energy += WeightedEnergy(heads[static_cast<size_t>(i)].k, heads[static_cast<size_t>(i)].moment, math);
    }
    before += none.error, after += best.error;
    h += count;
  }
  if (energy > 0) out.error_before = before / energy, out.error_after = after / energy;
  return out;
}

void SmoothAttention(std::span<const float> lambda, HeadShape s, Layer* layer) {
  const auto scale = [](FloatLinear* linear, int row, float by) {
    float* w = linear->w.Row(row);
    for (int c = 0; c < linear->w.cols; ++c) w[c] *= by;
    if (!linear->bias.empty()) linear->bias[static_cast<size_t>(row)] *= by;
  };
  if (!layer->k_norm.empty()) {
    for (int i = 0; i < s.head_dim; ++i) {
      layer->q_norm[static_cast<size_t>(i)] *= lambda[static_cast<size_t>(i)];
      layer->k_norm[static_cast<size_t>(i)] /= lambda[static_cast<size_t>(i)];
    }
    return;
  }
  const int group = s.heads / s.kv_heads;
  for (int h = 0; h < s.heads; ++h)
    for (int i = 0; i < s.head_dim; ++i)
      scale(
          &layer->linear[kQ], h * s.head_dim + i,
          lambda[static_cast<size_t>(h / group) * static_cast<size_t>(s.head_dim) + static_cast<size_t>(i)]);
  for (int c = 0; c < s.kv_heads * s.head_dim; ++c)
    scale(&layer->linear[kK], c, 1.0f / lambda[static_cast<size_t>(c)]);
}

}  // namespace nibble::qoq
