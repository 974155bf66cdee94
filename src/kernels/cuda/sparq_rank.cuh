// SPDX-License-Identifier: Apache-2.0
// Steps 1 and 2 of SparQ: the channels in which the queries are largest give every token a logit for each
// head of the group, and the logits of all blocks one level a head: maximum + log2 of the sum of exp2.
#pragma once
#include "kernels/cuda/sparq_row.cuh"

namespace nibble::cuda::sparq {

inline constexpr int kBatch = 8;      // channels of a copy whose loads are under way together
inline constexpr int kOpenBatch = 4;  // the same of an open row, for each of eight lanes

__device__ __forceinline__ float SumOfWarp(float x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kAll, x, lanes);
  return x;
}

// Fills channels: all of them by falling sum of |q|, of equal ones the lower first. Four lanes a channel
// count those before it.
__device__ __forceinline__ void OrderChannels(const Row& row, const Shared& s) {
#pragma unroll 1
  for (int d = int(threadIdx.x); d < row.dim; d += kThreads) {
    float sum = 0;
#pragma unroll 1
    for (int h = 0; h < row.group; ++h) sum += fabsf(s.q[h * row.dim + d]);
    s.magnitude[d] = sum;
  }
  __syncthreads();
  for (int d = int(threadIdx.x) / 4; d < row.dim; d += kThreads / 4) {
    const float mine = s.magnitude[d];
    int before = 0;
#pragma unroll 8
    for (int i = int(threadIdx.x) % 4; i < row.dim; i += 4)
      before += s.magnitude[i] > mine || (s.magnitude[i] == mine && i < d);
    before += __shfl_xor_sync(kAll, before, 1);
    before += __shfl_xor_sync(kAll, before, 2);
    if (threadIdx.x % 4 == 0) s.channels[before] = d;
  }
  __syncthreads();
}

// F-S1: the least multiple of 8, at most r, whose channels hold the share rho of the magnitude.
__device__ __forceinline__ int AdaptiveR(const Row& row, const Shared& s, const SparqParams& p) {
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
__device__ __forceinline__ void ChooseQueries(const Row& row, const Shared& s, const Plan& plan, int r) {
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
#pragma unroll 1
    for (int i = lane; i < padded; i += 32)
      s.ranker[(h / kHeads * row.dim + i) * kHeads + h % kHeads] =
          i < r ? q[s.channels[i]] / tau * kLog2e : 0.0f;
  }
  __syncthreads();
  if (int(threadIdx.x) < padded - r) s.channels[r + int(threadIdx.x)] = s.channels[r - 1];
  __syncthreads();
}

// Four keys of a channel's row of a copy.
template <KeyCopy F>
struct CopyOf;
template <>
struct CopyOf<KeyCopy::kF16> {
  using Word = uint2;
  static constexpr int kBias = 0;
  __device__ static __forceinline__ void Unpack(Word w, float (&k)[4]) {
    const float2 a = Pair(w.x, false), b = Pair(w.y, false);
    k[0] = a.x, k[1] = a.y, k[2] = b.x, k[3] = b.y;
  }
};
template <>
struct CopyOf<KeyCopy::kInt8> {
  using Word = uint32_t;
  static constexpr int kBias = 128;
  __device__ static __forceinline__ void Unpack(Word w, float (&k)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) k[i] = float(w >> 8 * i & 255);
  }
};
template <>
struct CopyOf<KeyCopy::kInt4> {
  using Word = uint16_t;
  static constexpr int kBias = 8;
  __device__ static __forceinline__ void Unpack(Word w, float (&k)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) k[i] = float(w >> 4 * i & 15);
  }
};

