// SPDX-License-Identifier: Apache-2.0
#include "kernels/ref/linear_dense.h"

#include <cstring>

#include "base/check.h"
#include "base/half.h"

namespace nibble::ref {
namespace {

template <class T>
T At(const std::byte* p, int64_t index) {
  T value;
  std::memcpy(&value, p + index * int64_t{sizeof(T)}, sizeof(T));
  return value;
}

}  // namespace

double PackedElement(const weight::PackedWeight& w, int row, int k) {
  const int64_t panel = row / weight::kPanel, lane = row % weight::kPanel;
  const int64_t element = (panel * w.k + k) * weight::kPanel + lane;
  switch (w.layout) {
    case weight::Layout::kF32:
      return double(At<float>(w.codes, element));
    case weight::Layout::kF16:
      return double(HalfToFloat(At<uint16_t>(w.codes, element)));
    case weight::Layout::kBF16:
      return double(Bf16ToFloat(At<uint16_t>(w.codes, element)));
    case weight::Layout::kI8Channel: {
      const int64_t at = ((panel * (w.k / 4) + k / 4) * weight::kPanel + lane) * 4 + k % 4;
      return double(At<int8_t>(w.codes, at)) * double(w.scale[row]);
    }
    default:
      NIBBLE_CHECK(false, "layout without elements");
  }
  return 0;
}

void LinearDense(const LinearArgs& a, double* y) {
  for (int row = 0; row < a.rows; ++row) {
    for (int n = a.panel_begin * weight::kPanel; n < a.panel_end * weight::kPanel && n < a.w.n; ++n) {
      double sum = 0;
      for (int k = 0; k < a.w.k; ++k) {
        float x = a.x[row * a.x_stride + k];
        if (a.arith == MatmulArith::kBF16) x = Bf16ToFloat(FloatToBf16(x));
        sum += double(x) * PackedElement(a.w, n, k);
      }
      if (a.bias != nullptr) sum += double(a.bias[n]);
      if (a.accumulate) sum += double(a.y[row * a.y_stride + n]);
      y[int64_t{row} * a.w.n + n] = sum;
    }
  }
}

}  // namespace nibble::ref
