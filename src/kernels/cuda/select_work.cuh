// SPDX-License-Identifier: Apache-2.0
// Floor 4. One selecting row: its list of tokens, softmax over the list, and the k greatest of n. A block of
// threads; every sum has one order.
#pragma once
#include "kernels/cuda/launched.cuh"
#include "kernels/cuda/pages.cuh"
#include "kernels/cuda/select.h"

namespace nibble::cuda::select {

inline constexpr int kThreads = 256, kWarps = kThreads / 32, kTile = 16;
inline constexpr int kSlots = 264;  // blocks that run at once, each with work memory
inline constexpr int kMaxDim = 256, kMaxGroup = 64;

// Of one block, in global memory.
struct Lists {
  float *approx, *weights;  // [group, capacity]: of all tokens; of those of the list
  uint32_t* keys;           // [capacity]
  int32_t* tokens;          // [capacity]: the list, ascending positions
  int64_t capacity;
};
__host__ __device__ inline int64_t ListBytes(int64_t capacity, int group) {
  return capacity * (2 * group + 2) * 4;
}
__host__ __device__ inline int64_t CapacityOf(int64_t tokens) {
  return (tokens + 2 * kv::kPageTokens - 1) / kv::kPageTokens * kv::kPageTokens;
}

struct Shared {
  float tile[kTile][kMaxDim];
  float query[kMaxDim], magnitude[kMaxDim], sum[kMaxDim], mean[kMaxDim];
  int channels[kMaxDim];
  float part[kWarps];
  uint32_t bins[2048];
  int scan[kWarps], count, equal;
  uint32_t key;
};

struct Row {
  const SelectArgs& a;
  const KvSegment& s;
  int head, row, group, dim;
  int64_t position, first;  // sees first .. position
  Lists lists;
  Shared& shared;
  float* acc;  // [group, dim] shared

