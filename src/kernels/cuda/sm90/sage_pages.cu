// SPDX-License-Identifier: Apache-2.0
// What SageAttention over sealed pages reads: query rows each by itself, as their scale must not hang on how
// a prompt was cut; K and V of pairs of pages, K by 64 keys. A block of 256 threads has one tile of one head.
#include "kernels/cuda/attention_prefill.h"
#include "kernels/cuda/launched.cuh"
#include "kernels/cuda/sm90/sage_delta.cuh"
#include "kernels/cuda/sm90/sage_rows.cuh"

namespace nibble::cuda {
namespace {

using namespace nibble::cuda::sage;

constexpr int kPage = kRows / 2;

// The means that are taken off the queries of the two pages of a tile, to shared memory and to where delta-S
// is made of them.
template <int kDim>
__device__ void LoadQueryMeans(const SagePagesArgs& a, int tile, int head, float (&mean)[2][kDim]) {
  const int kv_head = head / (a.heads / a.kv_heads), in_group = head % (a.heads / a.kv_heads);
  for (int i = int(threadIdx.x); i < 2 * kDim; i += kThreads) {
    const int way = i / kDim, d = i % kDim;
    float x = 0;
    if (a.q_mean != nullptr) {
      x = a.q_mean[head * kDim + d];
    } else if (const int page = a.sum_pages[2 * tile + way]; page >= 0) {
      const auto* sums =
          reinterpret_cast<const float*>(a.q_sums + (int64_t{page} * a.kv_heads + kv_head) * a.q_sum_stride);
      x = sums[in_group * kDim + d] / float(kPage);
    }
    mean[way][d] = x;
    a.tiles.q_mean[(int64_t{head} * a.q_tiles + tile) * 2 * kDim + i] = x;
  }
  __syncthreads();
}

// Rows of a warp one after the other: lane l has channels l, l + 32, ... of a row.
template <int kDim, bool kSmooth>
__device__ void QuantizeQueries(const SagePagesArgs& a, int tile, int head) {
  constexpr int kEach = kDim / 32;
  int n = 0;
  while (tile >= a.sequences[n].q_tile_end) ++n;
  const SageSequence s = a.sequences[n];
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32,
            kv_head = head / (a.heads / a.kv_heads);
  const int start = s.keys - s.queries,
            block = start / kRows + tile - (n > 0 ? a.sequences[n - 1].q_tile_end : 0);
  float mean[kEach] = {};
  const float* from = a.k_mean != nullptr ? a.k_mean + kv_head * kDim
                      : a.records != nullptr
                          ? reinterpret_cast<const float*>(
                                a.records + (int64_t{s.seq} * a.kv_heads + kv_head) * a.record_stride)
                          : nullptr;
  for (int i = 0; i < kEach && from != nullptr; ++i) mean[i] = from[lane + 32 * i];
  const int64_t at = int64_t{head} * a.q_tiles + tile;
  [[maybe_unused]] __shared__ float less[2][kDim];
  float floors[2] = {0, 0};
  if constexpr (kSmooth) {
    LoadQueryMeans(a, tile, head, less);
    for (int way = 0; way < 2; ++way) floors[way] = FloorUnderQuery<kDim>(less[way], a.levels);
  }
  for (int row = warp; row < kRows; row += kThreads / 32) {
    const int position = block * kRows + row;
    const bool inside = position >= start && position < s.keys;
    const float* q = a.q + (s.query + position - start) * a.q_stride + head * kDim;
    float x[kEach] = {}, bias = 0, amax = 0, check = 0;
    for (int i = 0; i < kEach && inside; ++i) {
      x[i] = q[lane + 32 * i];
      bias = fmaf(x[i], mean[i], bias);
      if (kSmooth) x[i] = __fsub_rn(x[i], less[row / kPage][lane + 32 * i]);
      amax = fmaxf(amax, fabsf(x[i]));
      check = fmaf(0.0f, x[i], check);
    }
    amax = check == 0 ? amax : NAN;
    if (kSmooth) amax = MaxOrNan(amax, floors[row / kPage]);
    for (int step = 16; step > 0; step /= 2) {
      bias += __shfl_xor_sync(~0u, bias, step);
      amax = MaxOrNan(amax, __shfl_xor_sync(~0u, amax, step));
    }
    for (int i = 0; i < kEach; ++i)
      a.tiles.q[(at * kRows + row) * kDim + lane + 32 * i] =
          int8_t(__float2int_rn(x[i] * Inverse(amax, a.levels)));
    if (lane != 0) continue;
    a.tiles.q_scale[at * 2 * kRows + row] = Scale(amax, a.levels);
    a.tiles.q_scale[at * 2 * kRows + kRows + row] = bias * a.scale;
  }
}

// Rows of the two pages of a tile, or of one.
__device__ auto PageRows(const SagePagesArgs& a, const void* pages, const SagePageTile& tile, int kv_head,
                         int dim) {
  const auto* first = static_cast<const __nv_bfloat16*>(pages);
  const int64_t page = int64_t{a.kv_heads} * kPage * dim, head = int64_t{kv_head} * kPage * dim;
  return [=](int row) {
    const int at = row < kPage ? tile.first : tile.second;
    return at < 0 ? nullptr : first + at * page + head + row % kPage * dim;
  };
}

template <int kDim>
__device__ void LoadKeyMean(const SagePagesArgs& a, const SagePageTile& tile, int kv_head,
                            float (&mean)[kDim]) {
  if (threadIdx.x < kDim)
    mean[threadIdx.x] =
        a.k_mean != nullptr ? a.k_mean[kv_head * kDim + threadIdx.x]
        : a.records != nullptr
            ? reinterpret_cast<const float*>(a.records + (int64_t{tile.seq} * a.kv_heads + kv_head) *
                                                             a.record_stride)[threadIdx.x]
            : 0.0f;
  __syncthreads();
}

template <int kDim>
__device__ void QuantizeKeys(const SagePagesArgs& a, int index, int kv_head) {
  __shared__ alignas(16) float mean[kDim];
  __shared__ float greatest[8][4];
  const SagePageTile tile = a.page_tiles[index];
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32,
            rows_here = tile.second < 0 ? kPage : kRows;
  Rows<kDim> rows;
  rows.Load(PageRows(a, a.k, tile, kv_head, kDim));
  LoadKeyMean(a, tile, kv_head, mean);
  float amax = Greatest(rows, mean, rows_here);
  amax = MaxOrNan(amax, __shfl_xor_sync(~0u, amax, 4));  // keys 2g and 2g + 1 share a group
  if (lane % 8 == 0) greatest[warp][lane / 8] = amax;
  __syncthreads();
  const int page = warp / 4, group = lane / 8;
  amax = 0;
  for (int w = 0; w < 4; ++w)
    for (int g = 0; g < 4; ++g)
      if (a.by_page || g == group) amax = MaxOrNan(amax, greatest[page * 4 + w][g]);
  const int64_t at = int64_t{kv_head} * a.k_tiles + index;
  Store(rows, mean, rows_here, a.tiles.k + at * kRows * kDim, Inverse(amax, a.levels));
  if (warp % 4 == 0 && lane % 8 == 0) a.tiles.scale[at * 16 + page * 4 + group] = Scale(amax, a.levels);
}

template <int kDim, bool kSmooth>
__global__ __launch_bounds__(kThreads) void SagePagesKernel(const __grid_constant__ SagePagesArgs a) {
  const int tile = int(blockIdx.y);
  int head = int(blockIdx.x);
  if (head < a.heads) {
    if (tile < a.q_tiles) QuantizeQueries<kDim, kSmooth>(a, tile, head);
    return;
  }
  head -= a.heads;
  if (tile >= a.k_tiles) return;
  if (head < a.kv_heads) return QuantizeKeys<kDim>(a, tile, head);
  head -= a.kv_heads;
  Rows<kDim> rows;
  rows.Load(PageRows(a, a.v, a.page_tiles[tile], head, kDim));
  const int64_t stride = int64_t{a.k_tiles} * kRows;
  TurnValues(rows, a.tiles.v + int64_t{head} * kDim * stride + int64_t{tile} * kRows, stride,
             &a.tiles.scale[(int64_t{head} * a.k_tiles + tile) * 16 + 8]);
}

template <int kDim>
__global__ __launch_bounds__(kThreads) void SagePagesDeltaKernel(const __grid_constant__ SagePagesArgs a) {
  __shared__ alignas(16) float mean[kDim];
  const int index = int(blockIdx.y), kv_head = int(blockIdx.x);
  const SagePageTile tile = a.page_tiles[index];
  const SageSequence s = a.sequences[tile.sequence];
  const int q_tile = tile.sequence > 0 ? a.sequences[tile.sequence - 1].q_tile_end : 0;
  const int first = (s.keys - s.queries) / kRows, stride = SageDeltaTiles(s.keys);
  // Pages 2j and 2j + 1 are seen from q tile j + 1 on, page 2j alone from q tile j.
  const bool alone = tile.second < 0;
  const int j = index - (alone ? s.alone : s.pairs), skip = alone ? j - first : max(0, j + 1 - first);
  const int q_tiles = alone ? 1 : s.q_tile_end - q_tile - skip;
  Rows<kDim> rows;
  rows.Load(PageRows(a, a.k, tile, kv_head, kDim));
  LoadKeyMean(a, tile, kv_head, mean);
  MakeDelta<kDim, 2>(rows, mean, alone ? kPage : kRows,
                     a.tiles.scale + (int64_t{kv_head} * a.k_tiles + index) * 16, a.tiles,
                     {kv_head, a.heads / a.kv_heads, q_tile + skip, q_tiles, s.delta + skip * stride + j,
                      stride, a.q_tiles, a.delta_tiles});
}

template <int kDim>
Launch Run(const SagePagesArgs& a, Stream stream) {
  const dim3 grid(unsigned(a.heads + 2 * a.kv_heads),
                  unsigned(a.q_tiles > a.k_tiles ? a.q_tiles : a.k_tiles));
  if (a.tiles.delta == nullptr) {
    SagePagesKernel<kDim, false><<<grid, kThreads, 0, stream>>>(a);
    return Launched("SageAttention: codes of pages");
  }
  SagePagesKernel<kDim, true><<<grid, kThreads, 0, stream>>>(a);
  constexpr int kShared = DeltaShared(kDim);
  static const cudaError_t allowed = AllowShared(SagePagesDeltaKernel<kDim>, kShared);
  if (allowed != cudaSuccess) return {int(allowed), "SageAttention: shared memory"};
  SagePagesDeltaKernel<kDim>
      <<<dim3(unsigned(a.kv_heads), unsigned(a.k_tiles), unsigned(DeltaBlocks(a.kv_heads, a.k_tiles))),
         kThreads, kShared, stream>>>(a);
  return Launched("SageAttention: delta-S of pages");
}

}  // namespace

SageTiles SagePageTilesAt(int heads, int kv_heads, int head_dim, int q_tiles, int k_tiles, int delta_tiles,
                          void* base, size_t* bytes) {
  const auto aligned = [](size_t n) { return (n + 255) / 256 * 256; };
  const size_t q = size_t(heads) * size_t(q_tiles) * kRows, k = size_t(kv_heads) * size_t(k_tiles) * kRows;
  auto* at = static_cast<uint8_t*>(base);
  const auto take = [&at, aligned](size_t n) { return std::exchange(at, at + aligned(n)); };
  SageTiles t{};
  t.q = reinterpret_cast<int8_t*>(take(q * size_t(head_dim)));
  t.k = reinterpret_cast<int8_t*>(take(k * size_t(head_dim)));
  t.v = take(k * size_t(head_dim));
  t.q_scale = reinterpret_cast<float*>(take(q * 2 * sizeof(float)));
  t.scale = reinterpret_cast<float*>(take(size_t(kv_heads) * size_t(k_tiles) * 16 * sizeof(float)));
  if (delta_tiles > 0) {
    t.q_mean = reinterpret_cast<float*>(
        take(size_t(heads) * size_t(q_tiles) * 2 * size_t(head_dim) * sizeof(float)));
    t.delta = reinterpret_cast<float*>(take(size_t(heads) * size_t(delta_tiles) * 2 * kRows * sizeof(float)));
  }
  *bytes = size_t(at - static_cast<uint8_t*>(base));
  return t;
}

Launch SageQuantizePages(const SagePagesArgs& a, Stream stream) {
  if (a.head_dim != 64 && a.head_dim != 128) return Refused("sage: head_dim must be 64 or 128");
  return a.head_dim == 64 ? Run<64>(a, stream) : Run<128>(a, stream);
}

}  // namespace nibble::cuda
