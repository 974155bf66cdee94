// SPDX-License-Identifier: Apache-2.0
// Floor 2. The formulas of QAQ (arXiv 2403.04643): how much error a key or value may have, how many bits that
// takes, and which values are outliers. In double.
#pragma once
#include <cmath>
#include <cstdint>
#include <numbers>

#include "base/macros.h"
#include "quant/kv/qaq_params.h"

namespace nibble::kv {

// Standard deviation that a value of a token with this attention weight may have so that the output's stays
// below sigma_x: errors independent, the budget split equally over the tokens. Infinite without attention.
NIBBLE_HD double QaqValueSigma(double tokens, double attention, double sigma_x) {
  return sigma_x / (std::sqrt(tokens) * std::fabs(attention));
}

// And a key, so that an attention weight's stays below sigma_s. q_norm2: |q|^2 of the query that is
// multiplied. A single token has no bound to meet: 0, all bits.
NIBBLE_HD double QaqKeySigma(double tokens, double q_norm2, double sigma_s) {
  if (tokens < 2) return 0;
  return std::sqrt(std::log(tokens * tokens * tokens / (tokens - 1) * sigma_s * sigma_s + 1) / q_norm2);
}

// Bits for values whose range is `need` times the standard deviation allowed. The midpoint quantizer's error
// is uniform over half a step each way: step = 2 sqrt(3) sigma. A need that is not a number gets all bits.
NIBBLE_HD int QaqBits(double need, QaqRule rule, int min_bits, int max_bits) {
  if (need == 0) return min_bits;
  const double steps = need / (2 * std::numbers::sqrt3);
  const double bits = std::ceil(rule == QaqRule::kPaper ? std::log2(steps) : std::log2(steps / 2 + 1));
  if (bits <= min_bits) return min_bits;
  return bits < max_bits ? int(bits) : max_bits;
}

// How many of the least and of the greatest values of a vector are stored exactly.
struct OutlierCounts {
  int low = 0, high = 0;
};

// share / 2 of the values at each end, as the authors' program counts them.
NIBBLE_HD OutlierCounts QuantileOutliers(int values, double share) {
  if (share <= 0) return {};
  return {int(std::ceil(share / 2 * values)), values - int(std::floor((1 - share / 2) * values))};
}

// F-Q3 looks at the four least and greatest values, fewer of a very short vector.
inline constexpr int kMaxCostOutliers = 4;
NIBBLE_HD OutlierCounts MostCostOutliers(int values) {
  const int most = (values - 1) / 2, each = most < kMaxCostOutliers ? most : kMaxCostOutliers;
  return {each, each};
}

// F-Q3: the counts that minimise outliers * outlier_bits + (values - outliers) * bits(range of the rest); of
// equal costs the fewest, then the fewest low ones. low[i], high[i]: the i-th least and greatest value,
// most + 1 of each; 2 * most < values.
NIBBLE_HD OutlierCounts CheapestOutliers(const float* low, const float* high, int values, int most,
                                         double sigma, QaqRule rule, int max_bits, int outlier_bits) {
  OutlierCounts best;
  int64_t least = INT64_MAX;
  for (int outliers = 0; outliers <= 2 * most; ++outliers)
    for (int below = outliers > most ? outliers - most : 0; below <= most && below <= outliers; ++below) {
      const double range = double(high[outliers - below]) - double(low[below]);
      const int bits = QaqBits(range / sigma, rule, 0, max_bits);
      const int64_t cost = int64_t{outliers} * outlier_bits + int64_t{values - outliers} * bits;
      if (cost < least) {
        least = cost;
        best = {below, outliers - below};
      }
    }
  return best;
}

// The squared norms of the queries seen so far, in bins of a quarter octave: counts do not depend on the
// order. Norms outside [2^-8, 2^16) count in the first and last bin.
struct NormHistogram {
  static constexpr int kBins = 96, kPerOctave = 4, kLeastExponent = -8;
  uint32_t count[kBins] = {};

  NIBBLE_HD static int BinOf(double norm2) {
    const double bin = std::floor((std::log2(norm2) - kLeastExponent) * kPerOctave);
    return !(bin > 0) ? 0 : (bin < kBins - 1 ? int(bin) : kBins - 1);
  }
  void Add(double norm2) { ++count[BinOf(norm2)]; }
  // Upper edge of the bin that holds the quantile: at least `share` of the norms are not greater. 0 when
  // there are none.
  NIBBLE_HD double UpperQuantile(double share) const {
    uint64_t total = 0, sum = 0;
    for (const uint32_t c : count) total += c;
    for (int b = 0; b < kBins; ++b) {
      sum += count[b];
      if (sum > 0 && double(sum) >= share * double(total))
        return std::exp2(double(b + 1) / kPerOctave + kLeastExponent);
    }
    return 0;
  }
};

}  // namespace nibble::kv
