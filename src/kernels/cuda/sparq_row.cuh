// SPDX-License-Identifier: Apache-2.0
// What the two kernels of SparQ share: a row and KV head, and how rows of pages are read.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/sparq.h"

namespace nibble::cuda::sparq {

inline constexpr int kPage = kv::kPageTokens, kThreads = 256, kWarps = kThreads / 32;
inline constexpr int kHeads = 4;       // of a KV head's group, at a time
inline constexpr int kMostHeads = 16;  // of a group
inline constexpr int kMostBlocks = 16;
inline constexpr int kTilePages = 32;  // of a block that ranks
inline constexpr int kDealt = 8;       // neighbouring tokens that go to one block of those that select
inline constexpr uint32_t kAll = 0xffffffffu;
inline constexpr float kNoScore = -1e30f;  // a maximum before any score; finite, so differences are defined
inline constexpr float kLog2e = 1.4426950408889634f;

struct Plan {   // of both launches, host side
  int heads;    // of a group, rounded up to kHeads
  int tokens;   // of a row, at most
  int tiles;    // of a row, at most
  int share;    // tokens of a block that selects, at most
  int list;     // tokens that such a block reads, at most
  bool mean;    // the mean of V stands for what is not read
  float scale;  // of the scores, for exp2
  // Device memory between the launches, by row and KV head.
  float* logits;   // [group][tokens]
  float2* levels;  // [tiles][group] maximum and sum of exp2 relative to it
  uint32_t* keys;  // [blocks][share], where shared memory is too small; else null
};

struct Carver {
  char* base;
  int bytes = 0;
  template <class T>
  __host__ __device__ T* Take(int count) {
    T* at = reinterpret_cast<T*>(base + bytes);
    bytes += (count * int(sizeof(T)) + 15) / 16 * 16;
    return at;
  }
};

// One row and KV head.
struct Row {
  int entry, head, group, dim;
  int position, first;  // of the row, and the first position that it sees
  int own, first_page;  // the open page, and the first page with a token that is seen
  int64_t at;           // row among those of all entries
  int64_t index;        // of row and KV head in the memory between the launches
  bool present, all;    // all: every token is read

