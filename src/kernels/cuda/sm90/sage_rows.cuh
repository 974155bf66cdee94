// SPDX-License-Identifier: Apache-2.0
// A tile of 128 rows of Q, K or V in the registers of 256 threads, between its maxima and its codes.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <cstdint>

namespace nibble::cuda::sage {

inline constexpr int kRows = 128, kThreads = 256;

__device__ inline float2 Unpack(uint32_t pair) {
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xFFFF0000u)};
}

__device__ inline uint32_t PackCodes(const float (&x)[4]) {
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) word |= (uint32_t(__float2int_rn(x[i])) & 0xFFu) << (8 * i);
  return word;
}

// Rows r and r + 8 of each 16, r = lane / 4: of each row the 16-byte chunks lane % 4 + 4c. Zeros beyond the
// tile.
template <int kDim>
struct Rows {
  static constexpr int kChunks = kDim / 32;
  uint32_t pair[2][kChunks][4];

  // Row r of the tile lies at at(r), or is zero where that is null.
  template <class At>
  __device__ void Load(At at) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const __nv_bfloat16* row = at(warp * 16 + lane / 4 + 8 * i);
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        uint4 bits = make_uint4(0, 0, 0, 0);
        if (row != nullptr) bits = *reinterpret_cast<const uint4*>(row + (lane % 4 + 4 * c) * 8);
        pair[i][c][0] = bits.x;
        pair[i][c][1] = bits.y;
        pair[i][c][2] = bits.z;
        pair[i][c][3] = bits.w;
      }
    }
  }
};

// The pair less the mean of its channels; `mean` in shared memory, or null.
template <int kDim>
__device__ float2 Value(const Rows<kDim>& rows, int i, int c, int w, const float* mean) {
  float2 x = Unpack(rows.pair[i][c][w]);
  if (mean != nullptr) {
    const float2 m = *reinterpret_cast<const float2*>(mean + (threadIdx.x % 4 + 4 * c) * 8 + 2 * w);
    x.x -= m.x;
    x.y -= m.y;
  }
  return x;
}

__device__ inline float MaxOrNan(float a, float b) { return isnan(a) || isnan(b) ? NAN : fmaxf(a, b); }

// Over both rows and the quad of lanes that hold them; NaN for what is not finite: a broken value stays
// visible. `rows_here`: rows of the tile, beyond which a mean must not show.
template <int kDim>
__device__ float Greatest(const Rows<kDim>& rows, const float* mean, int rows_here) {
  float amax = 0, check = 0;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (mean != nullptr && int(threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + 8 * i) >= rows_here) continue;
#pragma unroll
    for (int c = 0; c < Rows<kDim>::kChunks; ++c)
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const float2 x = Value(rows, i, c, w, mean);
        amax = fmaxf(amax, fmaxf(fabsf(x.x), fabsf(x.y)));
        check = fmaf(0.0f, x.x, fmaf(0.0f, x.y, check));
      }
  }
  amax = check == 0 ? amax : NAN;
  amax = MaxOrNan(amax, __shfl_xor_sync(~0u, amax, 1));
  return MaxOrNan(amax, __shfl_xor_sync(~0u, amax, 2));
}

template <int kDim>
__device__ void Store(const Rows<kDim>& rows, const float* mean, int rows_here, int8_t* out, float inverse) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = warp * 16 + lane / 4 + 8 * i;
    const float factor = row < rows_here ? inverse : 0.0f;
#pragma unroll
    for (int c = 0; c < Rows<kDim>::kChunks; ++c) {
      uint32_t word[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 a = Value(rows, i, c, 2 * half, mean), b = Value(rows, i, c, 2 * half + 1, mean);
        word[half] = PackCodes({a.x * factor, a.y * factor, b.x * factor, b.y * factor});
      }
      *reinterpret_cast<uint2*>(out + row * kDim + (lane % 4 + 4 * c) * 8) = make_uint2(word[0], word[1]);
    }
  }
}

