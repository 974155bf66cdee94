// SPDX-License-Identifier: Apache-2.0
// The online softmax of exact attention on the accumulators of one warpgroup: 64 queries x 128 keys, in
// f32. A thread holds two rows (8 apart) and of every 8 keys two.
#pragma once
#include <cstdint>

#include "kernels/cuda/sm90/tile.cuh"

namespace nibble::hopper {

inline constexpr float kLog2e = 1.44269504f;
// A row's maximum is replaced only by one that is more than 2^kSlack greater: weights stay below 2^kSlack,
// for which bf16 and f32 have room, and outputs are seldom rescaled.
inline constexpr float kSlack = 8;

struct ExactState {
  float max[2] = {-1e30f, -1e30f};  // in base 2; finite, so differences are defined
  float sum[2] = {0, 0};            // of this thread's keys
};

NIBBLE_DEVICE float MaxOfQuad(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
NIBBLE_DEVICE float SumOfQuad(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

// Hides keys of the tile below `first`, from `visible` on (for the thread's first row; the second sees 8
// more) and from `limit` on.
NIBBLE_DEVICE void MaskScores(float (&s)[64], int first, int visible, int limit) {
  const int lane_key = 2 * (threadIdx.x % 4);
#pragma unroll
  for (int r = 0; r < 64; ++r) {
    const int key = 8 * (r / 4) + lane_key + r % 2;
    if (key < first || key >= min(visible + 8 * (r / 2 % 2), limit)) s[r] = -INFINITY;
  }
}

// Scores become weights. `factor` brings them to base 2; alpha is what earlier outputs are to be multiplied
// by.
NIBBLE_DEVICE void UpdateState(float (&s)[64], float factor, ExactState* state, float (&alpha)[2]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float top = s[2 * i];
#pragma unroll
    for (int j = 0; j < 16; ++j) top = fmaxf(top, fmaxf(s[4 * j + 2 * i], s[4 * j + 2 * i + 1]));
    top = MaxOfQuad(top) * factor;
    const float next = top > state->max[i] + kSlack ? top : state->max[i];
    alpha[i] = exp2_approx(state->max[i] - next);
    state->max[i] = next;
    float sum = 0;
#pragma unroll
    for (int j = 0; j < 16; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& x = s[4 * j + 2 * i + e];
        x = exp2_approx(fmaf(x, factor, -next));
        sum += x;
      }
    state->sum[i] = fmaf(state->sum[i], alpha[i], sum);
  }
}

template <int kCount>
NIBBLE_DEVICE void Rescale(float (&o)[kCount], const float (&alpha)[2]) {
  if (!__any_sync(~0u, alpha[0] != 1.0f || alpha[1] != 1.0f)) return;
#pragma unroll
  for (int r = 0; r < kCount; ++r) o[r] *= alpha[r / 2 % 2];
}

// Weights of 128 keys as the A operand of eight products.
NIBBLE_DEVICE void PackWeights(const float (&s)[64], uint32_t (&p)[8][4]) {
#pragma unroll
  for (int r = 0; r < 32; ++r) p[r / 4][r % 4] = to_bf16x2(s[2 * r], s[2 * r + 1]);
}

}  // namespace nibble::hopper
