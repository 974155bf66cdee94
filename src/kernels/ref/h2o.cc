// SPDX-License-Identifier: Apache-2.0
#include "kernels/ref/h2o.h"

#include <algorithm>

#include "kernels/ref/top_k.h"

namespace nibble::ref {

void H2o::AddPrefillRow(View weights) {
  live_.push_back(int(score_.size()));
  score_.push_back(0);
  for (int h = 0; h < weights.rows; ++h)
    for (int n = 0; n < weights.dim; ++n) score_[size_t(n)] += weights[h][n] / weights.rows;
}

void H2o::Evict() {
  const int current = live_.back();
  std::vector<int> kept, others;
  std::vector<double> score;
  for (const int n : live_) {
    if (n >= current - local_) {
      kept.push_back(n);
    } else {
      others.push_back(n);
      score.push_back(score_[size_t(n)]);
    }
  }
  for (const int i : TopK(score, std::max(0, k_ + 1 - int(kept.size())))) kept.push_back(others[size_t(i)]);
  std::sort(kept.begin(), kept.end());
  live_ = kept;
}

Matrix H2o::Step(View logits) {
  live_.push_back(int(score_.size()));
  score_.push_back(0);
  Evict();
  Matrix weights(logits.rows, int(live_.size()));
  for (int h = 0; h < logits.rows; ++h) {
    std::vector<double> row;
    for (const int n : live_) row.push_back(logits[h][n]);
    const std::vector<double> p = Softmax(row);
    for (size_t i = 0; i < p.size(); ++i) {
      weights[h][i] = p[i];
      score_[size_t(live_[i])] += p[i] / logits.rows;
    }
  }
  return weights;
}

std::vector<int> WindowTokens(int tokens, int sinks, int k) {
  std::vector<int> kept;
  for (int n = 0; n < tokens; ++n)
    if (tokens <= k || n < sinks || n >= tokens - (k - sinks)) kept.push_back(n);
  return kept;
}

}  // namespace nibble::ref
