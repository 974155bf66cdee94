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
};

NIBBLE_DEVICE void ClearScores(int32_t (&s)[64]) {
#pragma unroll
  for (int r = 0; r < 64; ++r) s[r] = kMagic;
}

// The same with delta-S, rounded, in units of a score's scales: `delta`, as SageTiles has it for the tile,
// times the inverse scale of Q.
template <int kScales>
NIBBLE_DEVICE void StartScores(int32_t (&s)[64], const float* delta, const float (&inverse)[kScales]) {
  const float4* four = reinterpret_cast<const float4*>(delta) + threadIdx.x % 4;
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    const float4 d = four[4 * c];
    const float x[4] = {d.x, d.y, d.z, d.w};
#pragma unroll
    for (int r = 0; r < 8; ++r)
      s[8 * c + r] = __float_as_int(fmaf(x[r / 4 * 2 + r % 2], inverse[r / 2 % 2 % kScales], kMagicFloat));
  }
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

// How the thread's scores become arguments of exp2: score * factor - offset, by row and by 64 keys. kScales:
// 2 where its two rows have a scale each.
template <int kScales>
struct Arguments {
  float factor[kScales][2], offset[2][2];
};

// Updates the row maxima. `factor` is scale of Q x scale of K for each 64 keys, in base 2. `alpha` is what
// earlier sums and outputs are to be multiplied by.
template <int kScales>
NIBBLE_DEVICE Arguments<kScales> UpdateMax(const int32_t (&s)[64], const float (&factor)[kScales][2],
                                           RowState* state, float (&alpha)[2]) {
  Arguments<kScales> a;
  const float greatest[2][2] = {{Greatest<0, 0>(s), Greatest<0, 1>(s)},
                                {Greatest<1, 0>(s), Greatest<1, 1>(s)}};
#pragma unroll
  for (int i = 0; i < kScales; ++i)
#pragma unroll
    for (int h = 0; h < 2; ++h) a.factor[i][h] = factor[i][h];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float(&f)[2] = factor[i % kScales];
    float m = fmaxf(fmaf(greatest[i][0], f[0], -kMagicFloat * f[0]),
                    fmaf(greatest[i][1], f[1], -kMagicFloat * f[1]));
    m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
    m = fmaxf(m, __shfl_xor_sync(~0u, m, 2));
    const float next = fmaxf(state->max[i], ceilf(m));
    alpha[i] = exp2_approx(state->max[i] - next);
    state->max[i] = next;
#pragma unroll
    for (int h = 0; h < 2; ++h) a.offset[i][h] = fmaf(kMagicFloat, f[h], next - kPBits);
  }
  return a;
}

// Scores of keys 32c .. 32c + 31 to E4M3 weights, one A fragment.
template <int kScales>
NIBBLE_DEVICE void Weigh(const int32_t (&s)[64], const Arguments<kScales>& a, int c, uint32_t (&p)[4]) {
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const int at = 16 * c + 8 * (r / 2) + 2 * (r % 2), h = c / 2, i = r % 2;
    const int index[4] = {at, at + 1, at + 4, at + 5};
    float x[4];
#pragma unroll
    for (int e = 0; e < 4; ++e)
      x[e] = exp2_approx(fmaf(__int_as_float(s[index[e]]), a.factor[i % kScales][h], -a.offset[i][h]));
    p[r] = to_e4m3x4(x[0], x[1], x[2], x[3]);
  }
}

// scale of Q x scale of K x softmax scale, cut to 22 bits of mantissa; not 0, which would turn a masked score
// into NaN. NaN stays.
NIBBLE_DEVICE float Factor(float x) { return x < 1e-30f ? 1e-30f : __int_as_float(__float_as_int(x) & ~3); }

}  // namespace nibble::hopper
