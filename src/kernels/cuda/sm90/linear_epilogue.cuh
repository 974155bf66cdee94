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

// The values of rows 8 j + 2 (lane % 4) + e, e = 0 and 1, and outputs lane/4 + 8 h of a unit: [2 h + e].
NIBBLE_DEVICE void finish_pair(const LinearIntArgs& a, const OutputInfo& o, const TokenInfo* tokens, int j,
                               const int32_t* sum, float* value) {
  const int4 two = *reinterpret_cast<const int4*>(tokens + 8 * j + 2 * (threadIdx.x % 4));
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const float scale_x = __int_as_float(e == 0 ? two.x : two.z);
    const uint32_t row_sum = uint32_t(e == 0 ? two.y : two.w);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int32_t exact = int32_t(uint32_t(sum[4 * j + 2 * h + e]) - o.offset[h] * row_sum);
      float v = __fmul_rn(__int2float_rn(exact), __fmul_rn(o.scale[h], scale_x));
      if (a.bias != nullptr) v = __fadd_rn(v, o.bias[h]);
      value[2 * h + e] = v;
    }
  }
}

// A unit in f32: eight lanes write 32 neighbouring bytes. Four values at a time: with eight, and an address
// for each, the sums of a tile were spilled, which cost as much as half of the product.
NIBBLE_DEVICE void finish_f32(const LinearIntArgs& a, const OutputInfo& o, const TokenInfo* tokens, int row0,
                              int token0, const int32_t* sum) {
  const int lane = int(threadIdx.x % 32), first = token0 + 2 * (lane % 4);
  float* y = static_cast<float*>(a.y) + first * a.y_stride + row0 + lane / 4;
#pragma unroll
  for (int j = 0; j < 2; ++j, y += 8 * a.y_stride) {
    float old[4] = {}, value[4];
    const auto each = [&](auto use) {
#pragma unroll
      for (int r = 0; r < 4; ++r)
        if (row0 + 8 * (r / 2) < a.w.n && first + 8 * j + r % 2 < a.rows)
          use(r, y + r % 2 * a.y_stride + 8 * (r / 2));
    };
    if (a.accumulate) each([&](int r, const float* from) { old[r] = *from; });
    finish_pair(a, o, tokens, j, sum, value);
    each([&](int r, float* to) { *to = a.accumulate ? __fadd_rn(value[r], old[r]) : value[r]; });
  }
}

// sum[4 j + 2 h + e]: output lane/4 + 8 h of the unit, row 8 j + 2 (lane % 4) + e. tokens: of the unit's
// first row.
template <Storage kStorage>
NIBBLE_DEVICE void finish_unit(const LinearIntArgs& a, const OutputInfo& o, const TokenInfo* tokens, int row0,
                               int token0, const int32_t* sum) {
  using namespace hopper;
  if (a.type == Real::kF32) return finish_f32(a, o, tokens, row0, token0, sum);
  const int lane = int(threadIdx.x % 32), quad = lane % 4;
  float value[8];
#pragma unroll
  for (int j = 0; j < 2; ++j) finish_pair(a, o, tokens, j, sum, value + 4 * j);
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
