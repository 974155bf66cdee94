// SPDX-License-Identifier: Apache-2.0
#include "kernels/ref/dense.h"

#include <algorithm>
#include <cmath>

namespace nibble::ref {

int VisibleKeys(Mask mask, int row, int queries, int keys) {
  return mask == Mask::kFull ? keys : std::clamp(row + 1 + keys - queries, 0, keys);
}

AttentionResult DenseAttention(View q, View k, View v, double scale, Mask mask) {
  AttentionResult result{Matrix(q.rows, v.dim), std::vector<double>(size_t(q.rows), -INFINITY)};
  std::vector<double> score(size_t(k.rows), 0.0);
  for (int r = 0; r < q.rows; ++r) {
    const int visible = VisibleKeys(mask, r, q.rows, k.rows);
    if (visible == 0) continue;
    double max = -INFINITY, sum = 0;
    for (int n = 0; n < visible; ++n) {
      score[n] = scale * Dot(q[r], k[n], q.dim);
      max = std::max(max, score[n]);
    }
    double* out = result.out[r];
    for (int n = 0; n < visible; ++n) {
      const double p = std::exp(score[n] - max);
      sum += p;
      for (int d = 0; d < v.dim; ++d) out[d] += p * v[n][d];
    }
    for (int d = 0; d < v.dim; ++d) out[d] /= sum;
    result.lse[r] = max + std::log(sum);
  }
  return result;
}

std::vector<double> DenseWeights(const double* q, View k, double scale) {
  std::vector<double> logits(size_t(k.rows), 0.0);
  for (int n = 0; n < k.rows; ++n) logits[n] = scale * Dot(q, k[n], k.dim);
  return Softmax(logits);
}

ErrorMetrics Compare(View exact, View got) {
  double dot = 0, exact2 = 0, got2 = 0, l1 = 0, exact1 = 0, squared = 0;
  for (int r = 0; r < exact.rows; ++r)
    for (int d = 0; d < exact.dim; ++d) {
      const double x = exact[r][d], y = got[r][d];
      dot += x * y;
      exact2 += x * x;
      got2 += y * y;
      l1 += std::abs(x - y);
      exact1 += std::abs(x);
      squared += (x - y) * (x - y);
    }
  const double elements = std::max(1.0, double(exact.rows) * exact.dim);
  return {dot / std::sqrt(exact2 * got2), l1 / exact1, std::sqrt(squared / elements)};
}

}  // namespace nibble::ref
