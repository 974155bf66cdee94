// SPDX-License-Identifier: Apache-2.0
// Floor 2. What int8-token and int4-token share (QServe's KV8 and KV4, arXiv 2405.04532 section 4.2): one
// scale and one minimum for each token of a KV head, x ~ code * scale + min, codes 0 .. levels. Why the
// minimum and not a zero point: docs/decisions/0007-kv-page-stores-minimum.md.
#pragma once
#include "quant/kv/codec.h"

namespace nibble::kv {

struct TokenParams {
  uint16_t scale, min;  // f16 bits, as stored
  float inverse_scale, base;
};

// The parameters of one row of head_dim values. A row that f16 cannot hold (NaN, infinity, or beyond 65504)
// gets min NaN and inverse_scale 0: all its codes are 0 and all its channels decode as NaN, so that a broken
// value upstream stays visible and the bytes of the page are defined all the same.
NIBBLE_HD TokenParams FitToken(const float* x, int head_dim, int levels) {
  float lane_lo[8], lane_hi[8];  // eight lanes, for the vectorizer; least and greatest know no order
  bool fits = true;
  for (int j = 0; j < 8; ++j) lane_lo[j] = lane_hi[j] = x[j];
  for (int i = 0; i < head_dim; i += 8) {
    for (int j = 0; j < 8; ++j) {
      const float v = x[i + j];
      lane_lo[j] = v < lane_lo[j] ? v : lane_lo[j];
      lane_hi[j] = v > lane_hi[j] ? v : lane_hi[j];
      fits &= (v >= -kHalfMax) & (v <= kHalfMax);
    }
  }
  if (!fits) return {1, 0x7e00, 0.0f, 0.0f};
  float lo = lane_lo[0], hi = lane_hi[0];
  for (int j = 1; j < 8; ++j) {
    lo = lane_lo[j] < lo ? lane_lo[j] : lo;
    hi = lane_hi[j] > hi ? lane_hi[j] : hi;
  }
  TokenParams p{};
  p.min = FloatToHalf(lo + 0.0f);  // -0 becomes +0: the order of equal zeros leaves no trace
  p.base = HalfToFloat(p.min);
  const float range = hi > p.base ? hi - p.base : 0.0f;
  p.scale = FloatToHalf(range / float(levels));
  // A subnormal scale that was rounded down can miss the top by many steps; no other misses it by half a
  // step.
  if (range > (float(levels) + 0.5f) * HalfToFloat(p.scale)) ++p.scale;
  if (p.scale == 0) p.scale = 1;  // constant row: 2^-24, the least positive f16, so that 1 / scale is finite
  p.inverse_scale = 1.0f / HalfToFloat(p.scale);
  return p;
}

// Clamped before rounding: the order does not matter for whole bounds, and RoundToInt never sees a large x.
NIBBLE_HD int TokenCode(float x, const TokenParams& p, int levels) {
  const float t = (x - p.base) * p.inverse_scale;
  const float not_below = t > 0.0f ? t : 0.0f;  // false for NaN as well
  return RoundToInt(not_below < float(levels) ? not_below : float(levels));
}

}  // namespace nibble::kv
