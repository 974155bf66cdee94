// SPDX-License-Identifier: Apache-2.0
// The first launch of SparQ, steps 1 and 2: the channels in which the queries are largest give every token a
// logit for each head of the group, and each head a level in every tile of pages: the maximum and the sum of
// exp2 relative to it. A block does a tile of a row and KV head; a lane eight neighbouring tokens.
#pragma once
#include "kernels/cuda/sparq_row.cuh"

namespace nibble::cuda::sparq {

inline constexpr int kBatch = 16;     // channels of a copy whose loads are under way together
inline constexpr int kOpenBatch = 4;  // the same of an open row, for each of eight lanes

struct RankShared {
  float* q;          // [heads, head_dim]
  float* ranker;     // [heads / 4, head_dim, 4] queries in the chosen channels, over the temperature
  float* magnitude;  // [head_dim] sum over heads of |q|
  int* channels;     // [head_dim + 32] by falling magnitude
  __half2* operand;  // of f16 copies: the queries for the tensor cores
  float* factor;     // [kMostHeads] what a product of queries and keys is multiplied by
  float* open;       // [heads][kPage] logits of the open page
  float2* levels;    // [heads][kWarps]
};

// Returns the bytes of it all.
__host__ __device__ inline int Carve(RankShared* s, char* base, int heads, int dim) {
  Carver c{base};
  s->q = c.Take<float>(heads * dim);
  s->ranker = c.Take<float>(heads * dim);
  s->magnitude = c.Take<float>(dim);
  s->channels = c.Take<int>(dim + 32);
  s->operand = c.Take<__half2>((dim + 31) / 32 * kMostHeads * 16);
  s->factor = c.Take<float>(kMostHeads);
  s->open = c.Take<float>(heads * kPage);
  s->levels = c.Take<float2>(heads * kWarps);
  return c.bytes;
}

// Fills channels: all of them by falling sum of |q|, of equal ones the lower first. Two lanes a channel count
// those before it.
__device__ __forceinline__ void OrderChannels(const Row& row, const RankShared& s) {
#pragma unroll 1
  for (int d = int(threadIdx.x); d < row.dim; d += kThreads) {
    float sum = 0;
#pragma unroll 4
    for (int h = 0; h < row.group; ++h) sum += fabsf(s.q[h * row.dim + d]);
    s.magnitude[d] = sum;
  }
  __syncthreads();
#pragma unroll 1
  for (int d = int(threadIdx.x) / 2; d < row.dim; d += kThreads / 2) {
    const int mine = __float_as_int(s.magnitude[d]);  // not negative: integers order as the floats do
    int before = 0;
#pragma unroll 4
    for (int i = int(threadIdx.x) % 2 * 4; i < row.dim; i += 8) {
      const int4 four = *reinterpret_cast<const int4*>(s.magnitude + i);
      const int x[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int e = 0; e < 4; ++e) before += x[e] + int(i + e < d) > mine;
    }
    before += __shfl_xor_sync(kAll, before, 1);
    if (threadIdx.x % 2 == 0) s.channels[before] = d;
  }
  __syncthreads();
}

// F-S1: the least multiple of 8, at most r, whose channels hold the share rho of the magnitude.
__device__ __forceinline__ int AdaptiveR(const Row& row, const RankShared& s, const SparqParams& p) {
  if (p.rho <= 0) return p.r;
  float total = 0, held = 0;
#pragma unroll 1
  for (int d = 0; d < row.dim; ++d) total += s.magnitude[d];
#pragma unroll 1
  for (int i = 0; i < p.r; ++i) {
    if (i > 0 && i % 8 == 0 && held >= p.rho * total) return i;
    held += s.magnitude[s.channels[i]];
  }
  return p.r;
}

// The queries in the first r channels, over the temperature of each head and for exp2; zeros up to a whole
// batch, for which the last channel stands again. A warp a head.
__device__ __forceinline__ void ChooseQueries(const Row& row, const RankShared& s, const Plan& plan, int r) {
  const int lane = int(threadIdx.x % 32), padded = (r + kBatch - 1) / kBatch * kBatch;
#pragma unroll 1
  for (int h = int(threadIdx.x / 32); h < plan.heads; h += kWarps) {
    const float* q = s.q + h * row.dim;
    float total = 0, held = 0;
#pragma unroll 1
    for (int d = lane; d < row.dim; d += 32) total += fabsf(q[d]);
#pragma unroll 1
    for (int i = lane; i < r; i += 32) held += fabsf(q[s.channels[i]]);
    total = SumOfWarp(total), held = SumOfWarp(held);
    const float tau = sqrtf(held > 0 ? float(row.dim) * held / total : float(row.dim));
    if (lane == 0) s.factor[h] = kLog2e / tau;
#pragma unroll 1
    for (int i = lane; i < padded; i += 32)
      s.ranker[(h / kHeads * row.dim + i) * kHeads + h % kHeads] =
          i < r ? q[s.channels[i]] / tau * kLog2e : 0.0f;
  }
  __syncthreads();
  if (int(threadIdx.x) < padded - r) s.channels[r + int(threadIdx.x)] = s.channels[r - 1];
  __syncthreads();
}

// Eight keys of a channel's row of a copy.
template <KeyCopy F>
struct CopyOf;
template <>
struct CopyOf<KeyCopy::kInt8> {
  using Word = uint2;
  static constexpr int kBias = 128;
  __device__ static __forceinline__ void Unpack(Word w, float (&k)[8]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) k[i] = float(w.x >> 8 * i & 255), k[4 + i] = float(w.y >> 8 * i & 255);
  }
};
template <>
struct CopyOf<KeyCopy::kInt4> {
  using Word = uint32_t;
  static constexpr int kBias = 8;
  __device__ static __forceinline__ void Unpack(Word w, float (&k)[8]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) k[i] = float(w >> 4 * i & 15);
  }
};

