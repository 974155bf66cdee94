// SPDX-License-Identifier: Apache-2.0
#include "model/qoq/grid.h"

#include <algorithm>
#include <cmath>

#include "base/half.h"

namespace nibble::qoq {
namespace {

using weight::Storage;

constexpr int kU4Top = 15, kS8Max = 127, kMaxGroupScale = 16;

struct Range {
  float lo = 0, hi = 0;  // with 0 included: decision 8
};
Range FindRange(std::span<const float> w) {
  Range r;
  for (const float x : w) r.lo = std::min(r.lo, x), r.hi = std::max(r.hi, x);
  return r;
}

// Nearest f16, the next one up where a subnormal would leave the top half a step outside.
Result<uint16_t> FitScale(float range, float levels) {
  uint16_t scale = FloatToHalf(range / levels);
  if (range > (levels + 0.5f) * HalfToFloat(scale)) ++scale;
  if (scale >= 0x7c00) {
    return Error(Code::kInvalidArgument, "weights that span {} exceed what an f16 scale can hold", range);
  }
  return scale;
}

double Loss(std::span<const float> w, std::span<const float> importance, const Grid& grid) {
  float sum = 0;
  for (size_t i = 0; i < w.size(); ++i) {
    const float d = grid.Value(grid.Code(w[i])) - w[i];
    sum += d * d * importance[i];
  }
  return sum;
}

Grid RowGrid(float scale, float lo, Storage storage) {
  if (storage == Storage::kW8A8) return {scale, kS8Max, 0, 2 * kS8Max};
  const float zero = scale > 0 ? std::clamp(-lo / scale, 0.0f, float(kU4Top)) : 0.0f;
  return {scale, RoundToInt(zero), 0, kU4Top};
}

}  // namespace

Result<uint16_t> GroupRowScale(std::span<const float> row) {
  const Range r = FindRange(row);
  return FitScale(std::max(r.hi, -r.lo), weight::kProtectiveRange);
}

Grid FitGroupGrid(std::span<const float> w, float s1, std::span<const float> importance) {
  if (s1 == 0) return {0, 0, 0, kU4Top, 1};
  const Range r = FindRange(w);
  const auto level = [s1](float x) {
    return RoundToInt(std::clamp(x / s1, -float(weight::kProtectiveRange), float(weight::kProtectiveRange)));
  };
  const int lo = level(r.lo), hi = level(r.hi);
  const weight::GroupParams full = weight::FitGroup(lo, hi);
  // Codes whose level-1 value (u - z) * s2 fits in 8 bits. Rounding to nearest never leaves them (that is
  // what 119 is for), but weights that make up for the errors of others may.
  const auto grid = [s1](int scale, int zero) {
    return Grid{s1 * float(scale), zero, std::max(0, zero - 128 / scale),
                std::min(kU4Top, zero + 127 / scale), scale};
  };
  Grid best = grid(full.scale, full.zero);
  if (importance.empty()) return best;
  double least = Loss(w, importance, best);
  for (int scale = std::min(full.scale + 1, kMaxGroupScale); scale >= std::max(1, full.scale / 2); --scale) {
    const float center = -0.5f * float(lo + hi) / float(scale) + 0.5f * float(kU4Top);
    const int middle = RoundToInt(center);
    for (int zero = std::max(0, middle - 1); zero <= std::min(kU4Top, middle + 1); ++zero) {
      const Grid candidate = grid(scale, zero);
      const double loss = Loss(w, importance, candidate);
      if (loss < least) least = loss, best = candidate;
    }
  }
  return best;
}

Result<Grid> FitRowGrid(std::span<const float> row, Storage storage, std::span<const float> importance,
                        uint16_t* scale) {
  const Range r = FindRange(row);
  const bool wide = storage == Storage::kW8A8;
  const float range = wide ? std::max(r.hi, -r.lo) : r.hi - r.lo;
  NIBBLE_ASSIGN(*scale, FitScale(range, wide ? kS8Max : kU4Top));
  Grid best = RowGrid(HalfToFloat(*scale), r.lo, storage);
  if (importance.empty() || range == 0) return best;
  double least = Loss(row, importance, best);
  for (int i = 1; i < kClipSteps; ++i) {
    const float ratio = ClipRatio(i);
    NIBBLE_ASSIGN(const uint16_t bits, FitScale(range * ratio, wide ? kS8Max : kU4Top));
    const Grid candidate = RowGrid(HalfToFloat(bits), r.lo * ratio, storage);
    const double loss = Loss(row, importance, candidate);
    if (loss < least) least = loss, best = candidate, *scale = bits;
  }
  return best;
}

}  // namespace nibble::qoq
