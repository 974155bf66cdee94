// SPDX-License-Identifier: Apache-2.0
// The k tokens with the greatest scores among those of all blocks, exactly, of equal scores the first: the
// k-th greatest of (score, position) is found digit by digit, as soon as no more digits are needed.
#pragma once
#include "kernels/cuda/sparq_rank.cuh"

namespace nibble::cuda::sparq {

inline constexpr int kPositionBits = 22, kOrderBits = 32 + kPositionBits;
inline constexpr uint32_t kNeverKey = 0, kForcedKey = 0xffffffffu;

// A key that grows with x.
__device__ __forceinline__ uint32_t OrderKey(float x) {
  const uint32_t u = __float_as_uint(x + 0.0f);  // -0 becomes +0: they are equal
  return u ^ (u >> 31 != 0 ? 0xffffffffu : 0x80000000u);
}

// Scores of the block's tokens as keys: the newest `local` and the first `sinks` are above all others.
__device__ __forceinline__ void MakeKeys(const Row& row, const Shared& s, const SparqParams& p) {
  const int local = p.local < 0 ? p.k / 4 : p.local, tokens = row.Tokens();
#pragma unroll 1
  for (int t = int(threadIdx.x); t < tokens; t += kThreads) {
    const int position = row.PositionOf(t);
    float score = 0;
#pragma unroll 1
    for (int h = 0; h < row.group; ++h) {
      const float logit = s.logits[h * tokens + t];
      score += p.rank_logits ? logit : Exp2(logit - s.level[h]);
    }
    uint32_t key = OrderKey(score);
    if (position > row.position - local || position < p.sinks) key = kForcedKey;
    s.keys[t] = row.Sees(position) ? key : kNeverKey;
  }
  __syncthreads();
}

struct Threshold {  // taken are tokens with order >> shift >= least
  uint64_t least = 0;
  int shift = kOrderBits;
  __device__ __forceinline__ bool Takes(uint64_t order) const { return order >> shift >= least; }
};

__device__ __forceinline__ uint64_t Order(const Row& row, const Shared& s, int token) {
  return uint64_t{s.keys[token]} << kPositionBits |
         uint32_t((1 << kPositionBits) - 1 - row.PositionOf(token));
}

struct Digit {
  int value, above, inside;  // tokens with a greater digit, with this one
};

// The greatest digit at which, counted from above, `wanted` tokens are reached; counts[lane] are those of
// digit `lane` of a warp's 32.
__device__ __forceinline__ Digit FromAbove(int count, int wanted) {
  int total = count;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int more = __shfl_down_sync(kAll, total, step);
    if (int(threadIdx.x % 32) + step < 32) total += more;
  }
  const int lane = 31 - __clz(int(__ballot_sync(kAll, total >= wanted)));
  return {lane, __shfl_sync(kAll, total - count, lane), __shfl_sync(kAll, count, lane)};
}

// What all blocks counted in the coarse digits, to this block's memory: a warp reads one block's.
__device__ __forceinline__ void GatherCoarse(const Row& row, const Shared& s, const uint32_t* counts) {
  const int b = int(threadIdx.x / 32), lane = int(threadIdx.x % 32);
  uint4 x = {0, 0, 0, 0};
  if (b < row.blocks) x = *(reinterpret_cast<const uint4*>(OfBlock(counts + kBins, b)) + lane);
  reinterpret_cast<uint4*>(s.coarse)[threadIdx.x] = x;
  __syncthreads();
}

// By one warp, from the counts of all blocks: the group of 4 coarse digits, the coarse digit, the digit.
__device__ __forceinline__ Digit FindDigit(const Row& row, const Shared& s, const uint32_t* counts,
                                           int wanted) {
  const int lane = int(threadIdx.x % 32);
  uint4 four = {0, 0, 0, 0};
#pragma unroll 4
  for (int b = 0; b < kWarps; ++b) {
    const uint4 x = reinterpret_cast<const uint4*>(s.coarse)[b * 32 + lane];
    four.x += x.x, four.y += x.y, four.z += x.z, four.w += x.w;
  }
  const Digit group = FromAbove(int(four.x + four.y + four.z + four.w), wanted);
  wanted -= group.above;
  const uint32_t parts[4] = {__shfl_sync(kAll, four.x, group.value), __shfl_sync(kAll, four.y, group.value),
                             __shfl_sync(kAll, four.z, group.value), __shfl_sync(kAll, four.w, group.value)};
  const Digit coarse = FromAbove(int(lane == 0   ? parts[0]
                                     : lane == 1 ? parts[1]
                                     : lane == 2 ? parts[2]
                                     : lane == 3 ? parts[3]
                                                 : 0),
                                 wanted);
  wanted -= coarse.above;
  // A lane reads one digit of every other block; all loads are under way at once.
  const int first = (group.value * 4 + coarse.value) * kPerCoarse;
  uint32_t part[8];
#pragma unroll
  for (int i = 0; i < 8; ++i)
    part[i] = *OfBlock(counts + first + lane % kPerCoarse, min(2 * i + lane / kPerCoarse, row.blocks - 1));
  int count = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) count += 2 * i + lane / kPerCoarse < row.blocks ? int(part[i]) : 0;
  count += __shfl_xor_sync(kAll, count, kPerCoarse);
  const Digit fine = FromAbove(lane < kPerCoarse ? count : 0, wanted);
  return {first + fine.value, group.above + coarse.above + fine.above, fine.inside};
}

