// SPDX-License-Identifier: Apache-2.0
// Floor 7. The grids that quantized weights may lie on, and the search for the best one (weight clipping,
// arXiv 2405.04532 section 4.3.4): a narrower grid cuts the largest weights off and rounds all others more
// finely.
#pragma once
#include <cstdint>
#include <span>

#include "quant/weight/quantize.h"

namespace nibble::qoq {

// Values (u - zero) * step for codes u = low .. top.
struct Grid {
  float step = 0;  // 0: every value is 0
  int zero = 0, low = 0, top = 15;
  int scale = 1;  // s2 of kW4A8Group: step = s1 * scale
  int Code(float w) const {
    if (step == 0) return zero;
    const float u = w / step + float(zero), least = float(low), most = float(top);
    return RoundToInt(u < least ? least : (u > most ? most : u));
  }
  float Value(int code) const { return float(code - zero) * step; }
};

// Ranges that the search of a whole row tries: 1, 0.99, ..., 0.20 of the full one, as the paper's code does.
inline constexpr int kClipSteps = 81;
constexpr float ClipRatio(int i) { return 1.0f - 0.01f * float(i); }

// The row's f16 scale (bits): s1 of kW4A8Group, so that no group needs an s2 above 16. kInvalidArgument when
// the row is beyond what an f16 scale can hold.
Result<uint16_t> GroupRowScale(std::span<const float> row);

// Level 2 of kW4A8Group: the grid for these weights under s1. With `importance` (the loss that a squared
// error of each weight costs; empty: plain rounding) the best of all narrower ones.
Grid FitGroupGrid(std::span<const float> w, float s1, std::span<const float> importance);

// The grid of a row of kW4A8Channel or kW8A8, and its f16 scale.
Result<Grid> FitRowGrid(std::span<const float> row, weight::Storage storage,
                        std::span<const float> importance, uint16_t* scale);

}  // namespace nibble::qoq
