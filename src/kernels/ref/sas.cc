// SPDX-License-Identifier: Apache-2.0
#include "kernels/ref/sas.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "kernels/ref/matrix.h"
#include "kernels/ref/rounding.h"

namespace nibble::ref {
namespace {

using Cubic = std::array<double, 4>;  // constant term first

const Cubic& Coefficients(SasPolynomial polynomial) {
  static constexpr Cubic kPaper = {.9996, -.9922, .4626, -.1025};
  static constexpr Cubic kMinimax = {.99979958, -.99325162, .46412865, -.10299759};
  static constexpr Cubic kBase2 = {.99992522, -.69102071, .23007036, -.03901226};
  // c0 = 1 and the sum of all four is 1/e, so c3 is what the others leave.
  static const Cubic endpoint_exact = {1, -.99368469, .46282269,
                                       1 / std::numbers::e - 1 + .99368469 - .46282269};
  switch (polynomial) {
    case SasPolynomial::kPaper:
      return kPaper;
    case SasPolynomial::kMinimax:
      return kMinimax;
    case SasPolynomial::kEndpointExact:
      return endpoint_exact;
    case SasPolynomial::kBase2:
      return kBase2;
  }
  return kPaper;
}

double Evaluate(const Cubic& c, double t) { return ((c[3] * t + c[2]) * t + c[1]) * t + c[0]; }

double Max(const std::vector<double>& scores) { return *std::max_element(scores.begin(), scores.end()); }

}  // namespace

double SasExp(const SasSpec& spec, double x) {
  if (spec.exact) return std::exp(x);
  if (x < spec.threshold) return 0;
  const bool base2 = spec.polynomial == SasPolynomial::kBase2;
  const double y = base2 ? -x * std::numbers::log2e : -x, whole = std::floor(y);
  const double power = base2 ? std::exp2(-whole) : std::exp(-whole);
  return power * Evaluate(Coefficients(spec.polynomial), y - whole);
}

double SasExpF16(double x, double threshold) {
  if (x < threshold) return 0;
  const double whole = std::floor(-x), t = RoundToF16(-x - whole);
  const Cubic& c = Coefficients(SasPolynomial::kPaper);
  double y = RoundToF16(c[3]);
  for (const int i : {2, 1, 0}) y = RoundToF16(y * t + RoundToF16(c[size_t(i)]));
  return RoundToF16(RoundToF16(std::exp(-whole)) * y);
}

double SasThreshold(double eps, int tokens) { return std::max(-16.0, std::log(eps / tokens)); }

SasDropped DroppedBySas(const SasSpec& spec, const std::vector<double>& scores) {
  SasDropped dropped;
  if (spec.exact || scores.empty()) return dropped;
  const double max = Max(scores);
  const std::vector<double> weights = Softmax(scores);
  for (size_t i = 0; i < scores.size(); ++i) {
    if (scores[i] - max >= spec.threshold) continue;
    dropped.mass += weights[i];
    ++dropped.count;
  }
  return dropped;
}

std::vector<double> SasSoftmax(const SasSpec& spec, const std::vector<double>& scores) {
  std::vector<double> p(scores.size());
  if (scores.empty()) return p;
  const double max = Max(scores);
  double sum = 0;
  for (size_t i = 0; i < p.size(); ++i) sum += p[i] = SasExp(spec, scores[i] - max);
  for (double& x : p) x /= sum;
  return p;
}

}  // namespace nibble::ref
