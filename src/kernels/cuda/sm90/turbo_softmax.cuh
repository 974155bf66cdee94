// SPDX-License-Identifier: Apache-2.0
// The online softmax of TurboAttention on the accumulators of one warpgroup: 64 queries x 64 keys of a page.
// A thread holds two rows (8 apart) and of every 8 keys two.
#pragma once
#include <cstdint>

#include "kernels/cuda/sm90/tile.cuh"
#include "kernels/cuda/sm90/turbo_sas.cuh"

namespace nibble::hopper {

inline constexpr float kPLevels = 119;  // of P's codes, by row and page
inline constexpr float kLowest = -1e30f;

struct TurboState {
  float max[2] = {kLowest, kLowest};
  float sum[2] = {0, 0};  // of this thread's keys, of weights that are not rounded
};

// o += sums * factor, by row.
template <int kCount>
NIBBLE_DEVICE void AddSums(float (&o)[kCount], const int32_t (&part)[kCount], const float (&factor)[2]) {
#pragma unroll
  for (int r = 0; r < kCount; ++r) o[r] = fmaf(__int2float_rn(part[r]), factor[r / 2 % 2], o[r]);
}

template <int kCount>
NIBBLE_DEVICE void RescaleOutputs(float (&o)[kCount], const float (&alpha)[2]) {
  if (!__any_sync(~0u, alpha[0] != 1.0f || alpha[1] != 1.0f)) return;
#pragma unroll
  for (int r = 0; r < kCount; ++r) o[r] *= alpha[r / 2 % 2];
}

// The greatest of the thread's 16 sums of a row.
template <int kRow>
NIBBLE_DEVICE float GreatestSum(const int32_t (&s)[32]) {
  int32_t m = max(s[2 * kRow], s[2 * kRow + 1]);
#pragma unroll
  for (int j = 1; j < 8; ++j) m = __vimax3_s32(m, s[4 * j + 2 * kRow], s[4 * j + 2 * kRow + 1]);
  return __int2float_rn(m);
}

NIBBLE_DEVICE float GreatestOfQuad(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

// Moves a row's maximum to `top` where that is greater; returns what the past is to be multiplied by.
NIBBLE_DEVICE float MoveMax(TurboState& state, int i, float top) {
  const float next = fmaxf(state.max[i], top), alpha = exp2_approx((state.max[i] - next) * 1.44269504f);
  state.max[i] = next;
  state.sum[i] *= alpha;
  return alpha;
}

// The sum of eight pairs of f16.
NIBBLE_DEVICE float SumOfPairs(const uint32_t (&p)[2][4]) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float2 x = from_half2(half2_add(half2_add(p[i][0], p[i][1]), half2_add(p[i][2], p[i][3])));
    sum += x.x + x.y;
  }
  return sum;
}

NIBBLE_DEVICE float Distance(float max, float score) {
  return __saturatef(fmaf(max - score, kSasStep, kSasStart));
}

// A page between its scores and its codes.
struct TurboPage {
  uint32_t z[2][2][4];  // by row and 32 keys: what SasOfPairs takes
  uint32_t levels[2];   // weights times these are codes
};

// `q_factor`: scales of the rows' queries and of scores; `factor`: of the codes; `alpha`: what the past is to
// be multiplied by.
NIBBLE_DEVICE TurboPage ReadScores(const int32_t (&s)[32], const float (&q_factor)[2], float k_scale,
                                   const SasTable& table, TurboState& state, float (&alpha)[2],
                                   float (&factor)[2]) {
  TurboPage page;
  const float greatest[2] = {GreatestSum<0>(s), GreatestSum<1>(s)};
  float z_top[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float f = q_factor[i] * k_scale, top = GreatestOfQuad(greatest[i] * f);
    alpha[i] = MoveMax(state, i, top);
    const float step = f * kSasStep, start = fmaf(state.max[i], kSasStep, kSasStart);
    z_top[i] = Distance(state.max[i], top);
    state.sum[i] = fmaf(0.0f, f, state.sum[i]);  // NaN stays
#pragma unroll
    for (int j = 0; j < 8; ++j) {  // the lane's keys of 8
      const float x = __int2float_rn(s[4 * j + 2 * i]), y = __int2float_rn(s[4 * j + 2 * i + 1]);
      page.z[i][j / 4][j % 4] =
          to_half2(__saturatef(fmaf(x, -step, start)), __saturatef(fmaf(y, -step, start)));
    }
  }
  // The weight of the page's greatest score is what its codes are relative to.
  const uint32_t z = to_half2(z_top[0], z_top[1]), tops[4] = {z, z, z, z};
  uint32_t most[4];
  SasOfPairs(table, tops, most);
  const float2 p_top = from_half2(most[0]);
  factor[0] = p_top.x * (1 / kPLevels), factor[1] = p_top.y * (1 / kPLevels);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    // At most 119 e^6, or else all weights are 0.
    const float inverse = fminf(reciprocal_approx(factor[i]), 6e4f);
    page.levels[i] = to_half2(inverse, inverse);
  }
  return page;
}

// The codes of a page's weights, two A fragments.
NIBBLE_DEVICE void Weigh(const TurboPage& page, const SasTable& table, TurboState& state,
                         uint32_t (&p)[2][4]) {
  constexpr uint32_t kInteger = 0x64006400;  // 1024: the low byte is the code
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    uint32_t weights[2][4];
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      SasOfPairs(table, page.z[i][c], weights[c]);
#pragma unroll
      for (int h = 0; h < 2; ++h)
        p[c][2 * h + i] = pick_bytes(half2_fma(weights[c][2 * h], page.levels[i], kInteger),
                                     half2_fma(weights[c][2 * h + 1], page.levels[i], kInteger), 0x6420);
    }
    state.sum[i] += SumOfPairs(weights);
  }
}

// Raw scores of the own page, of which a row sees the keys up to itself, to bf16 weights, four A fragments.
NIBBLE_DEVICE void WeighOwn(float (&s)[32], int row, float scale, const SasTable& table, TurboState& state,
                            uint32_t (&p)[4][4], float (&alpha)[2]) {
  const int lane_key = 2 * (int(threadIdx.x) % 4);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float top = kLowest;
#pragma unroll
    for (int r = 0; r < 16; ++r) {
      float& x = s[4 * (r / 2) + 2 * i + r % 2];
      x = 8 * (r / 2) + lane_key + r % 2 <= row + 8 * i ? x * scale : -INFINITY;
      top = fmaxf(top, x);
      state.sum[i] = fmaf(0.0f, x == -INFINITY ? 0.0f : x, state.sum[i]);  // NaN stays
    }
    alpha[i] = MoveMax(state, i, GreatestOfQuad(top));
    uint32_t weights[2][4];
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      uint32_t z[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int at = 16 * c + 4 * j + 2 * i;
        z[j] = to_half2(Distance(state.max[i], s[at]), Distance(state.max[i], s[at + 1]));
      }
      SasOfPairs(table, z, weights[c]);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float2 pair = from_half2(weights[c][j]);
        p[2 * c + j / 2][2 * (j % 2) + i] = to_bf16x2(pair.x, pair.y);
      }
    }
    state.sum[i] += SumOfPairs(weights);
  }
}

}  // namespace nibble::hopper
