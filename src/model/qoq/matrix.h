// SPDX-License-Identifier: Apache-2.0
// Floor 7. Dense float matrices for post-training quantization: a plain row-major owner, and the products
// that calibration needs, run on the CPU kernels. Every result is the same bytes for any number of threads.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/thread_pool.h"
#include "kernels/cpu/table.h"

namespace nibble::qoq {

struct Matrix {
  int rows = 0, cols = 0;
  std::vector<float> v = {};  // [rows, cols]
  Matrix() = default;
  Matrix(int rows_in, int cols_in)
      : rows(rows_in), cols(cols_in), v(static_cast<size_t>(rows_in) * static_cast<size_t>(cols_in)) {}
  float* Row(int r) { return v.data() + int64_t{r} * cols; }
  const float* Row(int r) const { return v.data() + int64_t{r} * cols; }
};

class Math {
 public:
  // threads >= 1. Fails as cpu::ChooseIsa.
  static Result<std::unique_ptr<Math>> Make(int threads);

  // y[m, n] = sum_k x[m, k] w[n, k] (+ bias[n]).
  Matrix Product(const Matrix& x, const Matrix& w, std::span<const float> bias = {});
  // y[:, first ...] += x w^T, in place.
  void AddProduct(const Matrix& x, const Matrix& w, int first, Matrix* y);
  // sum_t a[t, i] b[t, j]: [a.cols, b.cols].
  Matrix Cross(const Matrix& a, const Matrix& b);
  // Cross(x, x), which is symmetric: half the work.
  Matrix Gram(const Matrix& x);
  Matrix RmsNorm(const Matrix& x, std::span<const float> weight, float eps);
  // act(gate) * up.
  Matrix Glu(const Matrix& gate, const Matrix& up, Activation activation);
  // Rows become what W8A8 and W4A8 products see of them: 8 bits, one scale a row.
  void RoundToInt8(Matrix* x);

  // f(row, worker) for every row.
  template <class F>
  void ForRows(int rows, F&& f) {
    pool_.Run(rows, [&](int64_t row, int worker) { f(static_cast<int>(row), worker); });
  }
  int threads() const { return pool_.threads(); }

 private:
  Math(const cpu::CpuKernels& kernels, int threads) : kernels_(kernels), pool_(threads) {}
  struct Packed;
  void Multiply(const float* x, int64_t x_stride, int rows, const Packed& w, const float* bias, float* y,
                int64_t y_stride, bool accumulate, bool lower_only);
  Packed PackRows(const Matrix& w);     // w [n, k]
  Packed PackColumns(const Matrix& w);  // w [k, n]

  const cpu::CpuKernels& kernels_;
  ThreadPool pool_;
};

Matrix Transpose(const Matrix& a);
// sum over all elements of x^2, in double and in row order.
double SquaredNorm(const Matrix& x);
double SquaredDistance(const Matrix& a, const Matrix& b);
// The first element that is not finite, or -1.
int64_t FindNotFinite(const Matrix& x);

}  // namespace nibble::qoq
