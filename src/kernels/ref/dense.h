// SPDX-License-Identifier: Apache-2.0
// Floor 4. Exact attention over flat matrices, the masks, and the error metrics of SageAttention: what every
// other definition here is compared with.
#pragma once
#include <vector>

#include "kernels/ref/matrix.h"

namespace nibble::ref {

enum class Mask {
  kFull,
  kCausal,  // bottom-right: the last query sees every key
};
// Keys 0 .. n-1 that query `row` sees; 0 when the mask leaves it nothing.
int VisibleKeys(Mask mask, int row, int queries, int keys);

struct AttentionResult {
  Matrix out;
  std::vector<double>
      lse;  // natural log of sum exp(scale * q.k); a row that sees nothing has O = 0, LSE = -inf
};

// q [queries, head_dim], k [keys, head_dim], v [keys, any dim].
AttentionResult DenseAttention(View q, View k, View v, double scale, Mask mask);

// softmax(scale * q.K) of one query over all rows of k.
std::vector<double> DenseWeights(const double* q, View k, double scale);

// SageAttention 1, section 4: over all elements. relative_l1: sum |exact - got| / sum |exact|.
struct ErrorMetrics {
  double cosine, relative_l1, rmse;
};
ErrorMetrics Compare(View exact, View got);

// Adaptive precision of SageAttention2's first version: the score of a layer, higher is safer in INT4.
inline double AdaptiveScore(const ErrorMetrics& e) { return e.cosine * (1 - e.relative_l1); }
// And of SageAttention 1: INT8 P and V where the cosine passes this.
inline constexpr double kSage1Int8PvCosine = 0.998;

}  // namespace nibble::ref
