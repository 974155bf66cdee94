// SPDX-License-Identifier: Apache-2.0
#include "kernels/ref/gear.h"

#include <algorithm>
#include <cmath>

#include "kernels/ref/top_k.h"

namespace nibble::ref {
namespace {

Matrix Transposed(View x) {
  Matrix t(x.dim, x.rows);
  for (int r = 0; r < x.rows; ++r)
    for (int d = 0; d < x.dim; ++d) t[d][r] = x[r][d];
  return t;
}

Matrix Multiply(View a, View b) {  // a * b
  Matrix out(a.rows, b.dim);
  for (int r = 0; r < a.rows; ++r)
    for (int i = 0; i < a.dim; ++i)
      for (int d = 0; d < b.dim; ++d) out[r][d] += a[r][i] * b[i][d];
  return out;
}

// Gram-Schmidt on the columns. A column that the others span becomes zero.
Matrix Orthonormalised(View x) {
  Matrix columns = Transposed(x);
  for (int c = 0; c < columns.rows; ++c) {
    double* column = columns[c];
    const double before = std::sqrt(Dot(column, column, columns.dim));
    for (int b = 0; b < c; ++b) {
      const double along = Dot(columns[b], column, columns.dim);
      for (int i = 0; i < columns.dim; ++i) column[i] -= along * columns[b][i];
    }
    const double norm = std::sqrt(Dot(column, column, columns.dim));
    const double inverse = norm > 1e-12 * before ? 1 / norm : 0;
    for (int i = 0; i < columns.dim; ++i) column[i] *= inverse;
  }
  return Transposed(columns);
}

void QuantizeRow(double* x, int n, int bits, int group, Rounding rounding) {
  const int step = group > 0 ? group : n;
  for (int begin = 0; begin < n; begin += step) {
    const int end = std::min(n, begin + step);
    const KiviGroup g = KiviQuantize(std::vector<double>(x + begin, x + end), bits, rounding);
    for (int i = begin; i < end; ++i) x[i] = g.codes[size_t(i - begin)] * g.scale + g.min;
  }
}

// The extremes of a row, half of them at each end, replaced by the row's mean; returns their indices.
std::vector<int> TakeOutliers(double* x, int n, double share) {
  const int each = int(share * n / 2);
  std::vector<double> values(x, x + n), negated;
  double mean = 0;
  for (const double v : values) {
    negated.push_back(-v);
    mean += v / n;
  }
  std::vector<int> taken = TopK(values, each);
  for (const int i : TopK(negated, each)) taken.push_back(i);
  for (const int i : taken) x[i] = mean;
  return taken;
}

}  // namespace

KiviGroup KiviQuantize(const std::vector<double>& x, int bits, Rounding rounding, Storage storage) {
  KiviGroup g;
  if (x.empty()) return g;
  const auto [lo, hi] = std::minmax_element(x.begin(), x.end());
  const int levels = (1 << bits) - 1;
  g.min = Store(*lo, storage);
  g.scale = Store((*hi - *lo) / levels, storage);
  for (const double v : x)
    g.codes.push_back(g.scale > 0 ? RoundToCode((v - g.min) / g.scale, rounding, 0, levels) : 0);
  return g;
}

Matrix KiviDecoded(View x, int bits, GroupAxis axis, int group, Rounding rounding) {
  Matrix rows = axis == GroupAxis::kChannel ? Transposed(x) : Copy(x);
  for (int r = 0; r < rows.rows; ++r) QuantizeRow(rows[r], rows.dim, bits, group, rounding);
  return axis == GroupAxis::kChannel ? Transposed(rows) : rows;
}

LowRank PowerIteration(View e, View start, int loops) {
  const Matrix e_t = Transposed(e);
  LowRank l{{}, Copy(start)};
  for (int i = 0; i < loops; ++i) {
    const bool last = i == loops - 1;
    if (last) l.p = Orthonormalised(l.p);
    l.q = Multiply(e, l.p);
    if (last) l.q = Orthonormalised(l.q);
    l.p = Multiply(e_t, l.q);
  }
  return l;
}

Matrix Product(const LowRank& l) { return Multiply(l.q, Transposed(l.p)); }

Matrix GearDecoded(View x, const GearSpec& spec, View start) {
  const bool by_channel = spec.axis == GroupAxis::kChannel;
  const Matrix original = by_channel ? Transposed(x) : Copy(x);
  Matrix rows = original;
  std::vector<std::vector<int>> outliers;
  for (int r = 0; r < rows.rows; ++r) {
    outliers.push_back(TakeOutliers(rows[r], rows.dim, spec.sparse));
    QuantizeRow(rows[r], rows.dim, spec.bits, spec.group, Rounding::kEven);
    for (const int i : outliers.back()) rows[r][i] = original[r][i];
  }
  Matrix decoded = by_channel ? Transposed(rows) : rows;
  if (spec.rank == 0) return decoded;
  Matrix residual = Copy(x);
  for (size_t i = 0; i < residual.data.size(); ++i) residual.data[i] -= decoded.data[i];
  const Matrix low_rank = Product(PowerIteration(residual, start, spec.loops));
  for (size_t i = 0; i < decoded.data.size(); ++i) decoded.data[i] += low_rank.data[i];
  return decoded;
}

double FrobeniusNorm(View x) {
  double sum = 0;
  for (int r = 0; r < x.rows; ++r) sum += Dot(x[r], x[r], x.dim);
  return std::sqrt(sum);
}

}  // namespace nibble::ref
