// SPDX-License-Identifier: Apache-2.0
// One pass over bf16 Q, K and V: a block of 256 threads takes 128 rows of one head and keeps them in
// registers between the maximum and the codes. Reads 2 bytes and writes 1 a value: bound by memory.
#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include "kernels/cuda/attention_prefill.h"
#include "kernels/cuda/launched.cuh"

namespace nibble::cuda {
namespace {

constexpr int kRows = 128, kThreads = 256;

struct Tile {
  int row, rows;      // first row in the packed input, rows of this tile (1..128)
  int first, length;  // of the sequence
};

// Tile `tile` of the packed sequences.
__device__ Tile FindTile(const int32_t* offsets, const int32_t* ends, int tile) {
  int s = 0;
  while (tile >= ends[s]) ++s;
  const int at = (tile - (s > 0 ? ends[s - 1] : 0)) * kRows;
  const int length = offsets[s + 1] - offsets[s];
  return {offsets[s] + at, min(kRows, length - at), offsets[s], length};
}

__device__ float2 Unpack(uint32_t pair) {
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xFFFF0000u)};
}

__device__ uint32_t PackCodes(const float (&x)[4]) {
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

  __device__ void Load(const __nv_bfloat16* base, int64_t stride, const Tile& tile) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = warp * 16 + lane / 4 + 8 * i;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        uint4 bits = make_uint4(0, 0, 0, 0);
        if (row < tile.rows)
          bits = *reinterpret_cast<const uint4*>(base + (tile.row + row) * stride + (lane % 4 + 4 * c) * 8);
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

__device__ float MaxOrNan(float a, float b) { return isnan(a) || isnan(b) ? NAN : fmaxf(a, b); }

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
__device__ float Scale(float amax) { return amax == 0 ? 1.0f : amax / 127.0f; }
__device__ float Inverse(float amax) { return amax > 0 ? 127.0f / amax : 0.0f; }

template <int kDim>
__device__ void QuantizeQ(const SageQuantizeArgs& a, int tile_index, int head) {
  const Tile tile = FindTile(a.shape.q_offsets, a.shape.q_tile_ends, tile_index);
  Rows<kDim> rows;
  rows.Load(static_cast<const __nv_bfloat16*>(a.q) + head * kDim, a.q_stride, tile);
  const float amax = Greatest<kDim>(rows, nullptr, tile.rows);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t at = int64_t{head} * a.shape.q_tiles + tile_index;
  Store(rows, nullptr, tile.rows, a.tiles.q + at * kRows * kDim, Inverse(amax));
  if (lane % 4 == 0) a.tiles.q_scale[(at * 8 + warp) * 8 + lane / 4] = Scale(amax);
}

// The mean of the first 64 keys, which any reader can compute from them. All loads of a thread are in flight
// at once: 16 bytes of rows t, t + 16, t + 32 and t + 48.
template <int kDim>
__device__ void KeyMean(const SageQuantizeArgs& a, const Tile& tile, int kv_head, float* mean) {
  constexpr int kParts = kThreads / (kDim / 8);
  const int n = min(64, tile.length), chunk = threadIdx.x % (kDim / 8), first = threadIdx.x / (kDim / 8);
  const __nv_bfloat16* k =
      static_cast<const __nv_bfloat16*>(a.k) + tile.first * a.k_stride + kv_head * kDim + chunk * 8;
  __shared__ float part[kParts][kDim];
  float sum[8] = {};
#pragma unroll
  for (int t = 0; t < 64; t += kParts) {
    uint4 bits = make_uint4(0, 0, 0, 0);
    if (first + t < n) bits = *reinterpret_cast<const uint4*>(k + (first + t) * a.k_stride);
    const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const float2 pair = Unpack(words[w]);
      sum[2 * w] += pair.x;
      sum[2 * w + 1] += pair.y;
    }
  }
#pragma unroll
  for (int e = 0; e < 8; ++e) part[first][chunk * 8 + e] = sum[e];
  __syncthreads();
  if (threadIdx.x < kDim) {
    float all = 0;
#pragma unroll
    for (int i = 0; i < kParts; ++i) all += part[i][threadIdx.x];
    mean[threadIdx.x] = all / float(n);
  }
  __syncthreads();
}

template <int kDim>
__device__ void QuantizeK(const SageQuantizeArgs& a, int tile_index, int kv_head) {
  const Tile tile = FindTile(a.shape.k_offsets, a.shape.k_tile_ends, tile_index);
  __shared__ alignas(16) float mean[kDim];
  __shared__ float greatest[8][4];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  Rows<kDim> rows;
  rows.Load(static_cast<const __nv_bfloat16*>(a.k) + kv_head * kDim, a.k_stride, tile);
  KeyMean<kDim>(a, tile, kv_head, mean);
  float amax = Greatest(rows, mean, tile.rows);
  const float other = __shfl_xor_sync(~0u, amax, 4);  // keys 2g and 2g + 1 share a group
  amax = MaxOrNan(amax, other);
  if (lane % 8 == 0) greatest[warp][lane / 8] = amax;
  __syncthreads();
  const int page = warp / 4, group = lane / 8;
  amax = 0;
#pragma unroll
  for (int w = 0; w < 4; ++w) amax = MaxOrNan(amax, greatest[page * 4 + w][group]);
  const int64_t at = int64_t{kv_head} * a.shape.k_tiles + tile_index;
  Store(rows, mean, tile.rows, a.tiles.k + at * kRows * kDim, Inverse(amax));
  if (warp % 4 == 0 && lane % 8 == 0) a.tiles.scale[at * 16 + page * 4 + group] = Scale(amax);
}

