// SPDX-License-Identifier: Apache-2.0
// The online softmax of SageAttention on the accumulators of one warpgroup: 64 queries x 128 keys. A thread
// holds two rows (8 apart) and of every 8 keys the two of its key group, so one scale a 64 keys serves it.
//
// Sums start at kMagic, the bits of 1.5 * 2^23, so that the accumulator read as a float is exactly
// kMagicFloat + sum
// (|sum| <= 127 * 127 * 128 < 2^22): turning integers into floats costs nothing, and the greatest integer is
// the greatest float. The product kMagicFloat * factor is exact because factor keeps 22 bits of mantissa. The
// row maximum is rounded up to an integer (scores are in base 2): any bound serves, it then seldom moves, and
// factors between tiles are exact powers of two.
#pragma once
#include <cstdint>

#include "kernels/cuda/sm90/ptx.cuh"

namespace nibble::hopper {

inline constexpr int32_t kMagic = 0x4B400000;
inline constexpr float kMagicFloat = 12582912.0f;
inline constexpr float kPBits = 8.0f;  // log2 of the greatest P: far inside E4M3, whose greatest is 448
inline constexpr float kLowest = -1e30f;

struct RowState {
  float max[2] = {kLowest, kLowest};  // in base 2, integers
  float sum[2] = {0, 0};              // of this thread's keys
};

NIBBLE_DEVICE void ClearScores(int32_t (&s)[64]) {
#pragma unroll
  for (int r = 0; r < 64; ++r) s[r] = kMagic;
}

// Hides keys from `visible` of the tile on (for the thread's first row; the second sees 8 more).
NIBBLE_DEVICE void Mask(int32_t (&s)[64], int visible, int limit) {
  const int lane_key = 2 * (threadIdx.x % 4);
#pragma unroll
  for (int r = 0; r < 64; ++r) {
    const int key = 8 * (r / 4) + lane_key + r % 2;
    if (key >= min(visible + 8 * (r / 2 % 2), limit)) s[r] = int32_t(0xFF800000);  // -infinity
  }
}

NIBBLE_DEVICE int32_t Max3(int32_t a, int32_t b, int32_t c) { return __vimax3_s32(a, b, c); }

// The greatest of the thread's 16 scores of row `row` among the 64 keys of `half`.
template <int kRow, int kHalf>
NIBBLE_DEVICE float Greatest(const int32_t (&s)[64]) {
  int32_t m = s[kHalf * 32 + 2 * kRow];
  m = max(m, s[kHalf * 32 + 2 * kRow + 1]);
#pragma unroll
  for (int j = 1; j < 8; ++j)
    m = Max3(m, s[kHalf * 32 + 4 * j + 2 * kRow], s[kHalf * 32 + 4 * j + 2 * kRow + 1]);
  return __int_as_float(m);
}

// 2^x for x in about -120 .. 8 by a quadratic on the FMA pipe: its error of 0.2% is far below the 3% steps of
// E4M3, and the pipe that computes exponentials is the one that has no room.
NIBBLE_DEVICE float Exp2Poly(float x) {
  x = fmaxf(x, -126.0f);
  const float shifted = x + kMagicFloat;        // nearest integer in the low bits
  const float f = x - (shifted - kMagicFloat);  // -0.5 .. 0.5
  const float p = fmaf(fmaf(fmaf(0.0558f, f, 0.2402f), f, 0.6931f), f, 1.0f);
  return __int_as_float(__float_as_int(p) + (__float_as_int(shifted) << 23));
}

// Which of every 8 exponentials are computed by polynomial.
template <int kPoly>
NIBBLE_DEVICE float Exp2(float x, int i) {
  return kPoly > 0 && i % 8 < kPoly ? Exp2Poly(x) : exp2_approx(x);
}

// Scores to E4M3 weights in the order of an A fragment, updating the state. `factor` is scale of Q x scale of
// K for each 64 keys, in base 2. Returns what earlier sums and outputs are to be multiplied by.
template <int kPoly>
NIBBLE_DEVICE float2 Softmax(int32_t (&s)[64], const float (&factor)[2], RowState* state,
                             uint32_t (&p)[4][4]) {
  float zero[2];  // of each half: what the accumulator's offset amounts to
#pragma unroll
  for (int h = 0; h < 2; ++h) zero[h] = kMagicFloat * factor[h];
  const float greatest[2][2] = {{Greatest<0, 0>(s), Greatest<0, 1>(s)},
                                {Greatest<1, 0>(s), Greatest<1, 1>(s)}};
  float alpha[2];
  float offset[2][2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float m = fmaxf(fmaf(greatest[i][0], factor[0], -zero[0]), fmaf(greatest[i][1], factor[1], -zero[1]));
    m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
    m = fmaxf(m, __shfl_xor_sync(~0u, m, 2));
    const float next = fmaxf(state->max[i], ceilf(m));
    alpha[i] = exp2_approx(state->max[i] - next);
    state->max[i] = next;
    offset[i][0] = zero[0] + (next - kPBits);
    offset[i][1] = zero[1] + (next - kPBits);
  }
  float sum[2] = {0, 0};
#pragma unroll
  for (int c = 0; c < 4; ++c) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int at = 16 * c + 8 * (r / 2) + 2 * (r % 2), h = c / 2, i = r % 2;
      const int index[4] = {at, at + 1, at + 4, at + 5};
      float x[4];
#pragma unroll
      for (int e = 0; e < 4; ++e)
        x[e] = Exp2<kPoly>(fmaf(__int_as_float(s[index[e]]), factor[h], -offset[i][h]), 4 * r + e);
      sum[i] += (x[0] + x[1]) + (x[2] + x[3]);
      p[c][r] = to_e4m3x4(x[0], x[1], x[2], x[3]);
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) state->sum[i] = fmaf(state->sum[i], alpha[i], sum[i]);
  return {alpha[0], alpha[1]};
}

// scale of Q x scale of K x softmax scale, rounded to 22 bits of mantissa; not 0, which would turn a masked
// score into NaN. NaN stays.
NIBBLE_DEVICE float Factor(float x) {
  return x < 1e-30f ? 1e-30f : __int_as_float((__float_as_int(x) + 2) & ~3);
}

}  // namespace nibble::hopper
