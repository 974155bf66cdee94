// SPDX-License-Identifier: Apache-2.0
// Which tokens a block of SparQ has, where things lie in its shared memory, and how it reads rows of pages.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/sparq.h"

namespace nibble::cuda::sparq {

inline constexpr int kPage = kv::kPageTokens, kThreads = 512, kWarps = kThreads / 32;
inline constexpr int kHeads = 4;       // of a KV head's group, at a time
inline constexpr int kMostHeads = 16;  // of a group
inline constexpr int kBins = 2048, kCoarse = 128, kPerCoarse = kBins / kCoarse;
inline constexpr uint32_t kAll = 0xffffffffu;
inline constexpr float kNoScore = -1e30f;  // a maximum before any score; finite, so differences are defined
inline constexpr float kLog2e = 1.4426950408889634f;

struct Plan {      // of a launch, host side
  int heads;       // of a group, rounded up to kHeads
  int slots;       // pages of a block, at most
  int list;        // tokens that a block reads, at most
  float* outside;  // logits and keys of all blocks where shared memory is too small, else null
  bool mean;       // the mean of V stands for what is not read
  float scale;     // of the scores, for exp2
};

// What a block keeps; marked are those that the others read.
struct Shared {
  float* q;          // [heads, head_dim]
  float* ranker;     // [heads / 4, head_dim, 4] queries in the chosen channels, over the temperature
  float* out;        // others: [heads, head_dim] sums of attention over the block's tokens
  float* magnitude;  // [head_dim] sum over heads of |q|
  float* mean;       // [head_dim] sum of V over the row's tokens: the block's share of channels
  int* channels;     // [head_dim] by falling magnitude
  int* table;        // [slots]
  int* list;         // [list] chosen tokens, by index in the block
  uint32_t* counts;  // others: [2][kBins + kCoarse]
  uint32_t* coarse;  // [kWarps][kCoarse] what each block counted
  float2 *warp_peaks, *peaks;  // [kMostHeads][kWarps]; others: [kMostHeads] maximum, sum of exp2
  float2* ends;                // others: [kMostHeads] the same of attention
  float *level, *alpha;        // [kMostHeads] maximum + log2(sum) of all; others: weight of the list
  int* scalars;                // [32] results of one warp for all
  float* parts;                // [kWarps][kHeads][head_dim + 2], where the logits were
  float* logits;               // [group][slots * kPage]
  uint32_t* keys;              // [slots * kPage]
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

constexpr int LogitFloats(int group, int slots) { return (group + 1) * slots * kPage; }

// Returns the bytes of it all.
__host__ __device__ inline int Carve(Shared* s, char* base, const Plan& plan, int group, int dim) {
  Carver c{base};
  s->q = c.Take<float>(plan.heads * dim);
  s->ranker = c.Take<float>(plan.heads * dim);
  s->out = c.Take<float>(plan.heads * dim);
  s->magnitude = c.Take<float>(dim);
  s->mean = c.Take<float>(dim);
  s->channels = c.Take<int>(dim);
  s->table = c.Take<int>(plan.slots);
  s->list = c.Take<int>(plan.list);
  s->counts = c.Take<uint32_t>(2 * (kBins + kCoarse));
  s->coarse = c.Take<uint32_t>(kWarps * kCoarse);
  s->warp_peaks = c.Take<float2>(kMostHeads * kWarps);
  s->peaks = c.Take<float2>(kMostHeads);
  s->ends = c.Take<float2>(kMostHeads);
  s->level = c.Take<float>(kMostHeads);
  s->alpha = c.Take<float>(kMostHeads);
  s->scalars = c.Take<int>(32);
  const int parts = kWarps * kHeads * (dim + 2),
            logits = plan.outside != nullptr ? 0 : LogitFloats(group, plan.slots);
  s->parts = s->logits = c.Take<float>(parts > logits ? parts : logits);
  return c.bytes;
}

// One row and KV head, and this block's share of the tokens: pages `first_own`, `first_own` + blocks and so
// on, slot by slot. A token's index in the block is slot * kPage + its place in the page.
struct Row {
  int entry, head, rank, blocks, group, dim;
  int position, first;       // of the row, and the first position that it sees
  int own, first_page;       // the open page, and the first page with a token that is seen
  int first_own, slots;      // slots: pages of the block
  int64_t at;                // row among those of all entries
  bool present, all, opens;  // all: every token is read; opens: the last slot is the open page

  __device__ __forceinline__ explicit Row(const SparqDecodeArgs& args) {
    const DecodeArgs& a = args.cache;
    rank = ClusterRank(), blocks = ClusterBlocks();
    head = int(blockIdx.y), entry = int(blockIdx.z) / a.rows;
    group = a.heads / a.kv_heads, dim = a.head_dim;
    const int i = int(blockIdx.z) % a.rows, length = a.lengths[entry];
    const int64_t row0 = a.row_begin != nullptr ? a.row_begin[entry] : int64_t{entry} * a.rows;
    const int rows = a.row_begin != nullptr ? a.row_begin[entry + 1] - int(row0) : a.rows;
    present = length > 0 && i < rows;
    at = row0 + i;
    position = length - rows + i;
    first = a.window > 0 ? max(0, position - a.window + 1) : 0;
    own = position / kPage, first_page = first / kPage;
    first_own = first_page + (rank - first_page % blocks + blocks) % blocks;
    slots = first_own > own ? 0 : (own - first_own) / blocks + 1;
    opens = own % blocks == rank;
    all = position - first < args.sparq.k;
  }
  __device__ __forceinline__ int Tokens() const { return slots * kPage; }
  __device__ __forceinline__ int PositionOf(int token) const {
    return (first_own + token / kPage * blocks) * kPage + token % kPage;
  }
  __device__ __forceinline__ bool Sees(int at_position) const {
    return at_position >= first && at_position <= position;
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

// Channels d .. d + 3 of the block's token.
__device__ __forceinline__ float4 Channels(const DecodeArgs& a, const DecodeSide& side, const Row& row,
                                           const int* table, int token, int d) {
  const int slot = token / kPage;
  if (row.opens && slot == row.slots - 1)
    return RawChannels(OpenPage(a, side, row), RawIsBf16(side), row.dim, token % kPage, d);
  return SealedChannels(SealedPage(side, row, table[slot]), side.codec, row.dim, token % kPage, d);
}

}  // namespace nibble::cuda::sparq