  __device__ const float* Q(int g) const {
    return a.q + (s.row + row) * a.q_stride + (int64_t{head} * group + g) * dim;
  }
  __device__ float* Out(int g) const {
    return a.out + (s.row + row) * a.out_stride + (int64_t{head} * group + g) * dim;
  }
  __device__ int OwnPage() const { return int(position) / kv::kPageTokens; }
  __device__ const std::byte* OpenOf(bool is_v) const {
    return OpenPage(a.kv, is_v ? a.kv.v : a.kv.k, s.raw_slot, head);
  }
};

__device__ inline float WarpSum(float x) {
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  return x;
}
__device__ inline float BlockSum(Shared& shared, float x) {
  x = WarpSum(x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared.part[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0;
  for (int i = 0; i < kWarps; ++i) sum += shared.part[i];
  return sum;
}
__device__ inline float BlockMax(Shared& shared, float x) {
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared.part[threadIdx.x / 32] = x;
  __syncthreads();
  for (int i = 0; i < kWarps; ++i) x = fmaxf(x, shared.part[i]);
  return x;
}

template <class C>
__device__ __noinline__ void LoadTokenOf(kv::PageShape s, const std::byte* page, int token, float* row) {
  const int lane = int(threadIdx.x) % 32;
  if constexpr (kv::HasDecodeRow<C>) {
    if (lane == 0) C::DecodeRow(s, page, token, row);
  } else {
    for (int d = lane * 8; d < s.head_dim; d += 256) C::Decode8(s, page, token, d, row + d);
  }
}

// The row of K or V at a position into `row`, by one warp.
__device__ inline void LoadToken(const Row& r, bool is_v, int position, float* row) {
  const PagedSide& side = is_v ? r.a.kv.v : r.a.kv.k;
  const int page = position / kv::kPageTokens, token = position % kv::kPageTokens;
  if (page == r.OwnPage()) {
    for (int d = int(threadIdx.x) % 32; d < r.dim; d += 32)
      row[d] = OpenElement(r.a.kv, side.raw, r.OpenOf(is_v), token, d);
  } else {
    const SealedPages pages = SealedPagesOf(r.a.kv, side, r.s.seq, r.head);
    const std::byte* sealed = pages.At(PageAt(r.a.kv, r.s, page));
    Visit(kv::Codecs{}, pages.codec, [&]<class C>() { LoadTokenOf<C>(r.a.kv.page, sealed, token, row); });
  }
  __syncwarp();
}

// weights[g][i] = scale * q[g] . K of token i of the list.
__device__ inline void GatherScores(const Row& r, int n) {
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  float* k = r.shared.tile[warp];
  for (int i = warp; i < n; i += kWarps) {
    LoadToken(r, false, r.lists.tokens[i], k);
    for (int g = 0; g < r.group; ++g) {
      float sum = 0;
      for (int d = lane; d < r.dim; d += 32) sum += r.Q(g)[d] * k[d];
      sum = WarpSum(sum);
      if (lane == 0) r.lists.weights[g * r.lists.capacity + i] = sum * r.a.scale;
    }
    __syncwarp();
  }
  __syncthreads();
}

__device__ inline void SoftmaxInPlace(Shared& shared, float* x, int n) {
  float top = -INFINITY, sum = 0;
  for (int i = int(threadIdx.x); i < n; i += kThreads) top = fmaxf(top, x[i]);
  top = BlockMax(shared, top);
  for (int i = int(threadIdx.x); i < n; i += kThreads) sum += x[i] = expf(x[i] - top);
  const float inverse = 1.0f / BlockSum(shared, sum);
  for (int i = int(threadIdx.x); i < n; i += kThreads) x[i] *= inverse;
  __syncthreads();
}

// acc[g] = the weighted sum of V over the list, shared.sum the plain one.
__device__ inline void GatherValues(const Row& r, int n) {
  const int warp = int(threadIdx.x) / 32, t = int(threadIdx.x);
  for (int i = t; i < r.group * r.dim; i += kThreads) r.acc[i] = 0;
  for (int d = t; d < r.dim; d += kThreads) r.shared.sum[d] = 0;
  for (int at = 0; at < n; at += kTile) {
    const int count = min(kTile, n - at);
    __syncthreads();
    for (int j = warp; j < count; j += kWarps) LoadToken(r, true, r.lists.tokens[at + j], r.shared.tile[j]);
    __syncthreads();
    for (int i = t; i < r.group * r.dim; i += kThreads) {
      const float* p = r.lists.weights + i / r.dim * r.lists.capacity + at;
      float sum = r.acc[i];
      for (int j = 0; j < count; ++j) sum = __fmaf_rn(p[j], r.shared.tile[j][i % r.dim], sum);
      r.acc[i] = sum;
    }
    for (int d = t; d < r.dim; d += kThreads)
      for (int j = 0; j < count; ++j) r.shared.sum[d] += r.shared.tile[j][d];
  }
  __syncthreads();
}

// Attention over the list.
__device__ inline void Gather(const Row& r, int n) {
  GatherScores(r, n);
  for (int g = 0; g < r.group; ++g) SoftmaxInPlace(r.shared, r.lists.weights + g * r.lists.capacity, n);
  GatherValues(r, n);
}

__device__ inline void CopyToOut(const Row& r) {
  for (int i = int(threadIdx.x); i < r.group * r.dim; i += kThreads) r.Out(i / r.dim)[i % r.dim] = r.acc[i];
  __syncthreads();
}

// ---- the k greatest ----

// A key above 0 that grows with x. NaNs lie at the ends.
__device__ inline uint32_t OrderKey(float x) {
  const uint32_t u = __float_as_uint(x + 0.0f);  // -0 becomes +0: they are equal
  return u ^ (u >> 31 != 0 ? 0xffffffffu : 0x80000000u);
}
inline constexpr uint32_t kNeverKey = 0, kForcedKey = 0xffffffffu;

// shared.key = the k-th greatest of n keys, shared.equal = how many equal to it are among the k greatest;
// digit by digit. REQUIRES 1 <= k <= n.
__device__ inline void KthGreatest(Shared& shared, const uint32_t* keys, int n, int k) {
  constexpr int kShift[] = {21, 10, 0}, kBits[] = {11, 11, 10};
  uint32_t known = 0, mask = 0;
  int left = k;
  for (int digit = 0; digit < 3; ++digit) {
    const int bins = 1 << kBits[digit], shift = kShift[digit];
    for (int i = int(threadIdx.x); i < bins; i += kThreads) shared.bins[i] = 0;
    __syncthreads();
    for (int i = int(threadIdx.x); i < n; i += kThreads)
      if ((keys[i] & mask) == known) atomicAdd(&shared.bins[keys[i] >> shift & (bins - 1)], 1u);
    __syncthreads();
    if (threadIdx.x == 0) {
      int bin = bins - 1, more = left;
      while (int(shared.bins[bin]) < more) more -= int(shared.bins[bin--]);
      shared.key = known | uint32_t(bin) << shift, shared.equal = more;
    }
    __syncthreads();
    known = shared.key, left = shared.equal;
    mask |= uint32_t(bins - 1) << shift;
  }
}

// Calls keep(i, place) for the indices of [0, n) that `wanted` holds for, in order, and returns how many
// there are. wanted(i) is asked once; of equal keys the caller counts by `rank`.
template <class Wanted, class Keep>
__device__ int Compact(Shared& shared, int n, Wanted wanted, Keep keep) {
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  int kept = 0;
  for (int begin = 0; begin < n; begin += kThreads) {
    const int i = begin + int(threadIdx.x);
    const bool is = i < n && wanted(i);
    const uint32_t mine = __ballot_sync(~0u, is);
    __syncthreads();
    if (lane == 0) shared.scan[warp] = __popc(mine);
    __syncthreads();
    int before = kept;
    for (int w = 0; w < kWarps; ++w) {
      before += w < warp ? shared.scan[w] : 0;
      kept += shared.scan[w];
    }
    if (is) keep(i, before + __popc(mine & ((1u << lane) - 1)));
  }
  __syncthreads();
  return kept;
}

// lists.tokens[0 .. k) = the k greatest of n keys, ascending; of equal keys the lower index. `base` is the
// position of index 0.
__device__ inline void TopK(const Row& r, int n, int k, int base) {
  KthGreatest(r.shared, r.lists.keys, n, k);
  const uint32_t key = r.shared.key;
  const int equal = r.shared.equal;
  // Which of the equal ones stay is known once they are numbered; an index that loses becomes kNeverKey.
  Compact(
      r.shared, n, [&](int i) { return r.lists.keys[i] == key; },
      [&](int i, int place) {
        if (place >= equal) r.lists.keys[i] = kNeverKey;
      });
  Compact(
      r.shared, n, [&](int i) { return r.lists.keys[i] >= key; },
      [&](int i, int place) { r.lists.tokens[place] = base + i; });
}

// Reading K and V of the list, as kernels/cpu/gather.h counts it.
__device__ inline void CountList(const Row& r, int n) {
  int sealed = 0, raw = 0, pages = 0;
  for (int i = int(threadIdx.x); i < n; i += kThreads) {
    const int page = r.lists.tokens[i] / kv::kPageTokens;
    if (page == r.OwnPage()) {
      ++raw;
      continue;
    }
    ++sealed;
    pages += i == 0 || r.lists.tokens[i - 1] / kv::kPageTokens != page;
  }
  const SelectArgs& a = r.a;
  atomicAdd(&a.counters->bytes,
            static_cast<unsigned long long>(sealed * (a.k_bytes.token + a.v_bytes.token) +
                                            pages * (a.k_bytes.shared + a.v_bytes.shared) +
                                            raw * (a.k_bytes.raw + a.v_bytes.raw)));
  if (threadIdx.x != 0) return;
  atomicAdd(&a.counters->tokens, static_cast<unsigned long long>(n));
  atomicAdd(&a.counters->scalars, static_cast<unsigned long long>((2 * int64_t{n} + 2) * r.dim));
}

__device__ inline void Count(const Row& r, unsigned long long SelectCounters::*what, int64_t n) {
  if (threadIdx.x == 0) atomicAdd(&(r.a.counters->*what), static_cast<unsigned long long>(n));
}

// The list is all that the row sees.
__device__ inline int ListAll(const Row& r) {
  const int n = int(r.position - r.first) + 1;
  for (int i = int(threadIdx.x); i < n; i += kThreads) r.lists.tokens[i] = int32_t(r.first) + i;
  __syncthreads();
  return n;
}

__device__ void SparqRow(const Row&);  // select_sparq.cuh

}  // namespace nibble::cuda::select
