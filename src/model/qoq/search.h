// SPDX-License-Identifier: Apache-2.0
// Floor 7. What the searches for smoothing factors share: samples, maxima, simulated 4-bit rows, and the grid
// of exponents (arXiv 2405.04532; the grid is that of its published code).
#pragma once
#include <functional>
#include <vector>

#include "model/qoq/matrix.h"

namespace nibble::qoq {

// At most `rows` rows of columns [first, first + count), evenly spread over x.
Matrix SampleColumns(const Matrix& x, int first, int count, int rows);
// max |x| of each column.
std::vector<float> ColumnMax(const Matrix& x, int first, int count);

// For rows of one head: sum over rows of d^T moment d, where d is the error of (row / lambda) in the codec
// int4-token, times lambda.
double WeightedInt4Error(const Matrix& rows, const std::vector<float>& lambda, const Matrix& moment,
                         Math& math);
// The same with the rows in place of their errors.
double WeightedEnergy(const Matrix& rows, const Matrix& moment, Math& math);

struct Choice {
  double alpha = 0, beta = 0, error = 0;
};
// The least error over (a, 0) and (a, 1 - a), a = 0.05, 0.1, ..., 1; `none` unless one is better.
Choice SearchExponents(Choice none, const std::function<double(double alpha, double beta)>& error);

}  // namespace nibble::qoq
