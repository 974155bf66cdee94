// SPDX-License-Identifier: Apache-2.0
// One pass over bf16 Q, K and V: a block of 256 threads takes 128 rows of one head and keeps them in
// registers between the maximum and the codes. Reads 2 bytes and writes 1 a value: bound by memory. With
// smoothed queries a second one over K, which makes delta-S.
#include <cuda_bf16.h>

#include "kernels/cuda/attention_prefill.h"
#include "kernels/cuda/launched.cuh"
#include "kernels/cuda/sm90/sage_delta.cuh"
#include "kernels/cuda/sm90/sage_rows.cuh"

namespace nibble::cuda {
namespace {

using namespace nibble::cuda::sage;

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

// Where the rows of a tile lie, from a channel on.
__device__ auto RowsOf(const void* x, int channel, int64_t stride, const Tile& tile) {
  const auto* first = static_cast<const __nv_bfloat16*>(x) + channel + tile.row * stride;
  return [first, stride, rows = tile.rows](int row) { return row < rows ? first + row * stride : nullptr; };
}

// The mean of the tile's rows.
template <int kDim>
__device__ void TileMean(const Rows<kDim>& rows, int rows_here, float* mean) {
  __shared__ float part[kThreads / 32][kDim];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int c = 0; c < Rows<kDim>::kChunks; ++c)
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const float2 a = Unpack(rows.pair[0][c][w]), b = Unpack(rows.pair[1][c][w]);
      float2 sum = {a.x + b.x, a.y + b.y};
#pragma unroll
      for (int step = 4; step < 32; step *= 2) {
        sum.x += __shfl_xor_sync(~0u, sum.x, step);
        sum.y += __shfl_xor_sync(~0u, sum.y, step);
      }
      if (lane < 4) *reinterpret_cast<float2*>(&part[warp][(lane + 4 * c) * 8 + 2 * w]) = sum;
    }
  __syncthreads();
  if (threadIdx.x < kDim) {
    float all = 0;
#pragma unroll
    for (int i = 0; i < kThreads / 32; ++i) all += part[i][threadIdx.x];
    mean[threadIdx.x] = all / float(rows_here);
  }
  __syncthreads();
}

template <int kDim, bool kSmooth>
__device__ void QuantizeQ(const SageQuantizeArgs& a, int tile_index, int head) {
  const Tile tile = FindTile(a.shape.q_offsets, a.shape.q_tile_ends, tile_index);
  Rows<kDim> rows;
  rows.Load(RowsOf(a.q, head * kDim, a.q_stride, tile));
  const int64_t at = int64_t{head} * a.shape.q_tiles + tile_index;
  const float* less = nullptr;
  float floor = 0;
  if constexpr (kSmooth) {
    __shared__ alignas(16) float mean[kDim];
    TileMean(rows, tile.rows, mean);
    if (threadIdx.x < kDim) a.tiles.q_mean[at * kDim + threadIdx.x] = mean[threadIdx.x];
    floor = FloorUnderQuery<kDim>(mean, a.levels);
    less = mean;
  }
  const float amax = MaxOrNan(Greatest<kDim>(rows, less, tile.rows), floor);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  Store(rows, less, tile.rows, a.tiles.q + at * kRows * kDim, Inverse(amax, a.levels));
  if (lane % 4 == 0) a.tiles.q_scale[(at * 8 + warp) * 8 + lane / 4] = Scale(amax, a.levels);
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
  rows.Load(RowsOf(a.k, kv_head * kDim, a.k_stride, tile));
  KeyMean<kDim>(a, tile, kv_head, mean);
  const int64_t at = int64_t{kv_head} * a.shape.k_tiles + tile_index;
  if (a.tiles.k_mean != nullptr && threadIdx.x < kDim)
    a.tiles.k_mean[at * kDim + threadIdx.x] = mean[threadIdx.x];
  float amax = Greatest(rows, mean, tile.rows);
  const float other = __shfl_xor_sync(~0u, amax, 4);  // keys 2g and 2g + 1 share a group
  amax = MaxOrNan(amax, other);
  if (lane % 8 == 0) greatest[warp][lane / 8] = amax;
  __syncthreads();
  const int page = warp / 4, group = lane / 8;
  amax = 0;
#pragma unroll
  for (int w = 0; w < 4; ++w) amax = MaxOrNan(amax, greatest[page * 4 + w][group]);
  Store(rows, mean, tile.rows, a.tiles.k + at * kRows * kDim, Inverse(amax, a.levels));
  if (warp % 4 == 0 && lane % 8 == 0) a.tiles.scale[at * 16 + page * 4 + group] = Scale(amax, a.levels);
}

template <int kDim>
__device__ void QuantizeV(const SageQuantizeArgs& a, int tile_index, int kv_head) {
  const Tile tile = FindTile(a.shape.k_offsets, a.shape.k_tile_ends, tile_index);
  Rows<kDim> rows;
  rows.Load(RowsOf(a.v, kv_head * kDim, a.v_stride, tile));
  const int64_t at = int64_t{kv_head} * a.shape.k_tiles + tile_index,
                stride = int64_t{a.shape.k_tiles} * kRows;
  TurnValues(rows, a.tiles.v + int64_t{kv_head} * kDim * stride + int64_t{tile_index} * kRows, stride,
             &a.tiles.scale[at * 16 + 8]);
}

