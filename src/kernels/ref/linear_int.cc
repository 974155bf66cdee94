// SPDX-License-Identifier: Apache-2.0
#include "kernels/ref/linear_int.h"

#include "base/check.h"

namespace nibble::ref {
namespace {

using weight::kGroup;
using weight::kPanel;
using weight::Layout;
using weight::PackedWeight;

int Nibble(const PackedWeight& w, int n, int k) {
  const int64_t block = int64_t{n / kPanel} * (w.k / 8) + k / 8;
  const int byte = int(w.codes[(block * kPanel + n % kPanel) * 4 + k % 4]);
  return k % 8 < 4 ? byte & 15 : byte >> 4;
}

int32_t Sum(const LinearArgs& a, int m, int n) {
  int64_t sum = 0;
  for (int k = 0; k < a.w.k; ++k) sum += int64_t{IntWeight(a.w, n, k)} * a.xq[int64_t{m} * a.w.k + k];
  NIBBLE_CHECK(sum >= INT32_MIN && sum <= INT32_MAX, "an integer product leaves int32: k above 65536?");
  return int32_t(sum);
}

}  // namespace

int32_t IntWeight(const PackedWeight& w, int n, int k) {
  switch (w.layout) {
    case Layout::kI4Group: {
      const int64_t group = (int64_t{n / kPanel} * (w.k / kGroup) + k / kGroup) * kPanel + n % kPanel;
      return (Nibble(w, n, k) - w.zero[group]) * w.group_scale[group];
    }
    case Layout::kI4Channel:
      return Nibble(w, n, k) - w.zero[n];
    case Layout::kI8Channel: {
      const int64_t block = int64_t{n / kPanel} * (w.k / 4) + k / 4;
      return int8_t(w.codes[(block * kPanel + n % kPanel) * 4 + k % 4]);
    }
    default:
      NIBBLE_CHECK(false, "a float layout");
      return 0;
  }
}

void LinearInt(const LinearArgs& a) {
  for (int m = 0; m < a.rows; ++m) {
    for (int n = a.panel_begin * kPanel; n < a.panel_end * kPanel && n < a.w.n; ++n) {
      float* y = a.y + m * a.y_stride + n;
      float value = float(Sum(a, m, n)) * (a.w.scale[n] * a.x_scale[m]);
      if (a.bias != nullptr) value += a.bias[n];
      if (a.accumulate) value += *y;
      *y = value;
    }
  }
}

}  // namespace nibble::ref