__device__ uint32_t ToE4m3(float x) {
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
template <int kDim>
__device__ void QuantizeV(const SageQuantizeArgs& a, int tile_index, int kv_head) {
  constexpr int kPitch = kRows + 4, kMine = Rows<kDim>::kChunks / 2;  // chunks that a lane keeps
  const Tile tile = FindTile(a.shape.k_offsets, a.shape.k_tile_ends, tile_index);
  __shared__ alignas(16) uint8_t turned[kDim * kPitch];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, odd = lane / 4 % 2;
  Rows<kDim> rows;
  rows.Load(static_cast<const __nv_bfloat16*>(a.v) + kv_head * kDim, a.v_stride, tile);
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
  uint8_t* out = a.tiles.v + int64_t{kv_head} * kDim * a.shape.k_tiles * kRows + int64_t{tile_index} * kRows;
#pragma unroll
  for (int i = 0; i < kDim * kRows / 16 / kThreads; ++i) {
    const int piece = i * kThreads + threadIdx.x, channel = piece / 8, token = piece % 8 * 16;
    const auto* from = reinterpret_cast<const uint32_t*>(turned + channel * kPitch + token);
    *reinterpret_cast<uint4*>(out + int64_t{channel} * a.shape.k_tiles * kRows + token) =
        make_uint4(from[0], from[1], from[2], from[3]);
  }
  if (threadIdx.x == 0)
    a.tiles.scale[(int64_t{kv_head} * a.shape.k_tiles + tile_index) * 16 + 8] = ldexpf(1.0f, exponent);
}

template <int kDim>
__global__ __launch_bounds__(kThreads, kDim == 64 ? 5 : 4) void SageQuantizeKernel(const SageQuantizeArgs a) {
  const int tile = blockIdx.y;  // heads are neighbours in memory, so they run together
  int head = blockIdx.x;
  if (head < a.shape.heads) {
    if (tile < a.shape.q_tiles) QuantizeQ<kDim>(a, tile, head);
    return;
  }
  head -= a.shape.heads;
  if (tile >= a.shape.k_tiles) return;
  if (head < a.shape.kv_heads)
    QuantizeK<kDim>(a, tile, head);
  else
    QuantizeV<kDim>(a, tile, head - a.shape.kv_heads);
}

size_t Aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace

SageBytes SageTileBytes(const SageShape& s) {
  SageBytes b{};
  b.q = Aligned(size_t(s.heads) * s.q_tiles * kRows * s.head_dim);
  b.k = Aligned(size_t(s.kv_heads) * s.k_tiles * kRows * s.head_dim);
  b.v = b.k;
  b.q_scale = Aligned(size_t(s.heads) * s.q_tiles * 64 * 4);
  b.scale = Aligned(size_t(s.kv_heads) * s.k_tiles * 16 * 4);
  b.total = b.q + b.k + b.v + b.q_scale + b.scale;
  return b;
}

SageTiles SageTilesAt(const SageShape& shape, void* base) {
  const SageBytes b = SageTileBytes(shape);
  auto* at = static_cast<uint8_t*>(base);
  SageTiles t{};
  t.q = reinterpret_cast<int8_t*>(at);
  t.k = reinterpret_cast<int8_t*>(at += b.q);
  t.v = at += b.k;
  t.q_scale = reinterpret_cast<float*>(at += b.v);
  t.scale = reinterpret_cast<float*>(at += b.q_scale);
  return t;
}

Launch SageQuantize(const SageQuantizeArgs& a, Stream stream) {
  if (a.shape.head_dim != 64 && a.shape.head_dim != 128) return Refused("sage: head_dim must be 64 or 128");
  if (a.q_stride % 8 || a.k_stride % 8 || a.v_stride % 8)
    return Refused("sage: row strides must be multiples of 8");
  const dim3 grid(a.shape.heads + 2 * a.shape.kv_heads, max(a.shape.q_tiles, a.shape.k_tiles));
  if (a.shape.head_dim == 64)
    SageQuantizeKernel<64><<<grid, kThreads, 0, stream>>>(a);
  else
    SageQuantizeKernel<128><<<grid, kThreads, 0, stream>>>(a);
  return Launched("SageQuantize");
}

}  // namespace nibble::cuda
