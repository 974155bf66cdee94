// SPDX-License-Identifier: Apache-2.0
// Floor 4. See draw.h. Three launches: changes and the greatest logit (a block a row); how many candidates
// and how much weight there are by the upper bits of the logit, and by 1,024 ids (many blocks a row); then a
// block a row follows the digits down. All that top-k, top-p and the draw ask is where in the order of
// candidates, best first, a count or a weight is reached, and every set of candidates is a beginning of that
// order. Without top-k and top-p the order is that of ids.
#include "kernels/cuda/draw.h"
#include "kernels/cuda/launched.cuh"

namespace nibble::cuda {
namespace {

using Weight = unsigned long long;  // in 2^-44 of the greatest's

constexpr int kThreads = 1024, kBins = 2048, kChunk = 1024, kSpan = 8 * kChunk;
// Of the digits: 11, 11 and 10 bits.
__host__ __device__ constexpr int ShiftOf(int digit) { return digit == 0 ? 21 : digit == 1 ? 10 : 0; }

struct RowWork {
  float max;
  int32_t best;  // -1: broken
  Weight weight[kBins];
  uint32_t count[kBins];
  // then [chunks] Weight
};
__host__ __device__ int Chunks(int k) { return (k + kChunk - 1) / kChunk; }
__host__ __device__ int64_t RowBytes(int k) { return int64_t{sizeof(RowWork)} + int64_t{Chunks(k)} * 8; }
__device__ RowWork& WorkOf(const DrawArgs& a, int row) {
  return *reinterpret_cast<RowWork*>(static_cast<char*>(a.workspace) + row * RowBytes(a.k));
}
__device__ Weight* ChunksOf(RowWork& w) { return reinterpret_cast<Weight*>(&w + 1); }

// Orders as the floats do; the two zeros are one.
__device__ uint32_t KeyOf(float x) {
  const uint32_t bits = __float_as_uint(x + 0.0f);
  return bits ^ (bits >> 31 != 0 ? 0xFFFFFFFFu : 0x80000000u);
}
__device__ float ValueOf(uint32_t key) {
  return __uint_as_float(key ^ (key >> 31 != 0 ? 0x80000000u : 0xFFFFFFFFu));
}

// Which logits are candidates, and what they weigh.
struct Rule {
  double max, inverse, floor;
  __device__ Rule(const DrawRow& row, float greatest)
      : max(greatest), inverse(1.0 / double(row.temperature)) {
    floor = row.min_p > 0 ? __dadd_rn(max, log(double(row.min_p)) / inverse) : -INFINITY;
  }
  __device__ bool Has(float x) const { return !(double(x) < floor); }
  __device__ Weight Of(float x) const {
    return Weight(__double2ull_rn(exp(__dmul_rn(double(x) - max, inverse)) * 17592186044416.0));
  }
};

__global__ void __launch_bounds__(kThreads) BestKernel(const __grid_constant__ DrawArgs a) {
  __shared__ float tops[kThreads / 32];
  __shared__ int at[kThreads / 32];
  const int row = int(blockIdx.x), t = int(threadIdx.x);
  const DrawRow how = a.rows[row];
  float* x = a.x + row * a.x_stride;
  for (int i = t; i < how.changes; i += kThreads) {
    const LogitChange c = a.changes[how.first_change + i];
    float y = __fadd_rn(x[c.id], c.bias);
    if (c.penalty != 0) y = y > 0 ? __fdiv_rn(y, c.penalty) : __fmul_rn(y, c.penalty);
    x[c.id] = __fsub_rn(y, c.off);
  }
  RowWork& work = WorkOf(a, row);
  for (int i = t; i < kBins; i += kThreads) work.weight[i] = 0, work.count[i] = 0;
  __syncthreads();
  float top = -INFINITY;
  int best = a.k;
  const auto take = [&](float y, int i) {
    if (y > top || (y == top && i < best)) top = y, best = i;
  };
#pragma unroll 4
  for (int i = t; i < a.k; i += kThreads) {
    const bool broken = !(fabsf(x[i]) < INFINITY);
    take(broken ? INFINITY : x[i], broken ? -1 : i);
  }
  for (int step = 16; step > 0; step /= 2)
    take(__shfl_xor_sync(~0u, top, step), __shfl_xor_sync(~0u, best, step));
  if (t % 32 == 0) tops[t / 32] = top, at[t / 32] = best;
  __syncthreads();
  if (t != 0) return;
  for (int i = 1; i < kThreads / 32; ++i) take(tops[i], at[i]);
  work.max = top, work.best = best;
  a.ids[row] = best;  // stays where nothing is drawn
}

// kSpan ids of a row: the sums by digit, and by chunk.
__global__ void __launch_bounds__(kThreads) CountKernel(const __grid_constant__ DrawArgs a) {
  __shared__ Weight weight[kBins], chunk;
  __shared__ uint32_t count[kBins];
  const int row = int(blockIdx.y), t = int(threadIdx.x);
  const DrawRow how = a.rows[row];
  RowWork& work = WorkOf(a, row);
  if (how.temperature == 0 || work.best < 0) return;
  const bool sorted = how.top_k > 0 || how.top_p < 1;
  const Rule rule(how, work.max);
  for (int i = t; i < kBins; i += kThreads) weight[i] = 0, count[i] = 0;
  for (int first = int(blockIdx.x) * kSpan; first < min(a.k, (int(blockIdx.x) + 1) * kSpan);
       first += kChunk) {
    if (t == 0) chunk = 0;
    __syncthreads();
    const int i = first + t;
    const float x = i < a.k ? a.x[row * a.x_stride + i] : 0;
    const bool has = i < a.k && rule.Has(x);
    Weight w = has ? rule.Of(x) : 0;
    if (has && sorted) {
      atomicAdd(&weight[KeyOf(x) >> ShiftOf(0)], w);
      atomicAdd(&count[KeyOf(x) >> ShiftOf(0)], 1u);
    }
    for (int step = 16; step > 0; step /= 2) w += __shfl_xor_sync(~0u, w, step);
    if (t % 32 == 0) atomicAdd(&chunk, w);
    __syncthreads();
    if (t == 0) ChunksOf(work)[first / kChunk] = chunk;
  }
  __syncthreads();
  for (int i = t; i < kBins; i += kThreads)
    if (count[i] > 0) atomicAdd(&work.weight[i], weight[i]), atomicAdd(&work.count[i], count[i]);
}

// A beginning of the order: how many candidates, what they weigh, and the last of them: its key and its place
// among those of that key, by id.
struct Prefix {
  uint32_t count;
  Weight weight;
  uint32_t key, place;
};

struct Shared {
  Weight weight[kBins], sums[kThreads / 32];
  uint32_t count[kBins], counts[kThreads / 32];
  uint32_t bin;
  uint32_t before_count;
  Weight before_weight;
};

// What ends a prefix: the k-th candidate, or the first with which the weight is at least, or more than, a
// double.
struct Goal {
  enum Kind { kCount, kAtLeast, kMore } kind;
  uint32_t count;
  double weight;
  __device__ bool Reached(uint32_t n, Weight w) const {
    return kind == kCount ? n >= count : kind == kAtLeast ? double(w) >= weight : double(w) > weight;
  }
};

// Of the order: bins from the last to the first. Finds the bin in which the goal is reached, or the last that
// holds anything: its index into s.bin, and what comes before it into count and weight, which hold what comes
// before all bins. All threads call it.
__device__ void FindBin(Shared& s, const Goal& goal, uint32_t* count, Weight* weight) {
  const int t = int(threadIdx.x), lane = t % 32, warp = t / 32;
  const int high = kBins - 1 - 2 * t, low = high - 1;
  const uint32_t n[2] = {s.count[high], s.count[low]};
  const Weight w[2] = {s.weight[high], s.weight[low]};
  uint32_t n_sum = n[0] + n[1];
  Weight w_sum = w[0] + w[1];
  for (int step = 1; step < 32; step *= 2) {
    const uint32_t n_up = __shfl_up_sync(~0u, n_sum, step);
    const Weight w_up = __shfl_up_sync(~0u, w_sum, step);
    if (lane >= step) n_sum += n_up, w_sum += w_up;
  }
  if (lane == 31) s.counts[warp] = n_sum, s.sums[warp] = w_sum;
  if (t == 0) s.bin = 0;
  __syncthreads();
  uint32_t n_before = *count + n_sum - n[0] - n[1];
  Weight w_before = *weight + w_sum - w[0] - w[1];
  for (int i = 0; i < warp; ++i) n_before += s.counts[i], w_before += s.sums[i];
  // The first bin that reaches the goal has the greatest index; without one, the last that holds anything.
  for (int i = 0; i < 2; ++i) {
    if (n[i] > 0 && goal.Reached(n_before + n[i], w_before + w[i]))
      atomicMax(&s.bin, uint32_t(kBins + high - i));
    n_before += n[i], w_before += w[i];
  }
  __syncthreads();
  const bool none = s.bin == 0;
  __syncthreads();
  if (none) {
    for (int i = 0; i < 2; ++i)
      if (n[i] > 0) atomicMax(&s.bin, uint32_t(kBins - 1 - (high - i)));
  }
  __syncthreads();
  const uint32_t bin = s.bin >= kBins ? s.bin - kBins : kBins - 1 - s.bin;
  for (int i = 1; i >= 0; --i) {
    n_before -= n[i], w_before -= w[i];
    if (uint32_t(high - i) == bin) s.before_count = n_before, s.before_weight = w_before;
  }
  __syncthreads();
  *count = s.before_count, *weight = s.before_weight;
  s.bin = bin;
  __syncthreads();
}

__device__ Prefix FindPrefix(const DrawArgs& a, int row, const Rule& rule, const Goal& goal, Shared& s) {
  const int t = int(threadIdx.x);
  const float* x = a.x + row * a.x_stride;
  RowWork& work = WorkOf(a, row);
  Prefix p{};
  for (int digit = 0; digit < 3; ++digit) {
    const int shift = ShiftOf(digit), above = digit == 0 ? 32 : ShiftOf(digit - 1);
    __syncthreads();
    for (int i = t; i < kBins; i += kThreads) {
      s.weight[i] = digit == 0 ? work.weight[i] : 0;
      s.count[i] = digit == 0 ? work.count[i] : 0;
    }
    __syncthreads();
    for (int i = t; digit > 0 && i < a.k; i += kThreads) {
      const uint32_t key = KeyOf(x[i]);
      if (key >> above != p.key >> above || !rule.Has(x[i])) continue;
      atomicAdd(&s.weight[key >> shift & (1u << (above - shift)) - 1], rule.Of(x[i]));
      atomicAdd(&s.count[key >> shift & (1u << (above - shift)) - 1], 1u);
    }
    __syncthreads();
    FindBin(s, goal, &p.count, &p.weight);
    p.key |= s.bin << shift;
  }
  // Equal keys weigh the same.
  const Weight each = rule.Of(ValueOf(p.key));
  const uint32_t equal = s.count[p.key & (1u << ShiftOf(1)) - 1];
  do {
    ++p.count, p.weight += each, ++p.place;
  } while (p.place < equal && !goal.Reached(p.count, p.weight));
  --p.place;
  return p;
}

// The id of a candidate: the `place`th of its key, or in the order of ids the first with which the weight is
// more than `weight`. Chunk after chunk from `first` on, with `before` ahead of it.
template <class Found>
__device__ void Search(const DrawArgs& a, int row, int first, Found found) {
  __shared__ bool done;
  if (threadIdx.x == 0) done = false;
  __syncthreads();
  for (int at = first; at < a.k && !done; at += kThreads) {
    const int i = at + int(threadIdx.x);
    const bool mine = found(i, i < a.k ? a.x[row * a.x_stride + i] : 0.0f, i < a.k);
    if (mine) a.ids[row] = i, done = true;
    __syncthreads();
  }
}

__device__ void DrawSorted(const DrawArgs& a, int row, const DrawRow& how, const Rule& rule, Shared& s) {
  Prefix end = FindPrefix(a, row, rule, {Goal::kCount, how.top_k > 0 ? uint32_t(how.top_k) : ~0u, 0}, s);
  if (how.top_p < 1)
    end = FindPrefix(a, row, rule, {Goal::kAtLeast, 0, double(how.top_p) * double(end.weight)}, s);
  const Prefix drawn = FindPrefix(a, row, rule, {Goal::kMore, 0, how.uniform * double(end.weight)}, s);
  __syncthreads();
  uint32_t before = 0;
  Search(a, row, 0, [&](int, float x, bool inside) {
    const bool equal = inside && KeyOf(x) == drawn.key;
    const uint32_t lanes = __ballot_sync(~0u, equal);
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
    if (lane == 0) s.counts[warp] = uint32_t(__popc(lanes));
    __syncthreads();
    uint32_t place = before + uint32_t(__popc(lanes & ((1u << lane) - 1)));
    for (int i = 0; i < kThreads / 32; ++i) {
      if (i < warp) place += s.counts[i];
      before += s.counts[i];
    }
    return equal && place == drawn.place;
  });
}

__device__ void DrawById(const DrawArgs& a, int row, const DrawRow& how, const Rule& rule, Shared& s) {
  RowWork& work = WorkOf(a, row);
  const int chunks = Chunks(a.k), t = int(threadIdx.x);
  Weight* sums = ChunksOf(work);
  if (t == 0) {  // a thousand sums at most
    Weight all = 0, before = 0;
    for (int i = 0; i < chunks; ++i) all += sums[i];
    const double goal = how.uniform * double(all);
    int i = 0;
    while (i + 1 < chunks && !(double(before + sums[i]) > goal)) before += sums[i++];
    s.bin = uint32_t(i), s.before_weight = before, s.sums[0] = all;
  }
  __syncthreads();
  const double goal = how.uniform * double(s.sums[0]);
  const Weight before = s.before_weight;
  const int first = int(s.bin) * kChunk, lane = t % 32, warp = t / 32;
  __syncthreads();
  Search(a, row, first, [&](int, float x, bool inside) {
    const Weight w = inside && rule.Has(x) ? rule.Of(x) : 0;
    Weight sum = w;
    for (int step = 1; step < 32; step *= 2) {
      const Weight up = __shfl_up_sync(~0u, sum, step);
      if (lane >= step) sum += up;
    }
    if (lane == 31) s.sums[warp] = sum;
    __syncthreads();
    sum += before;
    for (int i = 0; i < warp; ++i) sum += s.sums[i];
    return double(sum) > goal && !(double(sum - w) > goal);
  });
}

__global__ void __launch_bounds__(kThreads) DrawKernel(const __grid_constant__ DrawArgs a) {
  __shared__ Shared s;
  const int row = int(blockIdx.x);
  const DrawRow how = a.rows[row];
  const RowWork& work = WorkOf(a, row);
  if (how.temperature == 0 || work.best < 0) return;
  const Rule rule(how, work.max);
  if (how.top_k > 0 || how.top_p < 1)
    DrawSorted(a, row, how, rule, s);
  else
    DrawById(a, row, how, rule, s);
}

}  // namespace

int64_t DrawWorkspaceBytes(int count, int k) { return count * RowBytes(k); }

Launch Draw(const DrawArgs& a, Stream stream) {
  if (a.k > 1 << 20) return Refused("draw: at most 2^20 tokens");
  const unsigned rows = unsigned(a.count);
  BestKernel<<<rows, kThreads, 0, stream>>>(a);
  CountKernel<<<dim3(unsigned((a.k + kSpan - 1) / kSpan), rows), kThreads, 0, stream>>>(a);
  DrawKernel<<<rows, kThreads, 0, stream>>>(a);
  return Launched("draw");
}

}  // namespace nibble::cuda
