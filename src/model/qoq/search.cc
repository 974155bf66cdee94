// SPDX-License-Identifier: Apache-2.0
#include "model/qoq/search.h"

#include <algorithm>
#include <cmath>

#include "quant/kv/token_affine.h"

namespace nibble::qoq {
namespace {

constexpr int kSteps = 20;
constexpr int kLevels = 15;

// One row of a head through the codec int4-token, which works on multiples of 8 channels: the rest repeats
// the last one and changes nothing.
void RoundToInt4(const float* x, int n, std::vector<float>* padded, float* out) {
  padded->assign(static_cast<size_t>((n + 7) / 8 * 8), x[n - 1]);
  std::copy_n(x, n, padded->data());
  const kv::TokenParams p = kv::FitToken(padded->data(), static_cast<int>(padded->size()), kLevels);
  const float scale = HalfToFloat(p.scale);
  for (int i = 0; i < n; ++i) out[i] = float(kv::TokenCode(x[i], p, kLevels)) * scale + p.base;
}

}  // namespace

Matrix SampleColumns(const Matrix& x, int first, int count, int rows) {
  const int taken = std::min(rows, x.rows);
  Matrix out(taken, count);
  for (int i = 0; i < taken; ++i) {
    const auto row = static_cast<int>(int64_t{i} * x.rows / taken);
    std::copy_n(x.Row(row) + first, count, out.Row(i));
  }
  return out;
}

std::vector<float> ColumnMax(const Matrix& x, int first, int count) {
  std::vector<float> max(static_cast<size_t>(count));
  for (int t = 0; t < x.rows; ++t)
    for (int i = 0; i < count; ++i) {
      float& m = max[static_cast<size_t>(i)];
      m = std::max(m, std::fabs(x.Row(t)[first + i]));
    }
  return max;
}

double WeightedEnergy(const Matrix& rows, const Matrix& moment, Math& math) {
  const Matrix weighted = math.Product(rows, moment);  // the moment is symmetric
  double sum = 0;
  for (size_t i = 0; i < rows.v.size(); ++i) sum += double(rows.v[i]) * double(weighted.v[i]);
  return sum;
}

double WeightedInt4Error(const Matrix& rows, const std::vector<float>& lambda, const Matrix& moment,
                         Math& math) {
  Matrix error(rows.rows, rows.cols);
  std::vector<std::vector<float>> scaled(static_cast<size_t>(math.threads()));
  std::vector<std::vector<float>> padded(scaled.size());
  for (auto& s : scaled) s.resize(static_cast<size_t>(rows.cols));
  math.ForRows(rows.rows, [&](int t, int worker) {
    float* x = scaled[static_cast<size_t>(worker)].data();
    for (int i = 0; i < rows.cols; ++i) x[i] = rows.Row(t)[i] / lambda[static_cast<size_t>(i)];
    float* e = error.Row(t);
    RoundToInt4(x, rows.cols, &padded[static_cast<size_t>(worker)], e);
    for (int i = 0; i < rows.cols; ++i) e[i] = (e[i] - x[i]) * lambda[static_cast<size_t>(i)];
  });
  return WeightedEnergy(error, moment, math);
}

Choice SearchExponents(Choice none, const std::function<double(double, double)>& error) {
  Choice best = none;
  for (int i = 1; i <= kSteps; ++i) {
    const double a = double(i) / kSteps;
    for (const double b : {0.0, 1.0 - a}) {
      if (i == kSteps && b == 0.0 && best.alpha == 1.0) continue;  // (1, 0) comes twice
      const double e = error(a, b);
      if (e < best.error) best = {a, b, e};
    }
  }
  return best;
}

}  // namespace nibble::qoq
