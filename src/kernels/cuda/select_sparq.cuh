// SPDX-License-Identifier: Apache-2.0
// Floor 4. SparQ for one row (arXiv 2312.04985, section 3; features F-S1, F-S2, F-S6, F-S7): the channels in
// which the queries are largest rank all tokens, the best are read, and what the others would have given is
// made up from sums of V. Step for step kernels/cpu/sparq.h. Indices count from `base`, the first token of
// the first page that the row sees.
#pragma once
#include "kernels/cuda/select_work.cuh"
#include "kernels/key_copy.h"

namespace nibble::cuda::select {

struct Sparq {
  const Row& r;
  const SparqParams p;
  int base, count, hidden;  // count: indices up to the row's own token; hidden: those before `first`

  __device__ float* Approx(int g) const { return r.lists.approx + g * r.lists.capacity; }
  __device__ const std::byte* Record(int page) const {
    return PageRecord(r.a.kv, PageAt(r.a.kv, r.s, page), r.head);
  }
};

// The channels by falling sum over heads of |q|, of equal ones the lower first.
__device__ inline void OrderChannels(const Row& r) {
  Shared& s = r.shared;
  const int d = int(threadIdx.x);
  float sum = 0;
  if (d < r.dim)
    for (int g = 0; g < r.group; ++g) sum += fabsf(r.Q(g)[d]);
  if (d < r.dim) s.magnitude[d] = sum;
  __syncthreads();
  const uint32_t key = OrderKey(sum);
  int place = 0;
  for (int i = 0; i < r.dim && d < r.dim; ++i) {
    const uint32_t other = OrderKey(s.magnitude[i]);
    place += other > key || (other == key && i < d);
  }
  if (d < r.dim) s.channels[place] = d;
  __syncthreads();
}

// F-S1: the least multiple of 8, at most r, whose channels hold the share rho of the magnitude.
__device__ inline int AdaptiveR(const Sparq& s) {
  if (s.p.rho <= 0) return s.p.r;
  const Shared& w = s.r.shared;
  float total = 0, held = 0;
  for (int d = 0; d < s.r.dim; ++d) total += w.magnitude[d];
  for (int i = 0; i < s.p.r; ++i) {
    if (i > 0 && i % 8 == 0 && held >= s.p.rho * total) return i;
    held += w.magnitude[w.channels[i]];
  }
  return s.p.r;
}

// shared.query = the query of head g in the first r channels, over its temperature.
__device__ inline void ChooseQuery(const Sparq& s, int g, int r) {
  Shared& w = s.r.shared;
  const float* q = s.r.Q(g);
  float total = 0, held = 0;
  for (int d = 0; d < s.r.dim; ++d) total += fabsf(q[d]);
  for (int i = 0; i < r; ++i) held += fabsf(q[w.channels[i]]);
  const float tau = sqrtf(held > 0 ? __fdiv_rn(__fmul_rn(float(s.r.dim), held), total) : float(s.r.dim));
  __syncthreads();
  for (int i = int(threadIdx.x); i < r; i += kThreads) w.query[i] = __fdiv_rn(q[w.channels[i]], tau);
  __syncthreads();
}

// Approximate weights of all tokens, and in lists.keys the order in which tokens are taken.
__device__ inline void RankAll(const Sparq& s, int r) {
  const Row& row = s.r;
  const PagedKv& kv = row.a.kv;
  float* score = row.lists.weights;  // not needed before the list is made
  const int own = row.OwnPage() * kv::kPageTokens - s.base;
  for (int i = int(threadIdx.x); i < s.count; i += kThreads) score[i] = 0;
  for (int g = 0; g < row.group; ++g) {
    ChooseQuery(s, g, r);
    float* x = s.Approx(g);
    for (int i = int(threadIdx.x); i < s.count; i += kThreads) {
      float sum = 0;
      if (i < own) {
        const int page = (s.base + i) / kv::kPageTokens, t = (s.base + i) % kv::kPageTokens;
        const std::byte* copy = s.Record(page) + row.a.k_copy;
        for (int j = 0; j < r; ++j)
          sum = __fmaf_rn(row.shared.query[j],
                          LoadKeyCopy(s.p.copy, kv.page, copy, t, row.shared.channels[j]), sum);
      } else {
        for (int j = 0; j < r; ++j)
          sum = __fadd_rn(sum, __fmul_rn(row.shared.query[j], OpenElement(kv, kv.k.raw, row.OpenOf(false),
                                                                          i - own, row.shared.channels[j])));
      }
      x[i] = i < s.hidden ? -INFINITY : sum;
      if (s.p.rank_logits) score[i] += x[i];
    }
    SoftmaxInPlace(row.shared, x, s.count);
    if (!s.p.rank_logits)
      for (int i = int(threadIdx.x); i < s.count; i += kThreads) score[i] += x[i];
  }
  const int local = s.p.local < 0 ? s.p.k / 4 : s.p.local;
  for (int i = int(threadIdx.x); i < s.count; i += kThreads) {
    const bool forced = i >= s.count - local || i + s.base < s.p.sinks;
    row.lists.keys[i] = i < s.hidden ? kNeverKey : forced ? kForcedKey : OrderKey(score[i]);
  }
  __syncthreads();
}

struct TokenList {
  int n;
  bool covers;  // as much approximate weight as was asked for
};

// F-S2: shortens the list to its best tokens, as many as cover the share `wanted` in every head. Forced
// tokens stay. The list's places by rank lie in lists.weights while it is made.
__device__ inline TokenList AdaptiveK(const Sparq& s, int n, float wanted) {
  const Row& row = s.r;
  const Lists& w = row.lists;
  int* by_rank = reinterpret_cast<int*>(w.weights);
  const auto key = [&](int i) { return w.keys[w.tokens[i] - s.base]; };
  for (int i = int(threadIdx.x); i < n; i += kThreads) {
    int place = 0;  // of equal keys the lower token is better
    for (int j = 0; j < n; ++j) place += key(j) > key(i) || (key(j) == key(i) && j < i);
    by_rank[place] = i;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    float* held = row.acc;
    for (int g = 0; g < row.group; ++g) held[g] = 0;
    bool covers = false;
    int taken = 0;
    while (taken < n && (!covers || key(by_rank[taken]) == kForcedKey)) {
      const int index = w.tokens[by_rank[taken++]] - s.base;
      covers = true;
      for (int g = 0; g < row.group; ++g) {
        held[g] += s.Approx(g)[index];
        covers &= held[g] >= wanted;
      }
    }
    row.shared.count = taken, row.shared.equal = covers;
  }
  __syncthreads();
  const int taken = row.shared.count;
  const bool covers = row.shared.equal != 0;
  for (int i = int(threadIdx.x); i < n; i += kThreads)  // those that go are marked
    if (i >= taken) w.keys[w.tokens[by_rank[i]] - s.base] = kNeverKey;
  __syncthreads();
  // In place: a token moves down only, and its chunk is read before it is written.
  const int kept = Compact(
      row.shared, n, [&](int i) { return key(i) != kNeverKey; },
      [&](int i, int place) { by_rank[place] = w.tokens[i]; });
  for (int i = int(threadIdx.x); i < kept; i += kThreads) w.tokens[i] = by_rank[i];
  __syncthreads();
  return {kept, covers};
}

// Ranks with r channels and lists the tokens to read.
__device__ inline TokenList ListTokens(const Sparq& s, int r) {
  const Row& row = s.r;
  const int own = row.OwnPage() * kv::kPageTokens, sealed = s.base < own ? own - s.base : 0;
  const int raw = int(row.position) - (own > row.first ? own : int(row.first)) + 1;
  const int64_t copy_bits = s.p.copy == KeyCopy::kF16 ? 16 : s.p.copy == KeyCopy::kInt8 ? 8 : 4;
  const int64_t scales = s.p.copy == KeyCopy::kF16 ? 0 : sealed / 32 * 2;
  Count(row, &SelectCounters::scalars, int64_t{r} * (s.count - s.hidden));
  Count(row, &SelectCounters::bytes,
        r * (sealed * copy_bits / 8 + scales + raw * row.a.k_bytes.raw / row.dim));
  RankAll(s, r);
  TopK(row, s.count, s.p.k, s.base);
  if (s.p.eps <= 0) return {s.p.k, true};
  return AdaptiveK(s, s.p.k, 1 - s.p.eps);
}

// shared.mean = the sum of V over the positions from `begin` up to the end of page `page`, or up to the row
// itself in its own page: from the running sums, the rows before `begin` in its page taken off.
__device__ inline void SumValues(const Sparq& s, int begin, int page) {
  const Row& r = s.r;
  const int own = r.OwnPage(), first_page = begin / kv::kPageTokens, last = page < own ? page : own - 1;
  float* to = r.shared.mean;
  const auto running = [&](int p, int d) {
    return reinterpret_cast<const float*>(s.Record(p) + r.a.v_sum)[d];
  };
  __syncthreads();
  for (int d = int(threadIdx.x); d < r.dim; d += kThreads) {
    to[d] = last >= first_page ? running(last, d) : 0.0f;
    if (last >= first_page && first_page > 0) to[d] -= running(first_page - 1, d);
  }
  for (int t = first_page * kv::kPageTokens; last >= first_page && t < begin; ++t) {
    __syncthreads();
    if (threadIdx.x < 32) LoadToken(r, true, t, r.shared.tile[0]);
    __syncthreads();
    for (int d = int(threadIdx.x); d < r.dim; d += kThreads) to[d] -= r.shared.tile[0][d];
  }
  __syncthreads();
  if (page < own) return;
  const int skip = begin > own * kv::kPageTokens ? begin - own * kv::kPageTokens : 0;
  const int n = int(r.position) - own * kv::kPageTokens + 1;
  for (int d = int(threadIdx.x); d < r.dim; d += kThreads)
    for (int t = skip; t < n; ++t) to[d] += OpenElement(r.a.kv, r.a.kv.v.raw, r.OpenOf(true), t, d);
  __syncthreads();
}

// F-S7: a block is a page; the weight of its tokens that were not read goes to the mean of the block.
__device__ inline void AddBlockMeans(const Sparq& s, int n) {
  const Row& r = s.r;
  for (int i = int(threadIdx.x); i < r.group * n; i += kThreads)
    s.Approx(i / n)[r.lists.tokens[i % n] - s.base] = 0;
  for (int index = 0; index < s.count; index += kv::kPageTokens) {
    const int begin = s.base + max(index, s.hidden), end = s.base + min(index + kv::kPageTokens, s.count);
    SumValues(s, begin, begin / kv::kPageTokens);
    for (int i = int(threadIdx.x); i < r.group * r.dim; i += kThreads) {
      float mass = 0;
      for (int j = index; j < end - s.base; ++j) mass += s.Approx(i / r.dim)[j];
      r.Out(i / r.dim)[i % r.dim] += mass / float(end - begin) * r.shared.mean[i % r.dim];
    }
  }
}

// out = alpha * y + what stands for the tokens that were not read.
__device__ inline void Reallocate(const Sparq& s, int n, Reallocation how) {
  const Row& r = s.r;
  int over = s.count - s.hidden;  // tokens in the mean
  if (how != Reallocation::kBlocks) SumValues(s, int(r.first), r.OwnPage());
  if (how == Reallocation::kUnselected) {
    over -= n;
    for (int d = int(threadIdx.x); d < r.dim; d += kThreads) r.shared.mean[d] -= r.shared.sum[d];
  }
  for (int g = 0; g < r.group; ++g) {
    float mine = 0;
    for (int i = int(threadIdx.x); i < n; i += kThreads) mine += s.Approx(g)[r.lists.tokens[i] - s.base];
    const float alpha = BlockSum(r.shared, mine),
                rest = how == Reallocation::kBlocks ? 0 : (1 - alpha) / float(over);
    for (int d = int(threadIdx.x); d < r.dim; d += kThreads)
      r.Out(g)[d] = alpha * r.acc[g * r.dim + d] + (rest == 0 ? 0 : rest * r.shared.mean[d]);
  }
  __syncthreads();
  if (how == Reallocation::kBlocks) AddBlockMeans(s, n);
}

// The mean is read and written (the transfer model), in bytes: kernels/cpu/sparq.h, CountMean.
__device__ inline void CountMean(const Sparq& s, int n, Reallocation how) {
  const Row& r = s.r;
  if (threadIdx.x != 0) return;
  const int own = r.OwnPage(), first_page = int(r.first) / kv::kPageTokens, start = own * kv::kPageTokens;
  int raw = int(r.position) - (start > r.first ? start : int(r.first)) + 1;
  for (int i = n - 1; i >= 0 && r.lists.tokens[i] / kv::kPageTokens == own; --i) --raw;
  const int pages = own - first_page;
  const bool blocks = how == Reallocation::kBlocks;
  const int sums = blocks ? pages + (first_page > 0) : (pages > 0) + (pages > 0 && first_page > 0);
  Count(r, &SelectCounters::scalars, (blocks ? 2 + pages : 2) * r.dim);
  const int partial = first_page < own ? s.hidden : 0;
  Count(r, &SelectCounters::bytes,
        int64_t{sums} * r.dim * 4 + raw * r.a.v_bytes.raw + partial * r.a.v_bytes.token);
}

__device__ void SparqRow(const Row& r) {
  const int base = int(r.first) / kv::kPageTokens * kv::kPageTokens;
  const Sparq s{r, r.a.sparq[r.head], base, int(r.position) - base + 1, int(r.first) - base};
  Count(r, &SelectCounters::rows, 1);
  bool all = s.count - s.hidden <= s.p.k;
  TokenList list{0, false};
  if (!all) {
    OrderChannels(r);
    const int least = AdaptiveR(s);
    list = ListTokens(s, least);
    if (!list.covers && 2 * least < r.dim) list = ListTokens(s, 2 * least);  // once, then without selection
    all = !list.covers;
    Count(r, &SelectCounters::fallbacks, all);
  }
  const int n = all ? ListAll(r) : list.n;
  Gather(r, n);
  CountList(r, n);
  Reallocation how = s.p.mean;
  if (how == Reallocation::kAuto) how = r.group == 1 ? Reallocation::kMean : Reallocation::kOff;
  if (all || how == Reallocation::kOff) return CopyToOut(r);
  Reallocate(s, n, how);
  CountMean(s, n, how);
  __syncthreads();
}

}  // namespace nibble::cuda::select
