// SPDX-License-Identifier: Apache-2.0
// The delta-S term of smoothed queries (SageAttention2, section 3.1): products of the means of queries with
// the smoothed keys of one tile, by a block of 256 threads on TF32 tensor cores.
#pragma once
#include "kernels/cuda/attention_prefill.h"
#include "kernels/cuda/sm90/sage_rows.cuh"
#include "kernels/cuda/sm90/tile.cuh"

namespace nibble::cuda::sage {

inline constexpr int kMeanRows = 64;  // of a pass

// Which means meet a tile of keys: those of q tiles [q_tile, q_tile + q_tiles), whose products with it go to
// delta tiles first, first + stride, ...
struct DeltaWork {
  int kv_head, group, q_tile, q_tiles, first, stride;
  int all_q_tiles, all_delta_tiles;  // of a head
};

// How many blocks share the passes of a tile of keys: enough of them in all, else one, which loads the keys
// once.
inline int DeltaBlocks(int kv_heads, int k_tiles) {
  return min(4, max(1, 8 * hopper::multiprocessors() / (kv_heads * k_tiles)));
}

// Shared memory: keys, then means, rows of kDim + 4 floats.
constexpr int DeltaShared(int dim) { return (kRows + kMeanRows) * (dim + 4) * int(sizeof(float)); }

// The floor under the greatest magnitude of a query row or group less its mean: under it, delta-S in units of
// the scales would leave 2^20. It does not show otherwise: one unit is then 2^-20 of what delta-S may be.
template <int kDim>
__device__ float FloorUnderQuery(const float* mean, float levels) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kDim / 32; ++i) sum += fabsf(mean[threadIdx.x % 32 + 32 * i]);
#pragma unroll
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  return sum * levels * levels * 0x1p-20f + 1e-30f;  // inverse scales stay finite
}

__device__ inline float ToTf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
}

// d[16][8] += a[16][8] b[8][8]: lane 4 g + j has a of rows g, g + 8, g, g + 8 and columns j, j, j + 4, j + 4,
// b of column g and rows j, j + 4, d of rows g, g, g + 8, g + 8 and columns 2 j, 2 j + 1, 2 j, 2 j + 1.
__device__ inline void MmaTf32(float (&d)[4], const float (&a)[4], const float (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
        "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}

template <int kDim>
__device__ void StoreKeys(const Rows<kDim>& rows, const float* mean, int rows_here, float* keys) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = int(threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4) + 8 * i;
#pragma unroll
    for (int c = 0; c < Rows<kDim>::kChunks; ++c)
#pragma unroll
      for (int w = 0; w < 4; w += 2) {
        float2 x = {0, 0}, y = {0, 0};
        if (row < rows_here) x = Value(rows, i, c, w, mean), y = Value(rows, i, c, w + 1, mean);
        *reinterpret_cast<float4*>(keys + row * (kDim + 4) + (threadIdx.x % 4 + 4 * c) * 8 + 2 * w) =
            make_float4(ToTf32(x.x), ToTf32(x.y), ToTf32(y.x), ToTf32(y.y));
      }
  }
}

// `keys`: the tile's rows less `mean`, of which there are `rows_here`; `scale`: SageTiles::scale of the tile.
// kWays: means of a q tile. Each pass has 64 of them, 16 keys a warp.
template <int kDim, int kWays>
__device__ void MakeDelta(const Rows<kDim>& rows, const float* mean, int rows_here, const float* scale,
                          const SageTiles& tiles, const DeltaWork& work) {
  constexpr int kPitch = kDim + 4;
  extern __shared__ float4 delta_shared[];
  float *keys = reinterpret_cast<float*>(delta_shared), *means = keys + kRows * kPitch;
  const int warp = int(threadIdx.x) / 32, g = int(threadIdx.x) % 32 / 4, j = int(threadIdx.x) % 4;
  StoreKeys(rows, mean, rows_here, keys);
  const float inverse = 1.0f / fmaxf(scale[4 * (warp / 4) + j], 1e-30f);
  const int count = work.q_tiles * kWays * work.group;
  const auto place = [&](int m) {  // of a mean: by head and tile
    return int2{work.kv_head * work.group + m % work.group, m / work.group};
  };
  for (int first = int(blockIdx.z) * kMeanRows; first < count; first += int(gridDim.z) * kMeanRows) {
#pragma unroll
    for (int i = int(threadIdx.x); i < kMeanRows * kDim / 4; i += kThreads) {
      const int m = i / (kDim / 4), d = i % (kDim / 4) * 4;
      float4 x = make_float4(0, 0, 0, 0);
      if (first + m < count) {
        const int2 at = place(first + m);
        const int64_t row = (int64_t{at.x} * work.all_q_tiles + work.q_tile) * kWays + at.y;
        x = *reinterpret_cast<const float4*>(tiles.q_mean + row * kDim + d);
      }
      *reinterpret_cast<float4*>(means + m * kPitch + d) =
          make_float4(ToTf32(x.x), ToTf32(x.y), ToTf32(x.z), ToTf32(x.w));
    }
    __syncthreads();
    float sum[kMeanRows / 16][2][4] = {};
#pragma unroll 4
    for (int k = j; k < kDim; k += 8) {
      float b[2][2];
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int h = 0; h < 2; ++h) b[n][h] = keys[(16 * warp + 8 * n + g) * kPitch + k + 4 * h];
#pragma unroll
      for (int m = 0; m < kMeanRows / 16; ++m) {
        float a[4];
#pragma unroll
        for (int h = 0; h < 4; ++h) a[h] = means[(16 * m + g + 8 * (h % 2)) * kPitch + k + 4 * (h / 2)];
        MmaTf32(sum[m][0], a, b[0]);
        MmaTf32(sum[m][1], a, b[1]);
      }
    }
#pragma unroll
    for (int m = 0; m < kMeanRows / 8; ++m) {
      const int row = first + 8 * m + g;
      if (row >= count) continue;
      const int2 at = place(row);
      const int64_t tile = int64_t{at.x} * work.all_delta_tiles + work.first + at.y / kWays * work.stride;
      const auto& s = sum[m / 2];
      const int h = 2 * (m % 2);
      *reinterpret_cast<float4*>(tiles.delta + (tile * kWays + at.y % kWays) * kRows + 16 * warp + 4 * j) =
          make_float4(s[0][h] * inverse, s[0][h + 1] * inverse, s[1][h] * inverse, s[1][h + 1] * inverse);
    }
    __syncthreads();
  }
}

}  // namespace nibble::cuda::sage
