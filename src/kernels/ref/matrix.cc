// SPDX-License-Identifier: Apache-2.0
#include "kernels/ref/matrix.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace nibble::ref {

Matrix FromFloats(const float* data, int rows, int dim, int64_t stride) {
  Matrix m(rows, dim);
  for (int r = 0; r < rows; ++r)
    for (int d = 0; d < dim; ++d) m[r][d] = double(data[r * stride + d]);
  return m;
}

Matrix Copy(View x) {
  Matrix m(x.rows, x.dim);
  for (int r = 0; r < x.rows; ++r) std::copy(x[r], x[r] + x.dim, m[r]);
  return m;
}

double Dot(const double* a, const double* b, int dim) {
  double sum = 0;
  for (int d = 0; d < dim; ++d) sum += a[d] * b[d];
  return sum;
}

int64_t IntDot(const int* a, const int* b, int dim) {
  int64_t sum = 0;
  for (int d = 0; d < dim; ++d) sum += int64_t{a[d]} * b[d];
  return sum;
}

std::vector<double> RowMean(View x) {
  std::vector<double> mean(size_t(x.dim), 0.0);
  for (int r = 0; r < x.rows; ++r)
    for (int d = 0; d < x.dim; ++d) mean[d] += x[r][d];
  for (double& m : mean) m /= std::max(x.rows, 1);
  return mean;
}

Matrix MinusRow(View x, const std::vector<double>& row) {
  Matrix m = Copy(x);
  for (int r = 0; r < m.rows; ++r)
    for (int d = 0; d < m.dim; ++d) m[r][d] -= row[d];
  return m;
}

double AbsMax(View x) {
  double amax = 0;
  for (int r = 0; r < x.rows; ++r)
    for (int d = 0; d < x.dim; ++d) {
      if (!std::isfinite(x[r][d])) return std::numeric_limits<double>::quiet_NaN();
      amax = std::max(amax, std::abs(x[r][d]));
    }
  return amax;
}

std::vector<double> Softmax(const std::vector<double>& logits) {
  double max = -INFINITY, sum = 0;
  for (const double x : logits) max = std::max(max, x);
  std::vector<double> p(logits.size(), 0.0);
  if (max == -INFINITY) return p;
  for (size_t i = 0; i < p.size(); ++i) sum += p[i] = std::exp(logits[i] - max);
  for (double& x : p) x /= sum;
  return p;
}

}  // namespace nibble::ref
