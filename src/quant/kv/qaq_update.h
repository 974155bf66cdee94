// SPDX-License-Identifier: Apache-2.0
// Floor 2. What a page of QAQ becomes when its sequence completes another page, the same on every device: how
// much error is allowed, the width that a page is to have, and the outliers of a token that is sealed.
#pragma once
#include "quant/kv/qaq.h"
#include "quant/kv/qaq_rules.h"

namespace nibble::kv {

inline constexpr int kQaqOutlierBits = 32;  // token, channel and f16 value, as stored

// Of K or V of a KV head when `tokens` are seen. `norms`: of its queries. sigma: the deviation allowed to a
// value; of V that of a token with an equal share of the attention: what a new token will get is not known.
struct QaqBound {
  double tokens, sigma;
};
NIBBLE_HD QaqBound QaqKeyBound(const QaqParams& p, double tokens, const NormHistogram& norms, float scale) {
  const double scaled = norms.UpperQuantile(double(p.quantile));
  const double norm2 = p.norm == QaqNorm::kScaled ? scaled : scaled / (double(scale) * double(scale));
  return {tokens, QaqKeySigma(tokens, norm2, double(p.sigma))};
}
NIBBLE_HD QaqBound QaqValueBound(const QaqParams& p, double tokens) {
  return {tokens, QaqValueSigma(tokens, 1 / tokens, double(p.sigma))};
}

// Range over the deviation allowed, of the token that needs most.
NIBBLE_HD double QaqNeed(const QaqParams& p, const QaqBound& bound, bool is_v, QaqHeader* h) {
  if (!is_v) return 2 * double(h->half_range) / bound.sigma;
  const float faded = p.decay * h->importance;
  h->importance = h->fresh < faded ? faded : h->fresh;
  h->fresh = 0;
  return 2 * double(h->importance) * std::sqrt(bound.tokens) / double(p.sigma);
}

// The width that the page is to have now: another one when that was wanted often enough.
NIBBLE_HD int QaqWantedWidth(const QaqParams& p, const QaqBound& bound, bool is_v, QaqHeader* h) {
  h->need = float(QaqNeed(p, bound, is_v, h));
  const int wanted = QaqBits(double(h->need), p.rule, p.min, p.max);
  h->differed = wanted == h->width ? uint8_t{0} : uint8_t(h->differed + 1);
  if (h->differed < p.hysteresis || wanted == h->width) return h->width;
  h->differed = 0;
  return wanted;
}

NIBBLE_HD OutlierCounts QaqCountOutliers(const QaqParams& p, const float* x, int values, double sigma) {
  if (p.pick == QaqPick::kQuantile) return QuantileOutliers(values, double(p.outliers));
  const int most = MostCostOutliers(values).low;
  const QaqExtremes e(x, values, most + 1, most + 1);
  float low[kMaxCostOutliers + 1], high[kMaxCostOutliers + 1];
  for (int i = 0; i <= most; ++i) low[i] = x[e.low[i]], high[i] = x[e.high[i]];
  return CheapestOutliers(low, high, values, most, sigma, p.rule, p.max, kQaqOutlierBits);
}

}  // namespace nibble::kv
