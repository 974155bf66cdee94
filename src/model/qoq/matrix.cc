// SPDX-License-Identifier: Apache-2.0
#include "model/qoq/matrix.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "base/half.h"
#include "kernels/cpu/kernels.h"

namespace nibble::qoq {
namespace {

constexpr int kRowBlock = 192;  // rows of one work item: a multiple of the kernel's 12
constexpr int kPanelBlock = 4;  // panels of one work item

}  // namespace

// Panels of 16 outputs, as float layouts are read by kernels: [n/16][k][16].
struct Math::Packed {
  std::vector<float> v;
  weight::PackedWeight w;
};

Result<std::unique_ptr<Math>> Math::Make(int threads) {
  NIBBLE_ASSIGN(const cpu::CpuKernels* kernels, cpu::ChooseIsa());
  return std::unique_ptr<Math>(new Math(*kernels, threads));
}

Math::Packed Math::PackRows(const Matrix& w) {
  const int panels = (w.rows + weight::kPanel - 1) / weight::kPanel;
  Packed p;
  p.v.resize(static_cast<size_t>(panels) * weight::kPanel * static_cast<size_t>(w.cols));
  pool_.Run(panels, [&](int64_t panel, int) {
    float* out = p.v.data() + panel * w.cols * weight::kPanel;
    const int first = static_cast<int>(panel) * weight::kPanel;
    const int count = std::min(weight::kPanel, w.rows - first);
    for (int r = 0; r < count; ++r) {
      const float* row = w.Row(first + r);
      for (int k = 0; k < w.cols; ++k) out[k * weight::kPanel + r] = row[k];
    }
  });
  p.w.n = w.rows;
  p.w.k = w.cols;
  p.w.codes = reinterpret_cast<const std::byte*>(p.v.data());
  return p;
}

Math::Packed Math::PackColumns(const Matrix& w) {
  const int panels = (w.cols + weight::kPanel - 1) / weight::kPanel;
  Packed p;
  p.v.resize(static_cast<size_t>(panels) * weight::kPanel * static_cast<size_t>(w.rows));
  pool_.Run(panels, [&](int64_t panel, int) {
    float* out = p.v.data() + panel * w.rows * weight::kPanel;
    const int first = static_cast<int>(panel) * weight::kPanel;
    const auto bytes = static_cast<size_t>(std::min(weight::kPanel, w.cols - first)) * sizeof(float);
    for (int k = 0; k < w.rows; ++k) std::memcpy(out + k * weight::kPanel, w.Row(k) + first, bytes);
  });
  p.w.n = w.cols;
  p.w.k = w.rows;
  p.w.codes = reinterpret_cast<const std::byte*>(p.v.data());
  return p;
}

void Math::Multiply(const float* x, int64_t x_stride, int rows, const Packed& w, const float* bias, float* y,
                    int64_t y_stride, bool accumulate, bool lower_only) {
  const int panels = (w.w.n + weight::kPanel - 1) / weight::kPanel;
  const int64_t row_blocks = (rows + kRowBlock - 1) / kRowBlock;
  const int64_t panel_blocks = (panels + kPanelBlock - 1) / kPanelBlock;
  pool_.Run(row_blocks * panel_blocks, [&](int64_t item, int) {
    const int row = static_cast<int>(item / panel_blocks) * kRowBlock;
    const int panel = static_cast<int>(item % panel_blocks) * kPanelBlock;
    const int count = std::min(kRowBlock, rows - row);
    if (lower_only && panel * weight::kPanel > row + count) return;  // above the diagonal
    kernels_.linear({.w = w.w,
                     .x = x + row * x_stride,
                     .xq = nullptr,
                     .x_scale = nullptr,
                     .group_sum = nullptr,
                     .bias = bias,
                     .y = y + row * y_stride,
                     .x_stride = x_stride,
                     .y_stride = y_stride,
                     .rows = count,
                     .panel_begin = panel,
                     .panel_end = std::min(panels, panel + kPanelBlock),
                     .arith = MatmulArith::kF32,
                     .accumulate = accumulate});
  });
}

Matrix Math::Product(const Matrix& x, const Matrix& w, std::span<const float> bias) {
  NIBBLE_CHECK(x.cols == w.cols && (bias.empty() || int(bias.size()) == w.rows), "shapes of a product");
  Matrix y(x.rows, w.rows);
  const Packed packed = PackRows(w);
  Multiply(x.v.data(), x.cols, x.rows, packed, bias.empty() ? nullptr : bias.data(), y.v.data(), y.cols,
           false, false);
  return y;
}

void Math::AddProduct(const Matrix& x, const Matrix& w, int first, Matrix* y) {
  NIBBLE_CHECK(x.cols == w.cols && x.rows == y->rows && first + w.rows <= y->cols, "shapes of a product");
  const Packed packed = PackRows(w);
  Multiply(x.v.data(), x.cols, x.rows, packed, nullptr, y->v.data() + first, y->cols, true, false);
}

Matrix Math::Cross(const Matrix& a, const Matrix& b) {
  NIBBLE_CHECK(a.rows == b.rows, "shapes of a product");
  const Matrix at = Transpose(a);
  Matrix y(a.cols, b.cols);
  Multiply(at.v.data(), at.cols, at.rows, PackColumns(b), nullptr, y.v.data(), y.cols, false, false);
  return y;
}

Matrix Math::Gram(const Matrix& x) {
  const Matrix xt = Transpose(x);
  Matrix y(x.cols, x.cols);
  Multiply(xt.v.data(), xt.cols, xt.rows, PackColumns(x), nullptr, y.v.data(), y.cols, false, true);
  for (int i = 0; i < y.rows; ++i)
    for (int j = i + 1; j < y.cols; ++j) y.Row(i)[j] = y.Row(j)[i];
  return y;
}

Matrix Math::RmsNorm(const Matrix& x, std::span<const float> weight, float eps) {
  Matrix y(x.rows, x.cols);
  ForRows(x.rows, [&](int r, int) {
    kernels_.rms_norm({.x = x.Row(r),
                       .weight = weight.data(),
                       .y = y.Row(r),
                       .x_stride = x.cols,
                       .y_stride = x.cols,
                       .rows = 1,
                       .k = x.cols,
                       .eps = eps});
  });
  return y;
}

Matrix Math::Glu(const Matrix& gate, const Matrix& up, Activation activation) {
  Matrix y(gate.rows, gate.cols);
  ForRows(gate.rows, [&](int r, int) {
    kernels_.glu({.gate = gate.Row(r),
                  .up = up.Row(r),
                  .y = y.Row(r),
                  .gate_stride = gate.cols,
                  .up_stride = gate.cols,
                  .y_stride = gate.cols,
                  .rows = 1,
                  .k = gate.cols,
                  .activation = activation});
  });
  return y;
}

void Math::RoundToInt8(Matrix* x) {
  const int groups = (x->cols + weight::kGroup - 1) / weight::kGroup;
  struct Work {
    std::vector<int8_t> q;
    std::vector<int32_t> sum;
  };
  std::vector<Work> work(static_cast<size_t>(threads()));
  for (Work& w : work) {
    w.q.resize(static_cast<size_t>(x->cols));
    w.sum.resize(static_cast<size_t>(groups));
  }
  ForRows(x->rows, [&](int r, int worker) {
    Work& w = work[static_cast<size_t>(worker)];
    float scale = 0;
    float* row = x->Row(r);
    kernels_.quantize_rows({.x = row,
                            .q = w.q.data(),
                            .scale = &scale,
                            .group_sum = w.sum.data(),
                            .x_stride = x->cols,
                            .rows = 1,
                            .k = x->cols});
    for (int i = 0; i < x->cols; ++i) row[i] = float(w.q[static_cast<size_t>(i)]) * scale;
  });
}

Matrix Transpose(const Matrix& a) {
  constexpr int kBlock = 32;
  Matrix t(a.cols, a.rows);
  for (int r0 = 0; r0 < a.rows; r0 += kBlock)
    for (int c0 = 0; c0 < a.cols; c0 += kBlock)
      for (int c = c0; c < std::min(a.cols, c0 + kBlock); ++c)
        for (int r = r0; r < std::min(a.rows, r0 + kBlock); ++r) t.Row(c)[r] = a.Row(r)[c];
  return t;
}

double SquaredNorm(const Matrix& x) {
  double sum = 0;
  for (const float f : x.v) sum += double(f) * double(f);
  return sum;
}

double SquaredDistance(const Matrix& a, const Matrix& b) {
  NIBBLE_CHECK(a.v.size() == b.v.size(), "sizes of a distance");
  double sum = 0;
  for (size_t i = 0; i < a.v.size(); ++i) {
    const double d = double(a.v[i]) - double(b.v[i]);
    sum += d * d;
  }
  return sum;
}

int64_t FindNotFinite(const Matrix& x) {
  for (size_t i = 0; i < x.v.size(); ++i)
    if (!std::isfinite(x.v[i])) return static_cast<int64_t>(i);
  return -1;
}

}  // namespace nibble::qoq
