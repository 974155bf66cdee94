// SPDX-License-Identifier: Apache-2.0
// Floor 4. From integer sums to y: zero points, scales, bias, residual, in the order of operations that
// kernels/ref/linear_int.cc has. A unit is 16 outputs x 16 rows, as one warp of an accumulator holds them.
#pragma once
#include "kernels/cuda/linear.h"
#include "kernels/cuda/sm90/tile.cuh"

namespace nibble::cuda::sm90 {

using weight::Storage;

struct TokenInfo {
  float scale;
  int32_t row_sum;
};

// Of the two outputs of a lane, 8 apart.
struct OutputInfo {
  float scale[2], bias[2];
  uint32_t offset[2];  // what was added to every weight
};

template <Storage kStorage>
NIBBLE_DEVICE OutputInfo load_outputs(const LinearIntArgs& a, int row0) {
  OutputInfo o;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int n = row0 + int(threadIdx.x % 32 / 4) + 8 * h;
    o.scale[h] = __ldg(a.w.scale + n);
    o.bias[h] = a.bias != nullptr && n < a.w.n ? __ldg(a.bias + n) : 0.0f;
    o.offset[h] = kStorage == Storage::kW4A8Group ? 128 : kStorage == Storage::kW4A8Channel ? a.w.zero[n] : 0;
  }
  return o;
}

// sum[4 j + 2 h + e]: output lane/4 + 8 h of the unit, row 8 j + 2 (lane % 4) + e. tokens: of the unit's
// first row.
template <Storage kStorage>
NIBBLE_DEVICE void finish_unit(const LinearIntArgs& a, const OutputInfo& o, const TokenInfo* tokens, int row0,
                               int token0, const int32_t* sum) {
  using namespace hopper;
  const int lane = int(threadIdx.x % 32), quad = lane % 4;
  float value[8];
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int4 two = *reinterpret_cast<const int4*>(tokens + 8 * j + 2 * quad);
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float scale_x = __int_as_float(e == 0 ? two.x : two.z);
      const uint32_t row_sum = uint32_t(e == 0 ? two.y : two.w);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int32_t exact = int32_t(uint32_t(sum[4 * j + 2 * h + e]) - o.offset[h] * row_sum);
        float v = __fmul_rn(__int2float_rn(exact), __fmul_rn(o.scale[h], scale_x));
        if (a.bias != nullptr) v = __fadd_rn(v, o.bias[h]);
        value[4 * j + 2 * h + e] = v;
      }
    }
  }
  if (a.type == Real::kF32) {  // eight lanes write 32 neighbouring bytes
    float* to[8];
    float old[8];
#pragma unroll
    for (int r = 0; r < 8; ++r) {  // all old values before the first store: one wait for memory, not eight
      const int n = row0 + lane / 4 + 8 * (r / 2 % 2), m = token0 + 8 * (r / 4) + 2 * quad + r % 2;
      to[r] = n < a.w.n && m < a.rows ? static_cast<float*>(a.y) + m * a.y_stride + n : nullptr;
      if (a.accumulate) old[r] = to[r] != nullptr ? *to[r] : 0.0f;
    }
#pragma unroll
    for (int r = 0; r < 8; ++r)
      if (to[r] != nullptr) *to[r] = a.accumulate ? __fadd_rn(value[r], old[r]) : value[r];
    return;
  }
  // After the exchange a lane has 8 outputs of one row.
  const int n = row0 + 8 * (quad % 2), m = token0 + 8 * (quad / 2) + lane / 4;
  const bool mine = n < a.w.n && m < a.rows;
  uint4* y = reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(a.y) + m * a.y_stride + n);
  uint32_t v[4];
  if (a.accumulate) {  // the exchange is its own inverse: it brings the old y to where the sums are
    const uint4 old = mine ? *y : uint4{};
    v[0] = old.x, v[1] = old.y, v[2] = old.z, v[3] = old.w;
    transpose_quad(v);
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const uint32_t pair = transpose_8x8(v[r]);
      float* to = value + 4 * (r / 2) + 2 * (r % 2);
      to[0] = __fadd_rn(to[0], __uint_as_float(pair << 16));
      to[1] = __fadd_rn(to[1], __uint_as_float(pair & 0xFFFF0000u));
    }
  }
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const float* from = value + 4 * (r / 2) + 2 * (r % 2);
    v[r] = transpose_8x8(to_bf16x2(from[0], from[1]));
  }
  transpose_quad(v);
  if (mine) *y = make_uint4(v[0], v[1], v[2], v[3]);
}

}  // namespace nibble::cuda::sm90
