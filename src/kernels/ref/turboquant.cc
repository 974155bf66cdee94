// SPDX-License-Identifier: Apache-2.0
#include "kernels/ref/turboquant.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

#include "base/check.h"

namespace nibble::ref {
namespace {

double Density(double x) { return std::exp(-x * x / 2) / std::sqrt(2 * std::numbers::pi); }
// P(a < X < b), without cancellation in the tails.
double Probability(double a, double b) {
  const double root = std::numbers::sqrt2;
  return a > 0 ? (std::erfc(a / root) - std::erfc(b / root)) / 2
               : (std::erfc(-b / root) - std::erfc(-a / root)) / 2;
}

std::vector<double> Middles(const std::vector<double>& levels) {
  std::vector<double> middles;
  for (size_t i = 0; i + 1 < levels.size(); ++i) middles.push_back((levels[i] + levels[i + 1]) / 2);
  return middles;
}

struct Cell {
  double lo, hi;
};
Cell CellOf(const std::vector<double>& boundaries, size_t i) {
  return {i == 0 ? -INFINITY : boundaries[i - 1], i == boundaries.size() ? INFINITY : boundaries[i]};
}

}  // namespace

LloydMax LloydMaxNormal(int bits) {
  LloydMax table;
  const int n = 1 << bits;
  for (int i = 0; i < n; ++i) table.levels.push_back(-3 + 6 * (i + .5) / n);
  double change = 1;  // the rounding of erfc may keep it from reaching the goal
  for (int iteration = 0; change > 1e-14 && iteration < 5000; ++iteration) {
    table.boundaries = Middles(table.levels);
    change = 0;
    for (size_t i = 0; i < table.levels.size(); ++i) {
      const Cell c = CellOf(table.boundaries, i);
      const double mean = (Density(c.lo) - Density(c.hi)) / Probability(c.lo, c.hi);
      change = std::max(change, std::abs(mean - table.levels[i]));
      table.levels[i] = mean;
    }
  }
  table.boundaries = Middles(table.levels);
  table.distortion = 1;
  for (size_t i = 0; i < table.levels.size(); ++i) {
    const Cell c = CellOf(table.boundaries, i);
    const double p = Probability(c.lo, c.hi);
    table.distortion -= table.levels[i] * table.levels[i] * p;
    table.entropy -= p * std::log2(p);
  }
  return table;
}

void Hadamard(std::vector<double>& x) {
  const size_t n = x.size();
  NIBBLE_CHECK(n > 0 && (n & (n - 1)) == 0, "a Walsh-Hadamard transform needs a power of two");
  for (size_t half = 1; half < n; half *= 2)
    for (size_t begin = 0; begin < n; begin += 2 * half)
      for (size_t i = begin; i < begin + half; ++i) {
        const double a = x[i], b = x[i + half];
        x[i] = a + b;
        x[i + half] = a - b;
      }
  for (double& v : x) v /= std::sqrt(double(n));
}

TurboQuantVector TurboQuantEncode(const std::vector<double>& x, const LloydMax& table) {
  TurboQuantVector v;
  v.norm = std::sqrt(std::inner_product(x.begin(), x.end(), x.begin(), 0.0));
  std::vector<double> y = x;
  for (double& c : y) c = v.norm > 0 ? c / v.norm : 0;
  Hadamard(y);
  // Components of a rotated unit vector are close to N(0, 1/dim). One on a boundary goes up.
  for (const double c : y)
    v.index.push_back(int(
        std::upper_bound(table.boundaries.begin(), table.boundaries.end(), c * std::sqrt(double(x.size()))) -
        table.boundaries.begin()));
  return v;
}

std::vector<double> TurboQuantDecode(const TurboQuantVector& v, const LloydMax& table,
                                     NormCorrection correction) {
  std::vector<double> y;
  for (const int i : v.index) y.push_back(table.levels[size_t(i)] / std::sqrt(double(v.index.size())));
  double length = v.norm;
  if (correction == NormCorrection::kOn)
    length /= std::sqrt(std::inner_product(y.begin(), y.end(), y.begin(), 0.0));
  Hadamard(y);
  for (double& c : y) c *= length;
  return y;
}

}  // namespace nibble::ref