// Where a lane reads the copy of its page, and which of its eight tokens are seen.
struct LaneTokens {
  int page, first;  // first: position of the first token
  bool sealed;
  const std::byte* copy;
  __device__ __forceinline__ LaneTokens(const SparqDecodeArgs& a, const Row& row) {
    const int lane = int(threadIdx.x % 32);
    page = int(blockIdx.x) * kTilePages + int(threadIdx.x / 32) * 4 + lane / 8;
    first = page * kPage + lane % 8 * 8;
    sealed = row.SeesPage(page) && page < row.own;
    const int at = sealed ? a.cache.page_table[int64_t{row.entry} * a.cache.max_pages + page] : 0;
    copy = a.records + int64_t{at} * a.record_stride + row.head * a.record_head_stride + a.k_copy;
  }
};

// Logits of a lane's tokens of a sealed page for heads h0 .. h0 + 3.
template <KeyCopy F>
__device__ __forceinline__ void RankSealed(const Row& row, const RankShared& s, const LaneTokens& tokens,
                                           int h0, int r, float (&logit)[kHeads][8]) {
  using Copy = CopyOf<F>;
  constexpr int kWordBytes = int(sizeof(typename Copy::Word)), kRowBytes = kPage / 8 * kWordBytes;
  const int lane = int(threadIdx.x % 32);
  const std::byte* codes = tokens.copy + lane % 8 * kWordBytes;
  const std::byte* scales = tokens.copy + row.dim * kRowBytes + lane % 8 / 4 * 2;
  const float* ranker = s.ranker + h0 * row.dim;
#pragma unroll 1
  for (int i0 = 0; i0 < r; i0 += kBatch) {
    typename Copy::Word word[kBatch];
    uint16_t scale[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int channel = s.channels[i0 + i];
      word[i] = Load<typename Copy::Word>(codes + channel * kRowBytes);
      scale[i] = Load<uint16_t>(scales + channel * 4);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const float4 four = *reinterpret_cast<const float4*>(ranker + (i0 + i) * kHeads);
      float q[kHeads] = {four.x, four.y, four.z, four.w}, k[8];
      Copy::Unpack(word[i], k);
#pragma unroll
      for (int t = 0; t < 8; ++t) k[t] -= float(Copy::kBias);
#pragma unroll
      for (int e = 0; e < kHeads; ++e) q[e] *= Half(scale[i]);
#pragma unroll
      for (int e = 0; e < kHeads; ++e)
#pragma unroll
        for (int t = 0; t < 8; ++t) logit[e][t] = fmaf(q[e], k[t], logit[e][t]);
    }
  }
}

