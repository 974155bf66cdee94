// SPDX-License-Identifier: Apache-2.0
#include "model/qoq/gptq.h"

#include <algorithm>
#include <mutex>

#include "base/check.h"

namespace nibble::qoq {
namespace {

using weight::Storage;

// Columns whose errors are carried over together; also a group of kW4A8Group.
constexpr int kBlock = weight::kGroup;

// Rounds all rows of one matrix, a block of columns at a time.
class Rounder {
 public:
  Rounder(const Matrix& w, const Matrix& u, const RoundingOptions& options, Math& math)
      : w_(w), u_(u), options_(options), math_(math), values_(w.rows, w.cols), grids_(size_t(w.rows)) {}

  Result<Rounded> Run();

 private:
  Status FitRows();
  void RoundBlock(int begin, int end);
  void RoundRow(int row, int begin, int end, Matrix* errors);
  void Store(int row, int column, int code);
  std::span<const float> RowOf(int row, int begin, int count) const {
    return {w_.Row(row) + begin, static_cast<size_t>(count)};
  }

  Matrix w_;         // what is left to round: columns after the current one carry the errors before it
  const Matrix& u_;  // [k, k] upper triangular
  RoundingOptions options_;
  Math& math_;
  Matrix values_;
  std::vector<Grid> grids_;        // of each row: for good, or of its current group
  std::vector<float> importance_;  // [k]: the loss of a squared error that later columns cannot make up for
  weight::QuantizedWeight codes_;
};

Status Rounder::FitRows() {
  if (options_.clip) {
    importance_.resize(static_cast<size_t>(w_.cols));
    for (int i = 0; i < w_.cols; ++i)
      importance_[static_cast<size_t>(i)] = 1.0f / (u_.Row(i)[i] * u_.Row(i)[i]);
  }
  std::mutex mutex;
  Status failure;
  int failed_row = INT32_MAX;
  math_.ForRows(w_.rows, [&](int row, int) {
    const auto all = RowOf(row, 0, w_.cols);
    uint16_t* scale = &codes_.scale[static_cast<size_t>(row)];
    Status status;
    if (options_.storage == Storage::kW4A8Group) {
      const auto s1 = GroupRowScale(all);
      if (s1.ok()) *scale = *s1;
      status = s1.status();
    } else {
      const auto grid = FitRowGrid(all, options_.storage, importance_, scale);
      if (grid.ok()) grids_[static_cast<size_t>(row)] = *grid;
      if (grid.ok() && options_.storage == Storage::kW4A8Channel)
        codes_.zero[static_cast<size_t>(row)] = static_cast<uint8_t>(grid->zero);
      status = grid.status();
    }
    if (status.ok()) return;
    const std::lock_guard lock(mutex);
    if (row < failed_row) failure = Error(status.code(), "row {}: {}", row, status.message());
    failed_row = std::min(failed_row, row);
  });
  return failure;
}

void Rounder::Store(int row, int column, int code) {
  if (options_.storage == Storage::kW8A8) {
    codes_.codes[static_cast<size_t>(int64_t{row} * w_.cols + column)] = static_cast<uint8_t>(code - 127);
    return;
  }
  uint8_t& pair = codes_.codes[static_cast<size_t>((int64_t{row} * w_.cols + column) / 2)];
  pair = static_cast<uint8_t>(column % 2 == 0 ? code : pair | code << 4);
}

void Rounder::RoundRow(int row, int begin, int end, Matrix* errors) {
  Grid& grid = grids_[static_cast<size_t>(row)];
  if (options_.storage == Storage::kW4A8Group) {
    const auto importance =
        options_.clip ? std::span<const float>(importance_).subspan(size_t(begin), size_t(end - begin))
                      : std::span<const float>();
    grid = FitGroupGrid(RowOf(row, begin, end - begin), HalfToFloat(codes_.scale[size_t(row)]), importance);
    const auto at = static_cast<size_t>(row * int64_t{w_.cols / kBlock} + begin / kBlock);
    codes_.group_scale[at] = static_cast<uint8_t>(grid.scale);
    codes_.zero[at] = static_cast<uint8_t>(grid.zero);
  }
  float* w = w_.Row(row);
  for (int j = begin; j < end; ++j) {
    const int code = grid.Code(w[j]);
    Store(row, j, code);
    const float value = grid.Value(code);
    values_.Row(row)[j] = value;
    if (!options_.gptq) continue;
    const float* u = u_.Row(j);
    const float error = (value - w[j]) / u[j];
    errors->Row(row)[j - begin] = error;
    for (int i = j + 1; i < end; ++i) w[i] += error * u[i];
  }
}

void Rounder::RoundBlock(int begin, int end) {
  Matrix errors(w_.rows, end - begin);
  math_.ForRows(w_.rows, [&](int row, int) { RoundRow(row, begin, end, &errors); });
  if (!options_.gptq || end == w_.cols) return;
  Matrix later(w_.cols - end, end - begin);  // u[begin:end, end:], transposed
  for (int i = end; i < w_.cols; ++i)
    for (int j = begin; j < end; ++j) later.Row(i - end)[j - begin] = u_.Row(j)[i];
  math_.AddProduct(errors, later, end, &w_);
}

Result<Rounded> Rounder::Run() {
  NIBBLE_ASSIGN(codes_, weight::AllocateQuantized(w_.rows, w_.cols, options_.storage));
  NIBBLE_RETURN_IF_ERROR(FitRows());
  for (int begin = 0; begin < w_.cols; begin += kBlock) RoundBlock(begin, std::min(w_.cols, begin + kBlock));
  return Rounded{std::move(codes_), std::move(values_)};
}

}  // namespace

Result<Rounded> Round(const Matrix& w, const Matrix& u, const RoundingOptions& options, Math& math) {
  NIBBLE_CHECK(u.rows == w.cols && u.cols == w.cols, "factor of another matrix");
  return Rounder(w, u, options, math).Run();
}

void RoundToNearest(Storage storage, Math& math, Matrix* w) {
  math.ForRows(w->rows, [&](int r, int) {
    float* row = w->Row(r);
    const auto span = [&](int first, int count) {
      return std::span<const float>(row + first, size_t(count));
    };
    const auto apply = [row](const Grid& grid, int first, int count) {
      for (int i = first; i < first + count; ++i) row[i] = grid.Value(grid.Code(row[i]));
    };
    uint16_t scale = 0;
    if (storage != Storage::kW4A8Group) {
      const auto grid = FitRowGrid(span(0, w->cols), storage, {}, &scale);
      if (grid.ok()) apply(*grid, 0, w->cols);
      return;
    }
    const auto s1 = GroupRowScale(span(0, w->cols));
    for (int first = 0; s1.ok() && first < w->cols; first += kBlock)
      apply(FitGroupGrid(span(first, kBlock), HalfToFloat(*s1), {}), first, kBlock);
  });
}

Matrix MakeUpFor(const Matrix& w, const Matrix& gap, const Matrix& u, Math& math) {
  const Matrix correction = math.Product(math.Product(gap, u), Transpose(u));  // gap U^T U
  Matrix out = w;
  for (size_t i = 0; i < out.v.size(); ++i) out.v[i] += correction.v[i];
  return out;
}

}  // namespace nibble::qoq