template <int kDim, bool kSmooth>
__global__ __launch_bounds__(kThreads, kDim == 64 ? 5 : 4) void SageQuantizeKernel(const SageQuantizeArgs a) {
  const int tile = blockIdx.y;  // heads are neighbours in memory, so they run together
  int head = blockIdx.x;
  if (head < a.shape.heads) {
    if (tile < a.shape.q_tiles) QuantizeQ<kDim, kSmooth>(a, tile, head);
    return;
  }
  head -= a.shape.heads;
  if (tile >= a.shape.k_tiles) return;
  if (head < a.shape.kv_heads)
    QuantizeK<kDim>(a, tile, head);
  else
    QuantizeV<kDim>(a, tile, head - a.shape.kv_heads);
}

template <int kDim>
__global__ __launch_bounds__(kThreads) void SageDeltaKernel(const SageQuantizeArgs a) {
  __shared__ alignas(16) float mean[kDim];
  const SageShape& shape = a.shape;
  const int index = int(blockIdx.y), kv_head = int(blockIdx.x);
  int s = 0, first = 0, q_tile = 0,
      k_tile = 0;  // of the sequence: delta tiles, q tiles and k tiles before it
  while (index >= shape.k_tile_ends[s]) {
    first += (shape.q_tile_ends[s] - q_tile) * (shape.k_tile_ends[s] - k_tile);
    q_tile = shape.q_tile_ends[s], k_tile = shape.k_tile_ends[s++];
  }
  const Tile tile = FindTile(shape.k_offsets, shape.k_tile_ends, index);
  const int queries = shape.q_offsets[s + 1] - shape.q_offsets[s], j = index - k_tile,
            tiles = shape.q_tile_ends[s] - q_tile, stride = shape.k_tile_ends[s] - k_tile;
  // With a causal mask the tile is seen from one q tile on.
  const int skip = shape.causal ? min(tiles, max(0, (j * kRows - (tile.length - queries)) / kRows)) : 0;
  Rows<kDim> rows;
  rows.Load(RowsOf(a.k, kv_head * kDim, a.k_stride, tile));
  if (threadIdx.x < kDim)
    mean[threadIdx.x] = a.tiles.k_mean[(int64_t{kv_head} * shape.k_tiles + index) * kDim + threadIdx.x];
  __syncthreads();
  MakeDelta<kDim, 1>(rows, mean, tile.rows, a.tiles.scale + (int64_t{kv_head} * shape.k_tiles + index) * 16,
                     a.tiles,
                     {kv_head, shape.heads / shape.kv_heads, q_tile + skip, tiles - skip,
                      first + skip * stride + j, stride, shape.q_tiles, shape.delta_tiles});
}

template <int kDim>
Launch Run(const SageQuantizeArgs& a, Stream stream) {
  const SageShape& s = a.shape;
  const dim3 grid(s.heads + 2 * s.kv_heads, max(s.q_tiles, s.k_tiles));
  if (s.delta_tiles == 0) {
    SageQuantizeKernel<kDim, false><<<grid, kThreads, 0, stream>>>(a);
    return Launched("SageQuantize");
  }
  SageQuantizeKernel<kDim, true><<<grid, kThreads, 0, stream>>>(a);
  constexpr int kShared = DeltaShared(kDim);
  static const cudaError_t allowed = AllowShared(SageDeltaKernel<kDim>, kShared);
  if (allowed != cudaSuccess) return {int(allowed), "SageQuantize: shared memory"};
  SageDeltaKernel<kDim>
      <<<dim3(s.kv_heads, s.k_tiles, DeltaBlocks(s.kv_heads, s.k_tiles)), kThreads, kShared, stream>>>(a);
  return Launched("SageQuantize: delta-S");
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
  if (s.delta_tiles > 0) {
    b.q_mean = Aligned(size_t(s.heads) * s.q_tiles * s.head_dim * 4);
    b.k_mean = Aligned(size_t(s.kv_heads) * s.k_tiles * s.head_dim * 4);
    b.delta = Aligned((size_t(s.heads) * s.delta_tiles + 1) * kRows * 4);  // one for a sequence without keys
  }
  b.total = b.q + b.k + b.v + b.q_scale + b.scale + b.q_mean + b.k_mean + b.delta;
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
  if (b.delta == 0) return t;
  t.q_mean = reinterpret_cast<float*>(at += b.scale);
  t.k_mean = reinterpret_cast<float*>(at += b.q_mean);
  t.delta = reinterpret_cast<float*>(at += b.k_mean);
  return t;
}

Launch SageQuantize(const SageQuantizeArgs& a, Stream stream) {
  if (a.shape.head_dim != 64 && a.shape.head_dim != 128) return Refused("sage: head_dim must be 64 or 128");
  if (a.q_stride % 8 || a.k_stride % 8 || a.v_stride % 8)
    return Refused("sage: row strides must be multiples of 8");
  return a.shape.head_dim == 64 ? Run<64>(a, stream) : Run<128>(a, stream);
}

}  // namespace nibble::cuda
