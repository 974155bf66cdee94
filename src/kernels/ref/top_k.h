// SPDX-License-Identifier: Apache-2.0
// Floor 4. The k largest of some values, by the rule of every selection here: of equal values the lower
// index.
#pragma once
#include <algorithm>
#include <numeric>
#include <vector>

namespace nibble::ref {

// Indices, the largest value first.
inline std::vector<int> TopK(const std::vector<double>& values, int k) {
  std::vector<int> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return values[size_t(a)] > values[size_t(b)]; });
  order.resize(size_t(std::min(k, int(values.size()))));
  return order;
}

}  // namespace nibble::ref
