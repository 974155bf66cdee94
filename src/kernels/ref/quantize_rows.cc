// SPDX-License-Identifier: Apache-2.0
#include "kernels/ref/quantize_rows.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace nibble::ref {
namespace {

// max |x|, or NaN if the row holds a NaN or an infinity.
double AbsMax(const float* x, int k) {
  double amax = 0;
  for (int i = 0; i < k; ++i) {
    if (!std::isfinite(x[i])) return std::numeric_limits<double>::quiet_NaN();
    amax = std::max(amax, std::abs(double(x[i])));
  }
  return amax;
}

// In double the quotient and the product are exact enough that only the conversion to float rounds.
int8_t Quantize(float x, double amax) {
  const float inverse = float(127.0 / amax);
  const double scaled = float(double(x) * double(inverse));
  return int8_t(std::clamp(std::nearbyint(scaled), -127.0, 127.0));
}

}  // namespace

void QuantizeRows(const QuantizeRowsArgs& a) {
  const int groups = (a.k + weight::kGroup - 1) / weight::kGroup;
  for (int m = 0; m < a.rows; ++m) {
    const float* x = a.x + m * a.x_stride;
    const double amax = AbsMax(x, a.k);
    const bool special = !(amax >= 0x1p-119);
    a.scale[m] = amax < 0x1p-119 ? 0.0f : float(amax / 127.0);
    for (int g = 0; g < groups; ++g) a.group_sum[int64_t{m} * groups + g] = 0;
    for (int i = 0; i < a.k; ++i) {
      const int8_t q = special ? int8_t{0} : Quantize(x[i], amax);
      a.q[int64_t{m} * a.k + i] = q;
      a.group_sum[int64_t{m} * groups + i / weight::kGroup] += q;
    }
  }
}

}  // namespace nibble::ref
