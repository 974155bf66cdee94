// SPDX-License-Identifier: Apache-2.0
// The second launch of SparQ, first half: the k tokens with the greatest scores among those of all blocks of
// a cluster, exactly, of equal scores the first. Bins of the scores show where the k-th greatest lies, and
// the few tokens of its bin are compared with each other; if they are many, it is found digit by digit.
#pragma once
#include "kernels/cuda/sparq_row.cuh"

namespace nibble::cuda::sparq {

inline constexpr int kBins = 2048, kCoarse = 128, kPerCoarse = kBins / kCoarse;
inline constexpr int kMostCandidates = kThreads;  // of a bin, compared with each other
inline constexpr int kPositionBits = 22, kOrderBits = 32 + kPositionBits;
inline constexpr uint32_t kNeverKey = 0, kForcedKey = 0xffffffffu;

// What a block keeps; marked are those that the others read.
struct Shared {
  float* q;              // [heads, head_dim]
  float* out;            // others: [heads, head_dim] sums of attention over the block's tokens
  float* mean;           // [head_dim] sum of V over the row's tokens: the block's share of channels
  int* list;             // [list] positions of chosen tokens
  uint32_t* counts;      // others: [2][kBins + kCoarse]
  uint32_t* coarse;      // [2][kCoarse] the coarse bins of all blocks, in two parts
  uint64_t* candidates;  // others: [kMostCandidates] of this block
  uint64_t* compared;    // [kMostCandidates] of all blocks
  float2* ends;          // others: [kMostHeads] maximum and sum of exp2 of attention
  float *level, *alpha;  // [kMostHeads] maximum + log2(sum) of all; others: weight of the list
  uint64_t* least;       // the threshold
  int* scalars;          // [32] results of one warp for all; others: [0] how many candidates
  float* parts;          // [kWarps][kHeads][head_dim + 2], where the keys were
  uint32_t* keys;        // [share]
};

// Returns the bytes of it all.
__host__ __device__ inline int Carve(Shared* s, char* base, const Plan& plan, int dim) {
  Carver c{base};
  s->q = c.Take<float>(plan.heads * dim);
  s->out = c.Take<float>(plan.heads * dim);
  s->mean = c.Take<float>(dim);
  s->list = c.Take<int>(plan.list);
  s->counts = c.Take<uint32_t>(2 * (kBins + kCoarse));
  s->coarse = c.Take<uint32_t>(2 * kCoarse);
  s->candidates = c.Take<uint64_t>(kMostCandidates);
  s->compared = c.Take<uint64_t>(kMostCandidates);
  s->ends = c.Take<float2>(kMostHeads);
  s->level = c.Take<float>(kMostHeads);
  s->alpha = c.Take<float>(kMostHeads);
  s->least = c.Take<uint64_t>(1);
  s->scalars = c.Take<int>(32);
  const int parts = kWarps * kHeads * (dim + 2), keys = plan.keys != nullptr ? 0 : plan.share;
  s->parts = c.Take<float>(parts > keys ? parts : keys);
  s->keys = reinterpret_cast<uint32_t*>(s->parts);
  return c.bytes;
}

// The tokens of a block: groups of kDealt neighbours are dealt to the blocks of the cluster in turn, by
// position. A token has an index in the block.
struct Share {
  int rank, blocks, base, tokens;
  __device__ __forceinline__ explicit Share(const Row& row) : rank(ClusterRank()), blocks(ClusterBlocks()) {
    base = row.first / (kDealt * kMostBlocks) * kDealt * kMostBlocks;
    tokens = ((row.position - base) / (kDealt * blocks) + 1) * kDealt;
  }
  __device__ __forceinline__ int PositionOf(int token) const {
    return base + (token / kDealt * blocks + rank) * kDealt + token % kDealt;
  }
};

// A key that grows with x.
__device__ __forceinline__ uint32_t OrderKey(float x) {
  const uint32_t u = __float_as_uint(x + 0.0f);  // -0 becomes +0: they are equal
  return u ^ (u >> 31 != 0 ? 0xffffffffu : 0x80000000u);
}

// The level of each head over all tiles that the row sees. A warp a head.
__device__ __forceinline__ void FindLevels(const Plan& plan, const Row& row, const Shared& s) {
  const int lane = int(threadIdx.x % 32);
  const int begin = row.first_page / kTilePages, end = row.own / kTilePages + 1;
#pragma unroll 1
  for (int h = int(threadIdx.x / 32); h < row.group; h += kWarps) {
    const float2* levels = plan.levels + row.index * plan.tiles * row.group + h;
    float2 level = {kNoScore, 0};
#pragma unroll 1
    for (int tile = begin + lane; tile < end; tile += 32)
      level = Joined(level, levels[int64_t{tile} * row.group]);
    level = JoinedLanes(level);
    if (lane == 0) s.level[h] = level.x + log2f(level.y);
  }
}

// Bins of keys. Scores of weights lie in 0 .. 16: 64 bins an octave down to 2^-28, and the rest in the
// lowest.
struct Bins {
  int shift, lowest;
  __device__ __forceinline__ explicit Bins(const SparqParams& p)
      : shift(p.rank_logits ? 21 : 17), lowest(p.rank_logits ? 0 : 0x4000 + (0x41800000 >> 17) - 2046) {}
  __device__ __forceinline__ int Of(uint32_t key) const {
    return min(max(int(key >> shift) - lowest, 0), kBins - 1);
  }
  __device__ __forceinline__ uint64_t Least(int bin) const {  // the least order of a bin; not kNeverKey's
    return bin == 0 ? uint64_t{1} << kPositionBits
                    : uint64_t{uint32_t(bin + lowest)} << (shift + kPositionBits);
  }
};

// A load that stays where it is: the compiler would put it before its use and wait for each.
__device__ __forceinline__ float4 LoadOrdered(const float* from) {
  float4 x;
  asm volatile("ld.global.v4.f32 {%0,%1,%2,%3}, [%4];"
               : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
               : "l"(from)
               : "memory");
  return x;
}

// Scores of eight neighbouring tokens.
__device__ __forceinline__ void ScoreEight(const Plan& plan, const Row& row, const Shared& s, int position,
                                           bool logits_only, float (&score)[kDealt]) {
#pragma unroll 1
  for (int h0 = 0; h0 < row.group; h0 += kHeads) {
    float4 x[kHeads][2];
#pragma unroll
    for (int e = 0; e < kHeads; ++e) {  // all loads are under way together
      const float* from = row.Logits(plan, min(h0 + e, row.group - 1)) + position;
      x[e][0] = LoadOrdered(from), x[e][1] = LoadOrdered(from + 4);
    }
#pragma unroll
    for (int e = 0; e < kHeads; ++e) {
      if (h0 + e >= row.group) break;
      const float level = logits_only ? 0.0f : s.level[h0 + e];
      const float logit[kDealt] = {x[e][0].x, x[e][0].y, x[e][0].z, x[e][0].w,
                                   x[e][1].x, x[e][1].y, x[e][1].z, x[e][1].w};
#pragma unroll
      for (int i = 0; i < kDealt; ++i) score[i] += logits_only ? logit[i] : Exp2(logit[i] - level);
    }
  }
}

// Scores of the block's tokens as keys, and how many are in each bin: the newest `local` and the first
// `sinks` are above all others.
__device__ __forceinline__ void MakeKeys(const Plan& plan, const Row& row, const Share& share,
                                         const Shared& s, const SparqParams& p, const Bins& bins) {
  const int local = p.local < 0 ? p.k / 4 : p.local;
#pragma unroll 1
  for (int t = int(threadIdx.x) * kDealt; t < share.tokens; t += kThreads * kDealt) {
    const int position = share.PositionOf(t);
    float score[kDealt] = {};
    if (row.SeesPage(position / kPage)) ScoreEight(plan, row, s, position, p.rank_logits, score);
    uint32_t key[kDealt];
#pragma unroll
    for (int i = 0; i < kDealt; ++i) {
      key[i] =
          position + i > row.position - local || position + i < p.sinks ? kForcedKey : OrderKey(score[i]);
      if (!row.Sees(position + i)) key[i] = kNeverKey;
      if (key[i] != kNeverKey) atomicAdd(s.counts + bins.Of(key[i]), 1u);
    }
    uint4* to = reinterpret_cast<uint4*>(s.keys + t);
    to[0] = make_uint4(key[0], key[1], key[2], key[3]);
    to[1] = make_uint4(key[4], key[5], key[6], key[7]);
  }
  __syncthreads();
}

// Tokens in the order of which they are read: by key, of equal ones the first.
__device__ __forceinline__ uint64_t Order(const Share& share, const Shared& s, int token) {
  return uint64_t{s.keys[token]} << kPositionBits |
         uint32_t((1 << kPositionBits) - 1 - share.PositionOf(token));
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

// By one warp, from the counts of all blocks: the group of 4 coarse digits, the coarse digit, the digit.
__device__ __forceinline__ Digit FindDigit(const Share& share, const Shared& s, const uint32_t* counts,
                                           int wanted) {
  const int lane = int(threadIdx.x % 32);
  uint4 four = reinterpret_cast<const uint4*>(s.coarse)[lane];
  const uint4 more = reinterpret_cast<const uint4*>(s.coarse)[32 + lane];
  four.x += more.x, four.y += more.y, four.z += more.z, four.w += more.w;
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
  uint32_t part[kMostBlocks / 2];
#pragma unroll
  for (int i = 0; i < kMostBlocks / 2; ++i)
    part[i] = *OfBlock(counts + first + lane % kPerCoarse, min(2 * i + lane / kPerCoarse, share.blocks - 1));
  int count = 0;
#pragma unroll
  for (int i = 0; i < kMostBlocks / 2; ++i)
    count += 2 * i + lane / kPerCoarse < share.blocks ? int(part[i]) : 0;
  count += __shfl_xor_sync(kAll, count, kPerCoarse);
  const Digit fine = FromAbove(lane < kPerCoarse ? count : 0, wanted);
  return {first + fine.value, group.above + coarse.above + fine.above, fine.inside};
}

__device__ __forceinline__ void ClearCounts(uint32_t* counts) {
#pragma unroll 1
  for (int i = int(threadIdx.x); i < kBins / 4; i += kThreads)
    reinterpret_cast<uint4*>(counts)[i] = uint4{0, 0, 0, 0};
}

// The digit in which the `wanted`th token of all blocks from above lies, of those that are counted.
__device__ __forceinline__ Digit FindInCounts(const Share& share, const Shared& s, uint32_t* counts,
                                              int wanted) {
  if (threadIdx.x < kCoarse) {
    uint32_t sum = 0;
#pragma unroll
    for (int i = 0; i < kPerCoarse; i += 4) {
      const uint4 x = *reinterpret_cast<const uint4*>(counts + threadIdx.x * kPerCoarse + i);
      sum += x.x + x.y + x.z + x.w;
    }
    counts[kBins + threadIdx.x] = sum;
  }
  ClusterSync();
  const int part = int(threadIdx.x) / kCoarse, bin = int(threadIdx.x) % kCoarse;
  uint32_t x[kMostBlocks / 2], sum = 0;
#pragma unroll
  for (int i = 0; i < kMostBlocks / 2; ++i)
    x[i] = *OfBlock(counts + kBins + bin, min(2 * i + part, share.blocks - 1));
#pragma unroll
  for (int i = 0; i < kMostBlocks / 2; ++i) sum += 2 * i + part < share.blocks ? x[i] : 0;
  s.coarse[part * kCoarse + bin] = sum;
  __syncthreads();
  if (threadIdx.x < 32) {
    const Digit found = FindDigit(share, s, counts, wanted);
    if (threadIdx.x == 0) s.scalars[1] = found.value, s.scalars[2] = found.above, s.scalars[3] = found.inside;
  }
  __syncthreads();
  return {s.scalars[1], s.scalars[2], s.scalars[3]};
}

// The order of the `wanted`th candidate of all blocks. Every block comes to the same.
__device__ __forceinline__ uint64_t Compare(const Share& share, const Shared& s, int wanted) {
  ClusterSync();
  const int warp = int(threadIdx.x / 32), lane = int(threadIdx.x % 32);
  const int theirs = lane < share.blocks ? *OfBlock(s.scalars, lane) : 0;
  int before = theirs;  // of the blocks up to this lane's
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int less = __shfl_up_sync(kAll, before, step);
    if (lane >= step) before += less;
  }
  const int inside = __shfl_sync(kAll, before, 31);
#pragma unroll 1
  for (int b = warp; b < share.blocks; b += kWarps) {
    const int count = __shfl_sync(kAll, theirs, b), to = __shfl_sync(kAll, before, b) - count;
    for (int i = lane; i < count; i += 32) s.compared[to + i] = *OfBlock(s.candidates + i, b);
  }
  __syncthreads();
  if (int(threadIdx.x) < inside) {
    const uint64_t mine = s.compared[threadIdx.x];
    int above = 0;
#pragma unroll 4
    for (int i = 0; i < inside; ++i) above += s.compared[i] > mine;
    if (above == wanted - 1) *s.least = mine;
  }
  __syncthreads();
  return *s.least;
}

// Digit by digit.
__device__ __forceinline__ uint64_t FindByDigits(const Share& share, const Shared& s, int k) {
  constexpr int kShift[] = {43, 32, 22, 11, 0};
  uint64_t least = 0;
  int above_shift = kOrderBits;
#pragma unroll 1
  for (int digit = 0; digit < 5; ++digit) {
    // The others may still read the counts of the digit before, not those of the one before that.
    uint32_t* counts = s.counts + (digit + 1) % 2 * (kBins + kCoarse);
    const int shift = kShift[digit], bits = above_shift - shift;
    ClearCounts(counts);
    __syncthreads();
#pragma unroll 1
    for (int i = int(threadIdx.x); i < share.tokens; i += kThreads) {
      const uint64_t order = Order(share, s, i);
      if (order >> above_shift == least) atomicAdd(counts + (order >> shift & ((1u << bits) - 1)), 1u);
    }
    __syncthreads();
    const Digit found = FindInCounts(share, s, counts, k);
    least = least << bits | uint32_t(found.value);
    above_shift = shift;
    k -= found.above;
    if (found.inside == k) break;  // all of them
  }
  return least << above_shift;
}

// Tokens with this order and above are read.
__device__ __forceinline__ uint64_t FindThreshold(const Share& share, const Shared& s, const Bins& bins,
                                                  int k) {
  const Digit bin = FindInCounts(share, s, s.counts, k);
  const int wanted = k - bin.above;
  if (bin.inside == wanted) return bins.Least(bin.value);
  if (bin.inside > kMostCandidates) return FindByDigits(share, s, k);
#pragma unroll 1
  for (int t = int(threadIdx.x) * 4; t < share.tokens; t += kThreads * 4) {
    const uint4 four = *reinterpret_cast<const uint4*>(s.keys + t);
    const uint32_t key[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (key[i] != kNeverKey && bins.Of(key[i]) == bin.value)
        s.candidates[atomicAdd(s.scalars, 1)] = Order(share, s, t + i);
  }
  return Compare(share, s, wanted);
}

// Of eight neighbouring tokens those that are read.
__device__ __forceinline__ uint32_t TakenOf(const Row& row, const Share& share, const Shared& s, int token,
                                            uint64_t least) {
  const int position = share.PositionOf(token);
  uint32_t taken = 0;
  if (row.all) {
#pragma unroll
    for (int i = 0; i < kDealt; ++i) taken |= uint32_t(row.Sees(position + i)) << i;
    return taken;
  }
  const uint4* keys = reinterpret_cast<const uint4*>(s.keys + token);
  const uint4 a = keys[0], b = keys[1];
  const uint32_t key[kDealt] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
  for (int i = 0; i < kDealt; ++i) {
    const uint64_t order =
        uint64_t{key[i]} << kPositionBits | uint32_t((1 << kPositionBits) - 1 - position - i);
    taken |= uint32_t(order >= least) << i;
  }
  return taken;
}

// Lists the positions of the block's tokens that are taken, or seen where all are, in order; returns how
// many. A thread looks at neighbouring groups.
__device__ __forceinline__ int ListTokens(const Row& row, const Share& share, const Shared& s,
                                          uint64_t least) {
  const int groups = share.tokens / kDealt, each = (groups + kThreads - 1) / kThreads;
  const int begin = min(int(threadIdx.x) * each, groups), end = min(begin + each, groups);
  const int lane = int(threadIdx.x % 32);
  int count = 0;
#pragma unroll 1
  for (int i = begin; i < end; ++i) count += __popc(TakenOf(row, share, s, i * kDealt, least));
  int before = count;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int less = __shfl_up_sync(kAll, before, step);
    if (lane >= step) before += less;
  }
  if (lane == 31) s.scalars[8 + threadIdx.x / 32] = before;
  __syncthreads();
  int total = 0, at = before - count;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    if (w < int(threadIdx.x / 32)) at += s.scalars[8 + w];
    total += s.scalars[8 + w];
  }
  if (count > 0) {
#pragma unroll 1
    for (int i = begin; i < end; ++i)
      for (uint32_t taken = TakenOf(row, share, s, i * kDealt, least); taken != 0; taken &= taken - 1)
        s.list[at++] = share.PositionOf(i * kDealt) + __ffs(int(taken)) - 1;
  }
  __syncthreads();
  return total;
}

// The words of a tile's tokens before any is chosen.
__device__ __forceinline__ void ClearChosen(const SparqDecodeArgs& a, const Row& row) {
  const int word = int(blockIdx.x) * kTilePages * 2 + int(threadIdx.x);
  if (threadIdx.x < kTilePages * 2 && row.SeesPage(word / 2) && word < a.chosen_words)
    a.chosen[(row.at * a.cache.kv_heads + row.head) * a.chosen_words + word] = 0;
}

__device__ __forceinline__ void WriteChosen(const SparqDecodeArgs& a, const Row& row, const Shared& s,
                                            int count) {
#pragma unroll 1
  for (int i = int(threadIdx.x); i < count; i += kThreads) {
    const int position = s.list[i];
    if (position / 32 < a.chosen_words)
      atomicOr(a.chosen + (row.at * a.cache.kv_heads + row.head) * a.chosen_words + position / 32,
               1u << position % 32);
  }
}

}  // namespace nibble::cuda::sparq