// Logits of the open page, from its raw rows: eight lanes a token.
__device__ __forceinline__ void RankOpen(const DecodeArgs& a, const Row& row, const RankShared& s, int heads,
                                         int r) {
  const int lane = int(threadIdx.x) % 8;
  const bool bf16 = RawIsBf16(a.k);
#pragma unroll 1
  for (int i = int(threadIdx.x) / 8; i < kPage * heads / kHeads; i += kThreads / 8) {
    const int token = i % kPage, h0 = i / kPage * kHeads;
    const bool seen = token <= row.position % kPage;
    const std::byte* keys = OpenPage(a, a.k, row) + token * row.dim * 2;
    float logit[kHeads] = {};
#pragma unroll 1
    for (int i0 = lane; i0 < r; i0 += 8 * kOpenBatch) {
      uint16_t bits[kOpenBatch];
#pragma unroll
      for (int j = 0; j < kOpenBatch; ++j)
        bits[j] = seen && i0 + 8 * j < r ? Load<uint16_t>(keys + s.channels[i0 + 8 * j] * 2) : 0;
#pragma unroll
      for (int j = 0; j < kOpenBatch; ++j) {
        if (i0 + 8 * j >= r) continue;
        const float4 q = *reinterpret_cast<const float4*>(s.ranker + h0 * row.dim + (i0 + 8 * j) * kHeads);
        const float k = Pair(bits[j], bf16).x;
        logit[0] = fmaf(q.x, k, logit[0]), logit[1] = fmaf(q.y, k, logit[1]);
        logit[2] = fmaf(q.z, k, logit[2]), logit[3] = fmaf(q.w, k, logit[3]);
      }
    }
#pragma unroll
    for (int e = 0; e < kHeads; ++e) {
#pragma unroll
      for (int lanes = 4; lanes > 0; lanes /= 2) logit[e] += __shfl_xor_sync(kAll, logit[e], lanes);
      if (lane == 0) s.open[(h0 + e) * kPage + token] = logit[e];
    }
  }
  __syncthreads();
}

// Keeps a lane's logits of a head and the level of its warp.
__device__ __forceinline__ void KeepLogits(const Plan& plan, const Row& row, const RankShared& s,
                                           const LaneTokens& tokens, int h, const float (&logit)[8]) {
  if (row.SeesPage(tokens.page)) {
    float4* to =
        reinterpret_cast<float4*>(plan.logits + (row.index * row.group + h) * plan.tokens + tokens.first);
    to[0] = {logit[0], logit[1], logit[2], logit[3]};
    to[1] = {logit[4], logit[5], logit[6], logit[7]};
  }
  float max = kNoScore, sum = 0;
#pragma unroll
  for (int t = 0; t < 8; ++t)
    if (row.Sees(tokens.first + t)) max = fmaxf(max, logit[t]);
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) max = fmaxf(max, __shfl_xor_sync(kAll, max, lanes));
#pragma unroll
  for (int t = 0; t < 8; ++t)
    if (row.Sees(tokens.first + t)) sum += Exp2(logit[t] - max);
  sum = SumOfWarp(sum);
  if (threadIdx.x % 32 == 0) s.levels[h * kWarps + threadIdx.x / 32] = {max, sum};
}

template <KeyCopy F>
__device__ __forceinline__ void RankTile(const SparqDecodeArgs& a, const Plan& plan, const Row& row,
                                         const RankShared& s, const LaneTokens& tokens, int r) {
#pragma unroll 1
  for (int h0 = 0; h0 < row.group; h0 += kHeads) {
    float logit[kHeads][8] = {};
    if (tokens.sealed) RankSealed<F>(row, s, tokens, h0, r, logit);
    __syncwarp();
#pragma unroll
    for (int e = 0; e < kHeads; ++e) {
      if (h0 + e >= row.group) continue;
      if (tokens.page == row.own) {
        const float4* open =
            reinterpret_cast<const float4*>(s.open + (h0 + e) * kPage + tokens.first % kPage);
        const float4 x = open[0], y = open[1];
        logit[e][0] = x.x, logit[e][1] = x.y, logit[e][2] = x.z, logit[e][3] = x.w;
        logit[e][4] = y.x, logit[e][5] = y.y, logit[e][6] = y.z, logit[e][7] = y.w;
      }
      KeepLogits(plan, row, s, tokens, h0 + e, logit[e]);
    }
  }
}

// The level of each head over the tile.
__device__ __forceinline__ void KeepLevels(const Plan& plan, const Row& row, const RankShared& s) {
  __syncthreads();
  if (int(threadIdx.x) >= row.group) return;
  float2 level = s.levels[threadIdx.x * kWarps];
#pragma unroll 1
  for (int w = 1; w < kWarps; ++w) level = Joined(level, s.levels[threadIdx.x * kWarps + w]);
  plan.levels[(row.index * plan.tiles + blockIdx.x) * row.group + threadIdx.x] = level;
}

}  // namespace nibble::cuda::sparq