// Counts digits [shift, shift + 11) of the block's tokens that are as the threshold says so far.
__device__ __forceinline__ void CountDigits(const Row& row, const Shared& s, const Threshold& t, int shift,
                                            uint32_t mask, uint32_t* counts) {
#pragma unroll 1
  for (int i = int(threadIdx.x); i < (kBins + kCoarse) / 4; i += kThreads)
    reinterpret_cast<uint4*>(counts)[i] = uint4{0, 0, 0, 0};
  __syncthreads();
#pragma unroll 1
  for (int i = int(threadIdx.x); i < row.Tokens(); i += kThreads) {
    const uint64_t order = Order(row, s, i);
    if (order >> t.shift == t.least) atomicAdd(counts + (uint32_t(order >> shift) & mask), 1u);
  }
  __syncthreads();
  if (threadIdx.x < kCoarse) {
    uint32_t sum = 0;
#pragma unroll
    for (int i = 0; i < kPerCoarse; i += 4) {
      const uint4 x = *reinterpret_cast<const uint4*>(counts + threadIdx.x * kPerCoarse + i);
      sum += x.x + x.y + x.z + x.w;
    }
    counts[kBins + threadIdx.x] = sum;
  }
}

__device__ __forceinline__ Threshold FindThreshold(const Row& row, const Shared& s, int k) {
  constexpr int kShift[] = {43, 32, 22, 11, 0};
  Threshold t;
#pragma unroll 1
  for (int digit = 0; digit < 5; ++digit) {
    // The others may still read the counts of the digit before, not those of the one before that.
    uint32_t* counts = s.counts + digit % 2 * (kBins + kCoarse);
    const int shift = kShift[digit], bits = t.shift - shift;
    CountDigits(row, s, t, shift, (1u << bits) - 1, counts);
    ClusterSync();
    GatherCoarse(row, s, counts);
    if (threadIdx.x < 32) {
      const Digit found = FindDigit(row, s, counts, k);
      if (threadIdx.x == 0)
        s.scalars[0] = found.value, s.scalars[1] = found.above, s.scalars[2] = found.inside;
    }
    __syncthreads();
    t.least = t.least << bits | uint32_t(s.scalars[0]);
    t.shift = shift;
    k -= s.scalars[1];
    if (s.scalars[2] == k) break;  // all of them
  }
  return t;
}

// Lists the block's tokens that are taken, or seen where all are, in order; returns how many. A thread looks
// at neighbouring tokens.
__device__ __forceinline__ int ListTokens(const Row& row, const Shared& s, const Threshold& t) {
  const int each = (row.Tokens() + kThreads - 1) / kThreads, lane = int(threadIdx.x % 32);
  const int begin = min(int(threadIdx.x) * each, row.Tokens()), end = min(begin + each, row.Tokens());
  const auto taken = [&](int i) { return row.all ? row.Sees(row.PositionOf(i)) : t.Takes(Order(row, s, i)); };
  int count = 0;
#pragma unroll 1
  for (int i = begin; i < end; ++i) count += taken(i);
  int before = count;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int less = __shfl_up_sync(kAll, before, step);
    if (lane >= step) before += less;
  }
  if (lane == 31) s.scalars[8 + threadIdx.x / 32] = before;
  __syncthreads();
  int total = 0, at = before - count;
#pragma unroll 1
  for (int w = 0; w < kWarps; ++w) {
    if (w < int(threadIdx.x / 32)) at += s.scalars[8 + w];
    total += s.scalars[8 + w];
  }
#pragma unroll 1
  for (int i = begin; i < end; ++i)
    if (taken(i)) s.list[at++] = i;
  __syncthreads();
  return total;
}

// Bits of the tokens that are read; a warp a page.
__device__ __forceinline__ void WriteChosen(const SparqDecodeArgs& a, const Row& row, const Shared& s,
                                            int count) {
#pragma unroll 1
  for (int slot = int(threadIdx.x / 32); slot < row.slots; slot += kWarps) {
    const int lane = int(threadIdx.x % 32);
    uint32_t words[2] = {0, 0};
    for (int i = lane; i < count; i += 32) {
      const int token = s.list[i] - slot * kPage;
      if (token >= 0 && token < kPage) words[token / 32] |= 1u << token % 32;
    }
    for (int w = 0; w < 2; ++w) {
      const uint32_t bits = __reduce_or_sync(kAll, words[w]);
      const int word = (row.first_own + slot * row.blocks) * 2 + w;
      if (lane == 0 && word < a.chosen_words)
        a.chosen[(row.at * a.cache.kv_heads + row.head) * a.chosen_words + word] = bits;
    }
  }
}

}  // namespace nibble::cuda::sparq