  __device__ __forceinline__ explicit Row(const SparqDecodeArgs& args) {
    const DecodeArgs& a = args.cache;
    head = int(blockIdx.y), entry = int(blockIdx.z) / a.rows;
    group = a.heads / a.kv_heads, dim = a.head_dim;
    index = int64_t{blockIdx.z} * a.kv_heads + head;
    const int i = int(blockIdx.z) % a.rows, length = a.lengths[entry];
    const int64_t row0 = a.row_begin != nullptr ? a.row_begin[entry] : int64_t{entry} * a.rows;
    const int rows = a.row_begin != nullptr ? a.row_begin[entry + 1] - int(row0) : a.rows;
    present = length > 0 && i < rows;
    at = row0 + i;
    position = length - rows + i;
    first = a.window > 0 ? max(0, position - a.window + 1) : 0;
    own = position / kPage, first_page = first / kPage;
    all = position - first < args.sparq.k;
  }
  __device__ __forceinline__ bool Sees(int at_position) const {
    return at_position >= first && at_position <= position;
  }
  __device__ __forceinline__ bool SeesPage(int page) const { return page >= first_page && page <= own; }
  __device__ __forceinline__ const float* Logits(const Plan& plan, int h) const {
    return plan.logits + (index * group + h) * plan.tokens;
  }
};

__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float Half(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
__device__ __forceinline__ float2 Pair(uint32_t bits, bool bf16) {
  if (bf16) return {__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u)};
  return __half22float2(*reinterpret_cast<const __half2*>(&bits));
}
template <class T>
__device__ __forceinline__ T Load(const std::byte* p) {
  return __ldg(reinterpret_cast<const T*>(p));
}

__device__ __forceinline__ bool RawIsBf16(const DecodeSide& side) { return side.codec == kv::CodecId::kBF16; }

__device__ __forceinline__ float4 RawChannels(const std::byte* page, bool bf16, int dim, int token, int d) {
  const uint2 x = Load<uint2>(page + (token * dim + d) * 2);
  const float2 a = Pair(x.x, bf16), b = Pair(x.y, bf16);
  return {a.x, a.y, b.x, b.y};
}

// Codes of `bits` bits of channels d .. d + 3, d a multiple of 4.
__device__ __forceinline__ float4 Codes(const std::byte* page, int bits, int dim, int token, int d) {
  const std::byte* at = page + (token * dim + d) * bits / 8;
  const uint32_t x = bits == 8 ? Load<uint32_t>(at) : bits == 4 ? Load<uint16_t>(at) : Load<uint8_t>(at);
  const uint32_t mask = (1u << bits) - 1;
  return {float(x & mask), float(x >> bits & mask), float(x >> 2 * bits & mask), float(x >> 3 * bits & mask)};
}

// Channels d .. d + 3 of a token of a sealed page. The codec is the same for all threads.
__device__ __forceinline__ float4 SealedChannels(const std::byte* page, kv::CodecId codec, int dim, int token,
                                                 int d) {
  using kv::CodecId;
  if (codec == CodecId::kF16 || codec == CodecId::kBF16)
    return RawChannels(page, codec == CodecId::kBF16, dim, token, d);
  const int bits = codec == CodecId::kInt8Token                                 ? 8
                   : codec == CodecId::kInt4Token || codec == CodecId::kFlashQ4 ? 4
                                                                                : 2;
  const float4 x = Codes(page, bits, dim, token, d);
  const std::byte* params = page + kPage * dim * bits / 8;
  if (codec == CodecId::kInt8Token || codec == CodecId::kInt4Token) {
    const float scale = Half(Load<uint16_t>(params + 2 * token)),
                least = Half(Load<uint16_t>(params + 2 * (kPage + token)));
    return {fmaf(x.x, scale, least), fmaf(x.y, scale, least), fmaf(x.z, scale, least),
            fmaf(x.w, scale, least)};
  }
  const uchar4 step = Load<uchar4>(params + d);
  const char4 base = Load<char4>(params + dim + d);
  const float scale = Load<float>(params + 2 * dim);
  if (codec == CodecId::kFlashQ4)  // the base counts steps
    return {(x.x + base.x) * step.x * scale, (x.y + base.y) * step.y * scale, (x.z + base.z) * step.z * scale,
            (x.w + base.w) * step.w * scale};
  return {(x.x * step.x + base.x) * scale, (x.y * step.y + base.y) * scale, (x.z * step.z + base.z) * scale,
          (x.w * step.w + base.w) * scale};
}

__device__ __forceinline__ const std::byte* OpenPage(const DecodeArgs& a, const DecodeSide& side,
                                                     const Row& row) {
  const int64_t index = a.open_index != nullptr ? a.open_index[row.entry] : row.entry;
  return side.open + index * side.open_stride + row.head * side.open_head_stride;
}
__device__ __forceinline__ const std::byte* SealedPage(const DecodeSide& side, const Row& row, int page) {
  return side.pool + int64_t{page} * side.page_stride + row.head * side.head_stride;
}

// Channels d .. d + 3 of the token at a position. table: of the row's entry.
__device__ __forceinline__ float4 Channels(const DecodeArgs& a, const DecodeSide& side, const Row& row,
                                           const int32_t* table, int position, int d) {
  const int page = position / kPage;
  if (page == row.own)
    return RawChannels(OpenPage(a, side, row), RawIsBf16(side), row.dim, position % kPage, d);
  return SealedChannels(SealedPage(side, row, __ldg(table + page)), side.codec, row.dim, position % kPage, d);
}

__device__ __forceinline__ float SumOfWarp(float x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kAll, x, lanes);
  return x;
}

// Maximum and sum of exp2 relative to it, of two sets.
__device__ __forceinline__ float2 Joined(float2 a, float2 b) {
  const float max = fmaxf(a.x, b.x);
  return {max, a.y * Exp2(a.x - max) + b.y * Exp2(b.x - max)};
}
__device__ __forceinline__ float2 JoinedLanes(float2 x) {
#pragma unroll 1
  for (int step = 16; step > 0; step /= 2)
    x = Joined(x, {__shfl_down_sync(kAll, x.x, step), __shfl_down_sync(kAll, x.y, step)});
  return x;  // of lane 0
}

// A kernel that may start before the one ahead of it has ended waits here for what that one wrote.
__device__ __forceinline__ void WaitForRanking() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  WaitForPreviousKernel();
#endif
}
__device__ __forceinline__ void LetSelectionStart() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace nibble::cuda::sparq
