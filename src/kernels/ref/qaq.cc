// SPDX-License-Identifier: Apache-2.0
#include "kernels/ref/qaq.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace nibble::ref {
namespace {

constexpr double kTwoSqrt3 = 2 * std::numbers::sqrt3;

int ClampBits(double bits, int min_bits, int max_bits) {
  return int(std::clamp(bits, double(min_bits), double(max_bits)));
}

void FitRange(const std::vector<double>& x, const std::vector<bool>& outlier, QaqVector& v) {
  double lo = INFINITY, hi = -INFINITY;
  for (size_t i = 0; i < x.size(); ++i) {
    if (outlier[i]) continue;
    lo = std::min(lo, x[i]);
    hi = std::max(hi, x[i]);
  }
  if (lo > hi) return;
  v.min = lo;
  v.range = hi - lo;
}

}  // namespace

double QaqValueSigma(int tokens, double attention, double sigma_x) {
  return sigma_x / (std::sqrt(double(tokens)) * std::abs(attention));
}

double QaqKeySigma(int tokens, double q_norm2, double sigma_s) {
  if (tokens < 2) return 0;
  const double t = tokens;
  return std::sqrt(std::log(t * t * t / (t - 1) * sigma_s * sigma_s + 1) / q_norm2);
}

int QaqBits(double range, double sigma, int min_bits, int max_bits) {
  if (range == 0) return ClampBits(0, min_bits, max_bits);
  if (sigma == 0) return max_bits;
  return ClampBits(std::ceil(std::log2(range / (kTwoSqrt3 * sigma))), min_bits, max_bits);
}

int QaqCodeBits(double range, double sigma, int min_bits, int max_bits) {
  if (range == 0) return ClampBits(0, min_bits, max_bits);
  if (sigma == 0) return max_bits;
  return ClampBits(std::ceil(std::log2(range / (2 * kTwoSqrt3 * sigma) + 1)), min_bits, max_bits);
}

int MidpointCode(double x, double min, double range, int bits) {
  if (!(range > 0)) return 0;
  // Scaling by 2^bits is exact, so the codes of all widths are prefixes of one another.
  const double position = std::floor(std::ldexp((x - min) / range, bits));
  return int(std::clamp(position, 0.0, std::ldexp(1.0, bits) - 1));
}

double MidpointDecode(int code, double min, double range, int bits) {
  return min + (code + .5) * std::ldexp(range, -bits);
}

std::vector<int> QuantileOutliers(const std::vector<double>& x, double alpha) {
  if (alpha <= 0) return {};
  std::vector<double> sorted = x;
  std::sort(sorted.begin(), sorted.end());
  const double n = double(x.size());
  const int low = int(std::ceil(alpha / 2 * n)), high = int(std::floor((1 - alpha / 2) * n));
  std::vector<int> outliers;
  for (size_t i = 0; i < x.size(); ++i)
    if (x[i] <= sorted[size_t(low - 1)] || x[i] > sorted[size_t(high - 1)]) outliers.push_back(int(i));
  return outliers;
}

int64_t OutlierCost(const std::vector<double>& sorted, int low, int high, double sigma, int outlier_bits,
                    int* bits) {
  const int n = int(sorted.size());
  const double range = low + high < n ? sorted[size_t(n - 1 - high)] - sorted[size_t(low)] : 0;
  *bits = QaqBits(range, sigma);
  return int64_t{low + high} * outlier_bits + int64_t{n - low - high} * *bits;
}

OutlierChoice CheapestOutliers(const std::vector<double>& x, double sigma, int max_each, int outlier_bits) {
  std::vector<double> sorted = x;
  std::sort(sorted.begin(), sorted.end());
  OutlierChoice best;
  best.cost = OutlierCost(sorted, 0, 0, sigma, outlier_bits, &best.bits);
  for (int low = 0; low <= max_each; ++low)
    for (int high = 0; high <= max_each && low + high < int(sorted.size()); ++high) {
      int bits = 0;
      const int64_t cost = OutlierCost(sorted, low, high, sigma, outlier_bits, &bits);
      if (cost < best.cost || (cost == best.cost && low + high < best.low + best.high))
        best = {low, high, bits, cost};
    }
  return best;
}

QaqVector QaqEncode(const std::vector<double>& x, int bits, const std::vector<int>& outliers) {
  QaqVector v;
  v.bits = bits;
  v.outliers = outliers;
  std::vector<bool> outlier(x.size(), false);
  for (const int i : outliers) {
    outlier[size_t(i)] = true;
    v.outlier_values.push_back(x[size_t(i)]);
  }
  FitRange(x, outlier, v);
  for (size_t i = 0; i < x.size(); ++i)
    v.codes.push_back(outlier[i] ? 0 : MidpointCode(x[i], v.min, v.range, bits));
  return v;
}

std::vector<double> QaqDecode(const QaqVector& v) {
  std::vector<double> x;
  for (const int code : v.codes) x.push_back(MidpointDecode(code, v.min, v.range, v.bits));
  for (size_t i = 0; i < v.outliers.size(); ++i) x[size_t(v.outliers[i])] = v.outlier_values[i];
  return x;
}

QaqVector QaqNarrow(const QaqVector& v, int bits) {
  QaqVector narrow = v;
  narrow.bits = bits;
  for (int& code : narrow.codes) code = NarrowCode(code, v.bits, bits);
  return narrow;
}

void ImportanceWindow::Push(const std::vector<double>& attention) {
  history_.push_back(attention);
  if (int(history_.size()) > steps_) history_.pop_front();
}

std::vector<double> ImportanceWindow::Importance() const {
  std::vector<double> importance;
  for (const std::vector<double>& step : history_) {
    if (step.size() > importance.size()) importance.resize(step.size(), 0.0);
    for (size_t t = 0; t < step.size(); ++t) importance[t] = std::max(importance[t], step[t]);
  }
  return importance;
}

void DecayedImportance::Push(const std::vector<double>& attention) {
  if (attention.size() > importance_.size()) importance_.resize(attention.size(), 0.0);
  for (size_t t = 0; t < importance_.size(); ++t)
    importance_[t] = std::max(t < attention.size() ? attention[t] : 0, lambda_ * importance_[t]);
}

int WidthHysteresis::Update(int wanted) {
  differed_ = wanted == bits_ ? 0 : differed_ + 1;
  if (differed_ >= steps_) {
    bits_ = wanted;
    differed_ = 0;
  }
  return bits_;
}

double UpperQuantile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  const int index = int(std::ceil(share * double(values.size()))) - 1;
  return values[size_t(std::clamp(index, 0, int(values.size()) - 1))];
}

double QaqPaperRatio(double bits, double outlier_share, QaqLevel level, int layers, int heads, int hidden,
                     bool symmetric) {
  const int groups = level == QaqLevel::kToken ? 1 : (level == QaqLevel::kLayer ? layers : layers * heads);
  const double values = double(layers) * hidden;
  const double stored =
      (bits * (1 - outlier_share) + 16 * outlier_share) * values + 16.0 * (symmetric ? 1 : 2) * groups;
  return 16 * values / stored;
}

double QaqHonestBits(int bits, int head_dim, int outliers) {
  return (24.0 * outliers + 32 + 4 + double(bits) * (head_dim - outliers)) / head_dim;
}

}  // namespace nibble::ref