// Logits of the sealed pages. A warp takes two pages at a time, a lane four neighbouring tokens of one.
template <KeyCopy F>
__device__ __forceinline__ void RankSealed(const SparqDecodeArgs& a, const Row& row, const Shared& s,
                                           int heads, int r) {
  using Copy = CopyOf<F>;
  constexpr int kWordBytes = int(sizeof(typename Copy::Word)), kRowBytes = kPage / 4 * kWordBytes;
  const int lane = int(threadIdx.x % 32), sealed = row.slots - row.opens, token = lane % 16 * 4;
#pragma unroll 1
  for (int pair = int(threadIdx.x / 32); 2 * pair < sealed; pair += kWarps) {
    const int slot = min(2 * pair + lane / 16, sealed - 1);
    const std::byte* copy =
        a.records + int64_t{s.table[slot]} * a.record_stride + row.head * a.record_head_stride + a.k_copy;
    const std::byte* codes = copy + lane % 16 * kWordBytes;
    const std::byte* scales = copy + row.dim * kRowBytes + token / 32 * 2;
#pragma unroll 1
    for (int h0 = 0; h0 < heads; h0 += kHeads) {
      const float* ranker = s.ranker + h0 * row.dim;
      float logit[kHeads][4] = {};
#pragma unroll 1
      for (int i0 = 0; i0 < r; i0 += kBatch) {
        typename Copy::Word word[kBatch];
        uint16_t scale[kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          const int channel = s.channels[i0 + i];
          word[i] = Load<typename Copy::Word>(codes + channel * kRowBytes);
          if constexpr (F != KeyCopy::kF16) scale[i] = Load<uint16_t>(scales + channel * 4);
        }
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          const float4 q = *reinterpret_cast<const float4*>(ranker + (i0 + i) * kHeads);
          float k[4];
          Copy::Unpack(word[i], k);
#pragma unroll
          for (int t = 0; t < 4; ++t) {
            if constexpr (F != KeyCopy::kF16) k[t] = (k[t] - float(Copy::kBias)) * Half(scale[i]);
            logit[0][t] = fmaf(q.x, k[t], logit[0][t]);
            logit[1][t] = fmaf(q.y, k[t], logit[1][t]);
            logit[2][t] = fmaf(q.z, k[t], logit[2][t]);
            logit[3][t] = fmaf(q.w, k[t], logit[3][t]);
          }
        }
      }
#pragma unroll
      for (int e = 0; e < kHeads; ++e)
        if (h0 + e < row.group && 2 * pair + lane / 16 < sealed)
          *reinterpret_cast<float4*>(s.logits + (h0 + e) * row.Tokens() + slot * kPage + token) =
              float4{logit[e][0], logit[e][1], logit[e][2], logit[e][3]};
    }
  }
}

// Logits of the open page, from its raw rows: eight lanes a token.
__device__ __forceinline__ void RankOpen(const DecodeArgs& a, const Row& row, const Shared& s, int heads,
                                         int r) {
  if (!row.opens) return;
  const int token = int(threadIdx.x) / 8, lane = int(threadIdx.x) % 8;
  const bool bf16 = RawIsBf16(a.k), seen = token <= row.position % kPage;
  const std::byte* keys = OpenPage(a, a.k, row) + token * row.dim * 2;
#pragma unroll 1
  for (int h0 = 0; h0 < heads; h0 += kHeads) {
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
      if (lane == 0 && h0 + e < row.group)
        s.logits[(h0 + e) * row.Tokens() + (row.slots - 1) * kPage + token] = logit[e];
    }
  }
}

// Maximum and sum of exp2 relative to it, of two sets.
__device__ __forceinline__ float2 Joined(float2 a, float2 b) {
  const float max = fmaxf(a.x, b.x);
  return {max, a.y * Exp2(a.x - max) + b.y * Exp2(b.x - max)};
}
__device__ __forceinline__ float2 JoinedLanes(float2 x, int lanes) {
#pragma unroll 1
  for (int step = lanes / 2; step > 0; step /= 2)
    x = Joined(x, {__shfl_down_sync(kAll, x.x, step), __shfl_down_sync(kAll, x.y, step)});
  return x;  // of lane 0
}

// The level of each head over the tokens of all blocks. Ends with a barrier.
__device__ __forceinline__ void FindLevels(const Row& row, const Shared& s) {
  const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32), tokens = row.Tokens();
#pragma unroll 1
  for (int h = 0; h < row.group; ++h) {
    const float* logits = s.logits + h * tokens;
    float2 peak = {kNoScore, 0};
#pragma unroll 1
    for (int t = int(threadIdx.x); t < tokens; t += kThreads)
      if (row.Sees(row.PositionOf(t))) peak.x = fmaxf(peak.x, logits[t]);
#pragma unroll 1
    for (int t = int(threadIdx.x); t < tokens; t += kThreads)
      if (row.Sees(row.PositionOf(t))) peak.y += Exp2(logits[t] - peak.x);
    peak = JoinedLanes(peak, 32);
    if (lane == 0) s.warp_peaks[h * kWarps + warp] = peak;
  }
  __syncthreads();
  if (warp < row.group) {
    const float2 mine = lane < kWarps ? s.warp_peaks[warp * kWarps + lane] : float2{kNoScore, 0};
    const float2 peak = JoinedLanes(mine, 32);
    if (lane == 0) s.peaks[warp] = peak;
  }
  ClusterSync();
  if (warp < row.group) {
    const float2 mine = lane < row.blocks ? *OfBlock(s.peaks + warp, lane) : float2{kNoScore, 0};
    const float2 peak = JoinedLanes(mine, 32);
    if (lane == 0) s.level[warp] = peak.x + log2f(peak.y);
  }
  __syncthreads();
}

}  // namespace nibble::cuda::sparq
