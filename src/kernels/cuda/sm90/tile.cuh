// SPDX-License-Identifier: Apache-2.0
// What the GEMM kernels share: the position in the ring of stages, and the way from sums to scaled bf16 in
// memory.
#pragma once
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "kernels/cuda/sm90/fragment.cuh"
#include "kernels/cuda/sm90/ptx.cuh"

namespace nibble::hopper {

// One slot of the ring and the parity of its current use.
template <int kStages>
struct RingPosition {
  int stage = 0;
  uint32_t parity = 0;
  NIBBLE_DEVICE void advance() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

// The units of a persistent block: blocks take them in turn, every other round backwards. Units of rising and
// falling length, as causal masks make them, even out.
NIBBLE_DEVICE int unit_of(int round) {
  const int block = int(blockIdx.x), blocks = int(gridDim.x);
  return round * blocks + (round % 2 == 0 ? block : blocks - 1 - block);
}

// Lane q of a quad holds column q of a 4x4 matrix, v[i] = M[i][q]; afterwards it holds row q, v[i] = M[q][i].
NIBBLE_DEVICE void transpose_quad(uint32_t (&v)[4]) {
  const bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t got = __shfl_xor_sync(~0u, odd ? v[i] : v[i + 1], 1);
    (odd ? v[i] : v[i + 1]) = got;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t got = __shfl_xor_sync(~0u, high ? v[i] : v[i + 2], 2);
    (high ? v[i] : v[i + 2]) = got;
  }
}

NIBBLE_DEVICE uint32_t to_bf16x2(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}

// Scales the 64 x kTileN sums of this warpgroup and stores them as bf16 (d is [m][n], transposed: [n][m]), 16
// bytes per lane: an accumulator gives a lane 2 neighbours of a row, so quads trade registers until each lane
// has 8 (after turning 8x8 blocks, when transposed). scale_columns: shared memory, one per column of the
// tile.
template <int kTileN, bool kTransposed>
NIBBLE_DEVICE void store_tile(__nv_bfloat16* d, int m, int n, const float* scale_rows,
                              const int32_t (&sum)[kTileN / 2], const float* scale_columns, int row0,
                              int column0) {
  const int lane = threadIdx.x % 32, quad = lane % 4;
  const Element first = accumulator_element(threadIdx.x % 128, 0);
  const int row = row0 + first.row;
  const float scale_row[2] = {row < m ? scale_rows[row] : 0.0f, row + 8 < m ? scale_rows[row + 8] : 0.0f};
  const auto pair = [&](int half, int j) {  // rows 8 apart by half, columns in eights by j
    const float2 scale = *reinterpret_cast<const float2*>(scale_columns + 8 * j + first.column);
    return to_bf16x2(static_cast<float>(sum[4 * j + 2 * half]) * scale_row[half] * scale.x,
                     static_cast<float>(sum[4 * j + 2 * half + 1]) * scale_row[half] * scale.y);
  };
#pragma unroll
  for (int j = 0; j < kTileN / 8; j += 4) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint32_t v[4];
      if constexpr (kTransposed) {
        // Registers: (rows 0..7, 8..15) x two groups of 8 columns; each lane ends with 8 rows of one column.
#pragma unroll
        for (int r = 0; r < 4; ++r) v[r] = transpose_8x8(pair(r % 2, j + 2 * i + r / 2));
        transpose_quad(v);
        const int feature = row0 + first.row - lane / 4 + 8 * (quad % 2);
        const int token = column0 + 8 * (j + 2 * i + quad / 2) + lane / 4;
        if (feature < m && token < n)
          *reinterpret_cast<uint4*>(d + size_t(token) * m + feature) = make_uint4(v[0], v[1], v[2], v[3]);
      } else {
#pragma unroll
        for (int r = 0; r < 4; ++r) v[r] = pair(i, j + r);
        transpose_quad(v);
        const int column = column0 + 8 * (j + quad);
        if (row + 8 * i < m && column < n)
          *reinterpret_cast<uint4*>(d + size_t(row + 8 * i) * n + column) =
              make_uint4(v[0], v[1], v[2], v[3]);
      }
    }
  }
}

inline int multiprocessors() {
  int device = 0, count = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

}  // namespace nibble::hopper
