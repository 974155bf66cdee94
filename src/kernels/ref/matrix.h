// SPDX-License-Identifier: Apache-2.0
// Floor 4. The flat matrices in double that the definitions of the papers' arithmetics work on: one head,
// rows are tokens, no pages.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace nibble::ref {

// Rows of someone else's matrix. stride: elements from one row to the next.
struct View {
  const double* data = nullptr;
  int rows = 0, dim = 0;
  int64_t stride = 0;

  const double* operator[](int row) const { return data + row * stride; }
  View Slice(int begin, int end) const { return {data + begin * stride, end - begin, dim, stride}; }
};

struct Matrix {
  int rows = 0, dim = 0;
  std::vector<double> data;

  Matrix() = default;
  Matrix(int rows_in, int dim_in) : rows(rows_in), dim(dim_in), data(size_t(rows_in) * size_t(dim_in)) {}
  double* operator[](int row) { return data.data() + int64_t{row} * dim; }
  const double* operator[](int row) const { return data.data() + int64_t{row} * dim; }
  operator View() const { return {data.data(), rows, dim, dim}; }
  View Slice(int begin, int end) const { return View(*this).Slice(begin, end); }
};

// Integer codes in the shape of the matrix they stand for.
struct Codes {
  int rows = 0, dim = 0;
  std::vector<int> data;

  Codes() = default;
  Codes(int rows_in, int dim_in) : rows(rows_in), dim(dim_in), data(size_t(rows_in) * size_t(dim_in)) {}
  int* operator[](int row) { return data.data() + int64_t{row} * dim; }
  const int* operator[](int row) const { return data.data() + int64_t{row} * dim; }
};

Matrix FromFloats(const float* data, int rows, int dim, int64_t stride);
Matrix Copy(View x);
double Dot(const double* a, const double* b, int dim);
int64_t IntDot(const int* a, const int* b, int dim);
std::vector<double> RowMean(View x);                      // mean row, by channel; zero if no rows
Matrix MinusRow(View x, const std::vector<double>& row);  // x - row in every row
double AbsMax(View x);  // 0 if there are no rows, NaN if a value is not finite
std::vector<double> Softmax(const std::vector<double>& logits);  // -inf gets weight 0

}  // namespace nibble::ref
