// SPDX-License-Identifier: Apache-2.0
#include "model/qoq/cholesky.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace nibble::qoq {
namespace {

constexpr int kBlock = 64;

// a (lower half) becomes L with L L^T = a; false when a is not positive definite. Blocks of columns: the rows
// below a finished block are independent of each other.
bool Factor(std::vector<double>* a, int n, Math& math) {
  const auto row = [&](int i) { return a->data() + int64_t{i} * n; };
  const auto dot = [](const double* x, const double* y, int count) {
    double lane[4] = {};
    int k = 0;
    for (; k + 4 <= count; k += 4)
      for (int l = 0; l < 4; ++l) lane[l] += x[k + l] * y[k + l];
    for (; k < count; ++k) lane[0] += x[k] * y[k];
    return (lane[0] + lane[1]) + (lane[2] + lane[3]);
  };
  for (int begin = 0; begin < n; begin += kBlock) {
    const int end = std::min(n, begin + kBlock);
    for (int j = begin; j < end; ++j) {
      for (int i = begin; i < j; ++i) row(j)[i] = (row(j)[i] - dot(row(j), row(i), i)) / row(i)[i];
      const double d = row(j)[j] - dot(row(j), row(j), j);
      if (!(d > 0)) return false;
      row(j)[j] = std::sqrt(d);
    }
    math.ForRows(n - end, [&](int r, int) {
      double* x = row(end + r);
      for (int j = begin; j < end; ++j) x[j] = (x[j] - dot(x, row(j), j)) / row(j)[j];
    });
  }
  return true;
}

// The inverse of lower triangular l, transposed: column j of the inverse in row j. Rows are independent.
std::vector<double> InvertTransposed(const std::vector<double>& l, int n, Math& math) {
  std::vector<double> out(l.size());
  math.ForRows(n, [&](int j, int) {
    double* x = out.data() + int64_t{j} * n;
    for (int i = j; i < n; ++i) {
      const double* row = l.data() + int64_t{i} * n;
      double lane[4] = {};
      int k = j;
      for (; k + 4 <= i; k += 4)
        for (int q = 0; q < 4; ++q) lane[q] += row[k + q] * x[k + q];
      for (; k < i; ++k) lane[0] += row[k] * x[k];
      x[i] = ((i == j ? 1.0 : 0.0) - ((lane[0] + lane[1]) + (lane[2] + lane[3]))) / row[i];
    }
  });
  return out;
}

}  // namespace

Matrix InverseFactor(const Matrix& h, double damping, Math& math, double* used) {
  const int n = h.rows;
  double mean = 0;
  for (int i = 0; i < n; ++i) mean += double(h.Row(i)[i]) / n;
  if (!(mean > 0)) mean = 1;
  // With J the reversal of the order and J H J = L L^T, H^-1 = (J L^-1 J)^T (J L^-1 J): one factorization and
  // one triangular inverse give U.
  std::vector<double> a(h.v.size());
  for (double share = damping;; share *= 10) {
    NIBBLE_CHECK(share < 1e12, "a finite symmetric matrix becomes positive definite");
    for (int i = 0; i < n; ++i)
      for (int j = 0; j <= i; ++j) a[static_cast<size_t>(int64_t{i} * n + j)] = h.Row(n - 1 - i)[n - 1 - j];
    for (int i = 0; i < n; ++i) {
      double& d = a[static_cast<size_t>(int64_t{i} * n + i)];
      d = (d > 0 ? d : mean) + share * mean;
    }
    if (used != nullptr) *used = share;
    if (Factor(&a, n, math)) break;
  }
  const std::vector<double> inverse = InvertTransposed(a, n, math);  // inverse[j][i] = (L^-1)[i][j]
  Matrix u(n, n);
  for (int i = 0; i < n; ++i)
    for (int j = i; j < n; ++j)
      u.Row(i)[j] = static_cast<float>(inverse[static_cast<size_t>(int64_t{n - 1 - j} * n + n - 1 - i)]);
  return u;
}

}  // namespace nibble::qoq