// A group of zeros has scale 1: masked scores of padding are -infinity times its scale.
__device__ inline float Scale(float amax, float levels = 127) { return amax == 0 ? 1.0f : amax / levels; }
__device__ inline float Inverse(float amax, float levels = 127) { return amax > 0 ? levels / amax : 0.0f; }

__device__ inline uint32_t ToE4m3(float x) {
  // Infinite values stay so: E4M3 has no infinity, they become NaN.
  return __nv_cvt_float_to_fp8(x, isfinite(x) ? __NV_SATFINITE : __NV_NOSAT, __NV_E4M3);
}

// Over the block; 0 for values that are not finite throughout.
template <int kDim>
__device__ float GreatestOfBlock(const Rows<kDim>& rows) {
  __shared__ float greatest[kThreads / 32];
  float amax = 0;
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int c = 0; c < Rows<kDim>::kChunks; ++c)
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const float2 x = Unpack(rows.pair[i][c][w]);
        amax = fmaxf(amax, fmaxf(fabsf(x.x), fabsf(x.y)));
      }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) amax = fmaxf(amax, __shfl_xor_sync(~0u, amax, step));
  if (threadIdx.x % 32 == 0) greatest[threadIdx.x / 32] = amax;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kThreads / 32; ++w) amax = fmaxf(amax, greatest[w]);
  return amax;
}

// V turned to [channel][token] by way of shared memory. Tokens 2g, 2g + 1, 2g + 8 and 2g + 9 of each 16,
// which two lanes hold, become four neighbours: the lanes trade half of their channels.
// `out`: the tile's first token of channel 0, `stride` bytes to the next channel.
template <int kDim>
__device__ void TurnValues(const Rows<kDim>& rows, uint8_t* out, int64_t stride, float* scale) {
  constexpr int kPitch = kRows + 4, kMine = Rows<kDim>::kChunks / 2;  // chunks that a lane keeps
  __shared__ alignas(16) uint8_t turned[kDim * kPitch];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, odd = lane / 4 % 2;
  const float amax = GreatestOfBlock(rows);
  // A power of two that brings the greatest value into 128 .. 256: it costs nothing to undo and no code is
  // rounded by it.
  const int exponent = amax > 0 && isfinite(amax) ? ilogbf(amax) - 7 : 0;
  const float inverse = ldexpf(1.0f, -exponent);
#pragma unroll
  for (int c = 0; c < kMine; ++c)
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      uint32_t word[2] = {0, 0};  // of two channels
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t keep = odd ? rows.pair[i][c + kMine][w] : rows.pair[i][c][w];
        const uint32_t give = odd ? rows.pair[i][c][w] : rows.pair[i][c + kMine][w];
        const uint32_t got = __shfl_xor_sync(~0u, give, 4);
        const float2 even_token = Unpack(odd ? got : keep), odd_token = Unpack(odd ? keep : got);
        word[0] |= (ToE4m3(even_token.x * inverse) | ToE4m3(odd_token.x * inverse) << 8) << (16 * i);
        word[1] |= (ToE4m3(even_token.y * inverse) | ToE4m3(odd_token.y * inverse) << 8) << (16 * i);
      }
      const int channel = (lane % 4 + 4 * (c + odd * kMine)) * 8 + 2 * w, token = warp * 16 + lane / 8 * 4;
#pragma unroll
      for (int e = 0; e < 2; ++e)
        *reinterpret_cast<uint32_t*>(turned + (channel + e) * kPitch + token) = word[e];
    }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kDim * kRows / 16 / kThreads; ++i) {
    const int piece = i * kThreads + threadIdx.x, channel = piece / 8, token = piece % 8 * 16;
    const auto* from = reinterpret_cast<const uint32_t*>(turned + channel * kPitch + token);
    *reinterpret_cast<uint4*>(out + channel * stride + token) =
        make_uint4(from[0], from[1], from[2], from[3]);
  }
  if (threadIdx.x == 0) *scale = ldexpf(1.0f, exponent);
}

}  // namespace nibble::cuda::sage
