// SPDX-License-Identifier: Apache-2.0
// Floor 4. Codes and roundings of integer and 8-bit attention (recipe/arithmetic.h), of one value.
#pragma once
#include "quant/kv/fp8.h"
#include "recipe/arithmetic.h"

namespace nibble::cuda {

// Scale and 1 / scale of codes to +-levels, from the bits of the greatest magnitude: integers order as the
// floats do. All zero: scale 0. Not finite: scale NaN and codes 0.
struct CodeScale {
  float scale, inverse;
};
inline constexpr uint32_t kTinyBits = 8 << 23;  // 2^-119, as in QuantizeRows
__device__ inline uint32_t MagnitudeBits(float x) { return __float_as_uint(x) & 0x7fffffff; }
__device__ inline CodeScale ScaleOf(uint32_t amax_bits, float levels) {
  if (amax_bits < kTinyBits) return {0, 0};
  if (amax_bits >= 0x7f800000) return {__uint_as_float(0x7fc00000), 0};
  const float amax = __uint_as_float(amax_bits);
  return {__fdiv_rn(amax, levels), __fdiv_rn(levels, amax)};
}
__device__ inline float CodeOf(float x, float inverse) {
  return inverse > 0 ? rintf(fminf(fmaxf(__fmul_rn(x, inverse), -127.0f), 127.0f)) : 0.0f;
}
__device__ inline float LevelsOf(QkArith qk) { return qk == QkArith::kInt4Thread ? 7.0f : 127.0f; }

__device__ inline float RoundToF16(float x) { return HalfToFloat(FloatToHalf(x)); }
__device__ inline float RoundToE4m3(float x) { return x == x ? kv::E4m3ToFloat(kv::FloatToE4m3(x)) : x; }

// How P and V are rounded, and what a product of `step` tokens is added to.
struct PvRounding {
  int step;         // tokens of one tensor core instruction
  float value_max;  // V by channel to this, 0: not scaled
  PvArith pv;
  __device__ float Factor(float x) const { return pv == PvArith::kF16 ? RoundToF16(x) : RoundToE4m3(x); }
  __device__ float Sum(float x) const {  // FP22: toward zero to 13 bits of mantissa
    return pv == PvArith::kFp8 ? __uint_as_float(__float_as_uint(x) & ~0x3ffu) : RoundToF16(x);
  }
};
__device__ inline PvRounding RoundingOf(PvArith pv) {
  if (pv == PvArith::kF16) return {16, 0, pv};
  return {32, pv == PvArith::kFp8 ? kv::kE4m3Max : 2.25f, pv};
}

}  // namespace nibble::cuda
