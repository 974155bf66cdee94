// SPDX-License-Identifier: Apache-2.0
#include "model/qoq/reorder.h"

#include <algorithm>
#include <numeric>

namespace nibble::qoq {
namespace {

void ReorderRows(const std::vector<int>& order, FloatLinear* linear) {
  const FloatLinear old = *linear;
  for (int r = 0; r < old.w.rows; ++r) {
    const int from = order[static_cast<size_t>(r)];
    std::copy_n(old.w.Row(from), old.w.cols, linear->w.Row(r));
    if (!old.bias.empty()) linear->bias[static_cast<size_t>(r)] = old.bias[static_cast<size_t>(from)];
  }
}

}  // namespace

std::vector<int> ByEnergy(const Matrix& x) {
  std::vector<double> energy(static_cast<size_t>(x.cols));
  for (int t = 0; t < x.rows; ++t)
    for (int c = 0; c < x.cols; ++c) energy[static_cast<size_t>(c)] += double(x.Row(t)[c]) * x.Row(t)[c];
  std::vector<int> order(energy.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    return energy[static_cast<size_t>(a)] > energy[static_cast<size_t>(b)];
  });
  return order;
}

void ReorderColumns(const std::vector<int>& order, Matrix* x) {
  std::vector<float> old(static_cast<size_t>(x->cols));
  for (int t = 0; t < x->rows; ++t) {
    std::copy_n(x->Row(t), x->cols, old.data());
    for (int c = 0; c < x->cols; ++c) x->Row(t)[c] = old[static_cast<size_t>(order[static_cast<size_t>(c)])];
  }
}

void ReorderMlp(const std::vector<int>& order, Layer* layer) {
  ReorderRows(order, &layer->linear[kGate]);
  ReorderRows(order, &layer->linear[kUp]);
  ReorderColumns(order, &layer->linear[kDown].w);
}

}  // namespace nibble::qoq
