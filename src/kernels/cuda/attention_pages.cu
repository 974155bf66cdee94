// SPDX-License-Identifier: Apache-2.0
// Floor 4. Attention over pages: see attention_pages.h. A tile (K, then V of one page) lies in shared memory;
// an entry is one query head at one position.
#include "kernels/cuda/attention_pages.h"
#include "kernels/cuda/launched.cuh"
#include "kernels/cuda/pages.cuh"
#include "kernels/cuda/rounding.cuh"
#include "kernels/cuda/sas.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32, kEntries = 16, kEach = 4, kPage = kv::kPageTokens;

// Shared memory, in floats.
struct Layout {
  int dim, stride, tile, q, acc, scores, k_scale, mean, v_scale, total;
  __host__ __device__ Layout(int head_dim, int group, bool mean_scores)
      : dim(head_dim), stride(head_dim + 1) {
    tile = 0;
    q = tile + kPage * stride;
    acc = q + kEntries * dim;
    scores = acc + kEntries * dim;
    k_scale = scores + kEntries * kPage;
    v_scale = k_scale + kPage;
    mean = v_scale + dim;
    total = mean + (mean_scores ? group * kPage : 0);
  }
};

struct EntryState {
  float max[kEntries], sum[kEntries], fix[kEntries], p_scale[kEntries];  // p_scale: of INT8 weights
  float q_scale[kEntries], q_bias[kEntries];                             // of integer scores
  float threshold[kEntries], dropped_mass[kEntries], dropped[kEntries];  // SAS
};

struct Work {
  const PageAttentionArgs& a;
  const KvSegment& s;
  int head, group, first, entries;  // of the block: [first, first + entries) of rows x group
  Layout at;
  float* shared;
  EntryState& state;

  __device__ float* Tile() const { return shared + at.tile; }
  __device__ float* Q(int e) const { return shared + at.q + e * at.dim; }
  __device__ float* Acc(int e) const { return shared + at.acc + e * at.dim; }
  __device__ float* Scores(int e) const { return shared + at.scores + e * kPage; }
  __device__ int Row(int e) const { return (first + e) / group; }
  __device__ int GroupHead(int e) const { return (first + e) % group; }
  __device__ int64_t Position(int e) const { return int64_t{s.position} + Row(e); }
  // Tokens of the tile at `start` that an entry sees.
  __device__ void Range(int e, int64_t start, int* begin, int* end) const {
    const int64_t p = Position(e) - start;
    const int64_t low = a.window > 0 && p - a.window + 1 > 0 ? p - a.window + 1 : 0;
    const int64_t high = p + 1 < kPage ? p + 1 : kPage;
    *begin = int(low < high ? low : high), *end = int(high);
  }
};

__device__ float WarpSum(float x) {
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  return x;
}
__device__ float WarpMax(float x) {  // NaN is passed over
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
  return x;
}

__device__ const float* KeyMean(const Work& w) {
  const Means& m = w.a.means;
  if (m.k != nullptr) return m.k + w.head * w.at.dim;
  return m.k_record < 0 ? nullptr
                        : reinterpret_cast<const float*>(OpenRecord(w.a.kv, w.s.seq, w.head) + m.k_record);
}
// Channel d of the mean query of a head; 0 without one.
__device__ float QueryMean(const Work& w, int group_head, int d) {
  const Means& m = w.a.means;
  if (m.q != nullptr) return m.q[(w.head * w.group + group_head) * w.at.dim + d];
  if (m.q_record < 0) return 0;
  const std::byte* record = PageRecord(w.a.kv, PageAt(w.a.kv, w.s, w.s.pages - 1), w.head);
  return reinterpret_cast<const float*>(record + m.q_record)[group_head * w.at.dim + d] / float(kPage);
}
__device__ bool HasQueryMean(const Work& w) { return w.a.means.q != nullptr || w.a.means.q_record >= 0; }

// The queries as they come, or as codes for sealed pages: codes is false again for the open page.
__device__ void LoadQueries(const Work& w, bool codes) {
  const int lane = int(threadIdx.x) % 32;
  const float* k_mean = codes ? KeyMean(w) : nullptr;
  for (int e = int(threadIdx.x) / 32; e < w.entries; e += kWarps) {
    const float* q =
        w.a.q + (w.s.row + w.Row(e)) * w.a.q_stride + (w.head * w.group + w.GroupHead(e)) * w.at.dim;
    float* to = w.Q(e);
    float bias = 0;
    uint32_t amax = 0;
    for (int d = lane; d < w.at.dim; d += 32) {
      if (k_mean != nullptr) bias += q[d] * k_mean[d];
      const float x = codes && HasQueryMean(w) ? __fsub_rn(q[d], QueryMean(w, w.GroupHead(e), d)) : q[d];
      amax = max(amax, MagnitudeBits(x));
      to[d] = x;
    }
    if (!codes) continue;
    const CodeScale c = ScaleOf(__reduce_max_sync(~0u, amax), LevelsOf(w.a.arithmetic.qk));
    for (int d = lane; d < w.at.dim; d += 32) to[d] = CodeOf(to[d], c.inverse);
    bias = WarpSum(bias);
    if (lane == 0) w.state.q_scale[e] = c.scale * w.a.scale, w.state.q_bias[e] = w.a.scale * bias;
  }
}

// Scores of the mean queries against the smoothed keys in the tile.
__device__ void ScoreMeans(const Work& w) {
  for (int i = int(threadIdx.x); i < w.group * kPage; i += kThreads) {
    const float* k = w.Tile() + i % kPage * w.at.stride;
    float sum = 0;
    for (int d = 0; d < w.at.dim; ++d) sum += QueryMean(w, i / kPage, d) * k[d];
    w.shared[w.at.mean + i] = sum * w.a.scale;
  }
}

// The keys in the tile become codes.
__device__ void QuantizeKeys(const Work& w, kv::CodecId codec, const std::byte* page) {
  __shared__ uint32_t amax[4];
  const QkArith qk = w.a.arithmetic.qk;
  const float* mean = KeyMean(w);
  const int dim = w.at.dim, t = int(threadIdx.x) / kEach, quarter = int(threadIdx.x) % kEach;
  const int group = qk == QkArith::kInt8Block ? 0 : t % 8 / 2;
  float* k = w.Tile() + t * w.at.stride;
  if (threadIdx.x < 4) amax[threadIdx.x] = 0;
  __syncthreads();
  uint32_t greatest = 0;
  for (int d = quarter; d < dim; d += kEach) {
    if (mean != nullptr) k[d] = __fsub_rn(k[d], mean[d]);
    greatest = max(greatest, MagnitudeBits(k[d]));
  }
  atomicMax(&amax[group], greatest);
  __syncthreads();
  if (HasQueryMean(w)) {
    ScoreMeans(w);
    __syncthreads();
  }
  CodeScale c = ScaleOf(amax[group], LevelsOf(qk));
  float scale = 0;
  if (mean == nullptr && qk != QkArith::kInt4Thread && PageCodeScale(codec, w.a.kv.page, page, &scale))
    c = {scale, scale > 1.2e-38f ? __fdiv_rn(1.0f, scale) : 0.0f};
  for (int d = quarter; d < dim; d += kEach) k[d] = CodeOf(k[d], c.inverse);
  if (quarter == 0) w.shared[w.at.k_scale + t] = c.scale;
}

// A thread has one token and kEach entries, so that a key is read once for them.
__device__ void ScoreTile(const Work& w, bool codes) {
  static_assert(kEntries * kPage == kThreads * kEach);
  const int t = int(threadIdx.x) % kPage, e0 = int(threadIdx.x) / kPage * kEach, dim = w.at.dim;
  if (e0 >= w.entries) return;
  const float* k = w.Tile() + t * w.at.stride;
  const float* q = w.Q(e0);
  float sum[kEach] = {};
  for (int d = 0; d < dim; ++d)
    for (int i = 0; i < kEach; ++i) sum[i] = __fmaf_rn(q[i * dim + d], k[d], sum[i]);
  for (int i = 0; i < kEach; ++i) {
    const int e = e0 + i;
    if (e >= w.entries) return;
    if (!codes) {
      w.Scores(e)[t] = sum[i] * w.a.scale;
      continue;
    }
    const float mean = HasQueryMean(w) ? w.shared[w.at.mean + w.GroupHead(e) * kPage + t] : 0.0f;
    w.Scores(e)[t] =
        __fmaf_rn(sum[i], w.shared[w.at.k_scale + t] * w.state.q_scale[e], mean + w.state.q_bias[e]);
  }
}

// Scores become weights relative to the running maximum, which moves. A warp an entry, two tokens a lane.
__device__ void SoftmaxTile(const Work& w, int64_t start) {
  const Arithmetic& how = w.a.arithmetic;
  const bool sas = how.softmax != SoftmaxKind::kExact;
  const SasPolynomial c = PolynomialOf(how);
  const int lane = int(threadIdx.x) % 32;
  EntryState& st = w.state;
  for (int e = int(threadIdx.x) / 32; e < w.entries; e += kWarps) {
    int begin, end;
    w.Range(e, start, &begin, &end);
    if (begin >= end) continue;
    float* p = w.Scores(e);
    const bool seen[2] = {lane >= begin && lane < end, lane + 32 >= begin && lane + 32 < end};
    const float x[2] = {seen[0] ? p[lane] : -INFINITY, seen[1] ? p[lane + 32] : -INFINITY};
    const float old = st.max[e], top = fmaxf(old, WarpMax(fmaxf(x[0], x[1]))), fix = expf(old - top);
    float total = 0, mass = 0, dropped = 0;
    for (int i = 0; i < 2; ++i) {
      float weight = 0;
      if (seen[i]) weight = sas ? SasExp(c, x[i] - top) : expf(x[i] - top);
      const bool drop = sas && seen[i] && x[i] - top < st.threshold[e];
      if (drop) mass += weight, dropped += 1, weight = 0;
      total += weight;
      p[lane + 32 * i] = weight;
    }
    total = WarpSum(total);
    if (sas) mass = WarpSum(mass), dropped = WarpSum(dropped);
    __syncwarp();
    if (lane != 0) continue;
    st.max[e] = top, st.fix[e] = fix, st.sum[e] = st.sum[e] * fix + total;
    st.dropped_mass[e] = st.dropped_mass[e] * fix + mass, st.dropped[e] += dropped;
  }
}

// P to +-119 by row and page.
__device__ void QuantizeWeights(const Work& w, int64_t start) {
  const int lane = int(threadIdx.x) % 32;
  for (int e = int(threadIdx.x) / 32; e < w.entries; e += kWarps) {
    int begin, end;
    w.Range(e, start, &begin, &end);
    if (begin >= end) continue;
    float* p = w.Scores(e);
    const CodeScale c =
        ScaleOf(__reduce_max_sync(~0u, max(MagnitudeBits(p[lane]), MagnitudeBits(p[lane + 32]))), 119);
    p[lane] = CodeOf(p[lane], c.inverse), p[lane + 32] = CodeOf(p[lane + 32], c.inverse);
    if (lane == 0) w.state.p_scale[e] = c.scale;
  }
}

// V of the tile to INT8 codes with one scale, which every v_scale gets.
__device__ void QuantizeValues(const Work& w, kv::CodecId codec, const std::byte* page) {
  __shared__ uint32_t amax;
  if (threadIdx.x == 0) amax = 0;
  __syncthreads();
  float scale = 0;
  CodeScale c;
  if (PageCodeScale(codec, w.a.kv.page, page, &scale)) {
    c = {scale, scale > 1.2e-38f ? __fdiv_rn(1.0f, scale) : 0.0f};
  } else {
    uint32_t greatest = 0;
    for (int i = int(threadIdx.x); i < kPage * w.at.dim; i += kThreads)
      greatest = max(greatest, MagnitudeBits(w.Tile()[i / w.at.dim * w.at.stride + i % w.at.dim]));
    atomicMax(&amax, greatest);
    __syncthreads();
    c = ScaleOf(amax, 127);
  }
  for (int i = int(threadIdx.x); i < kPage * w.at.dim; i += kThreads) {
    float& v = w.Tile()[i / w.at.dim * w.at.stride + i % w.at.dim];
    v = CodeOf(v, c.inverse);
  }
  for (int d = int(threadIdx.x); d < w.at.dim; d += kThreads) w.shared[w.at.v_scale + d] = c.scale;
}

// P and V in E4M3 or f16.
__device__ void RoundTile(const Work& w, const PvRounding& how) {
  for (int i = int(threadIdx.x); i < w.entries * kPage; i += kThreads) {
    float& p = w.shared[w.at.scores + i];
    p = how.Factor(how.value_max > 0 ? p * kv::kE4m3Max : p);
  }
  for (int d = int(threadIdx.x); d < w.at.dim; d += kThreads) {
    float* v = w.Tile() + d;
    float inverse = 1, scale = 1, amax = 0;
    if (how.value_max > 0) {
      for (int t = 0; t < kPage; ++t) amax = fmaxf(amax, fabsf(v[t * w.at.stride]));
      inverse = amax < 1e-30f ? 0.0f : __fdiv_rn(how.value_max, amax);
      scale = __fdiv_rn(amax, how.value_max * kv::kE4m3Max);
    }
    for (int t = 0; t < kPage; ++t) v[t * w.at.stride] = how.Factor(__fmul_rn(v[t * w.at.stride], inverse));
    w.shared[w.at.v_scale + d] = scale;
  }
}

// acc = acc * fix + weights V, the sum of a page apart where it is rounded or of integers.
__device__ void AddValues(const Work& w, int64_t start, PvArith pv) {
  const PvRounding how = RoundingOf(pv);
  for (int i = int(threadIdx.x); i < kEntries / kEach * w.at.dim; i += kThreads) {
    const int d = i % w.at.dim, e0 = i / w.at.dim * kEach;
    for (int e = e0; e < min(e0 + kEach, w.entries); ++e) {
      int begin, end;
      w.Range(e, start, &begin, &end);
      if (begin >= end) continue;
      const float *p = w.Scores(e), *v = w.Tile() + d;
      float* acc = w.Acc(e) + d;
      const float old = *acc * w.state.fix[e];
      if (IsFloat(pv)) {
        float sum = old;
        for (int t = begin; t < end; ++t) sum = __fmaf_rn(p[t], v[t * w.at.stride], sum);
        *acc = sum;
        continue;
      }
      float page = 0;
      const int step = pv == PvArith::kInt8 ? kPage : how.step;
      for (int t0 = begin / step * step; t0 < end; t0 += step) {
        float part = 0;
        for (int t = max(t0, begin); t < min(t0 + step, end); ++t)
          part = __fmaf_rn(p[t], v[t * w.at.stride], part);
        page = pv == PvArith::kInt8 ? part : how.Sum(page + part);
      }
      const float scale = w.shared[w.at.v_scale + d] * (pv == PvArith::kInt8 ? w.state.p_scale[e] : 1.0f);
      *acc = __fmaf_rn(page, scale, old);
    }
  }
}

__device__ void AttendSealed(const Work& w, int p) {
  const PagedKv& kv = w.a.kv;
  const Arithmetic& how = w.a.arithmetic;
  const int64_t start = int64_t{p} * kPage;
  const int page = PageAt(kv, w.s, p);
  const SealedPages k = SealedPagesOf(kv, kv.k, w.s.seq, w.head),
                    v = SealedPagesOf(kv, kv.v, w.s.seq, w.head);
  const std::byte *k_page = k.At(page), *v_page = v.At(page);
  LoadSealed(k.codec, kv.page, k_page, w.Tile(), w.at.stride);
  __syncthreads();
  if (IsInteger(how.qk)) {
    QuantizeKeys(w, k.codec, k_page);
    __syncthreads();
  }
  ScoreTile(w, IsInteger(how.qk));
  __syncthreads();
  LoadSealed(v.codec, kv.page, v_page, w.Tile(), w.at.stride);
  SoftmaxTile(w, start);
  __syncthreads();
  if (how.pv == PvArith::kInt8) {
    QuantizeWeights(w, start);
    QuantizeValues(w, v.codec, v_page);
    __syncthreads();
  } else if (!IsFloat(how.pv)) {
    RoundTile(w, RoundingOf(how.pv));
    __syncthreads();
  }
  AddValues(w, start, how.pv);
  __syncthreads();
}

// The page of the queries, raw and in f32.
__device__ void AttendOpen(const Work& w) {
  const PagedKv& kv = w.a.kv;
  const int64_t start = int64_t{w.s.position} / kPage * kPage;
  const int tokens = int(w.Position(w.entries - 1) - start) + 1;
  LoadQueries(w, false);
  LoadOpen(kv, kv.k.raw, OpenPage(kv, kv.k, w.s.raw_slot, w.head), tokens, w.Tile(), w.at.stride);
  __syncthreads();
  ScoreTile(w, false);
  __syncthreads();
  LoadOpen(kv, kv.v.raw, OpenPage(kv, kv.v, w.s.raw_slot, w.head), tokens, w.Tile(), w.at.stride);
  SoftmaxTile(w, start);
  __syncthreads();
  AddValues(w, start, PvArith::kF32);
  __syncthreads();
}

__device__ void Start(const Work& w) {
  const Arithmetic& how = w.a.arithmetic;
  for (int i = int(threadIdx.x); i < kEntries * w.at.dim; i += kThreads) w.shared[w.at.acc + i] = 0;
  for (int i = int(threadIdx.x); i < kEntries * w.at.dim; i += kThreads) w.shared[w.at.q + i] = 0;
  const int e = int(threadIdx.x);
  if (e < kEntries) {
    const int64_t sees = w.Position(e) + 1, length = w.a.window > 0 && w.a.window < sees ? w.a.window : sees;
    w.state.max[e] = -INFINITY;
    w.state.sum[e] = w.state.dropped_mass[e] = w.state.dropped[e] = 0;
    w.state.threshold[e] =
        how.softmax == SoftmaxKind::kSas2 ? Sas2Threshold(how.sas.eps, length) : how.sas.threshold;
  }
  __syncthreads();
}

__device__ void Finish(const Work& w) {
  for (int i = int(threadIdx.x); i < w.entries * w.at.dim; i += kThreads) {
    const int e = i / w.at.dim, d = i % w.at.dim;
    w.a.out[(w.s.row + w.Row(e)) * w.a.out_stride + (w.head * w.group + w.GroupHead(e)) * w.at.dim + d] =
        w.Acc(e)[d] / w.state.sum[e];
  }
  const int e = int(threadIdx.x);
  if (w.a.arithmetic.softmax == SoftmaxKind::kExact || e >= w.entries) return;
  const float mass = w.state.dropped_mass[e], share = mass / (w.state.sum[e] + mass);
  atomicAdd(&w.a.counters->rows, 1ull);
  atomicAdd(&w.a.counters->dropped, static_cast<unsigned long long>(w.state.dropped[e]));
  if (share > 0)  // false for NaN
    atomicAdd(&w.a.counters->dropped_mass, static_cast<unsigned long long>(double(share) * 4294967296.0));
}

__global__ void __launch_bounds__(kThreads) PageAttentionKernel(const __grid_constant__ PageAttentionArgs a) {
  extern __shared__ float shared[];
  __shared__ EntryState state;
  const KvSegment s = a.kv.segments[gridDim.z - 1 - blockIdx.z];  // late segments see more: longest first
  const int group = a.heads / a.kv.kv_heads,
            first = (a.skip_dense ? s.dense_rows : 0) * group + int(blockIdx.x) * kEntries;
  const int all = (a.selecting ? s.dense_rows : s.rows) * group;
  if (first >= all) return;
  const Work w{a,
               s,
               int(blockIdx.y),
               group,
               first,
               min(kEntries, all - first),
               Layout(a.kv.page.head_dim, group, true),
               shared,
               state};
  Start(w);
  if (s.pages > 0) LoadQueries(w, IsInteger(a.arithmetic.qk));
  // Pages out of every row's window are passed over.
  const int64_t seen = a.window > 0 ? max(int64_t{0}, w.Position(0) - a.window + 1) : 0;
  for (int p = int(seen / kPage); p < s.pages; ++p) AttendSealed(w, p);
  AttendOpen(w);
  Finish(w);
}

// Channel i of the group's queries of segments [begin, end), which lie in one page: on top of the open
// record's where the page was begun before, and into the page's own record where it is full.
__device__ float SumPage(const PageAttentionArgs& a, int offset, int head, int i, int begin, int end) {
  const PagedKv& kv = a.kv;
  const int64_t channel = int64_t{head} * (a.heads / kv.kv_heads) * kv.page.head_dim + i;
  const KvSegment first = kv.segments[begin];
  float sum = 0;
  if (first.position % kPage != 0)
    sum = reinterpret_cast<const float*>(OpenRecord(kv, first.seq, head) + offset)[i];
  for (int n = begin; n < end; ++n) {
    const KvSegment s = kv.segments[n];
#pragma unroll 8
    for (int row = s.row; row < s.row + s.rows; ++row) sum = __fadd_rn(sum, a.q[row * a.q_stride + channel]);
    if (s.seal_page >= 0) reinterpret_cast<float*>(PageRecord(kv, s.seal_page, head) + offset)[i] = sum;
  }
  return sum;
}

// A block a page and KV head; the one of a sequence's first page has its last as well, whose sum replaces
// what the first one reads.
__global__ void SumQueriesKernel(const __grid_constant__ PageAttentionArgs a, int offset) {
  const PagedKv& kv = a.kv;
  const int begin = int(blockIdx.x), head = int(blockIdx.y), i = int(blockIdx.z * blockDim.x + threadIdx.x);
  const int seq = kv.segments[begin].seq;
  const bool first = begin == 0 || kv.segments[begin - 1].seq != seq;
  const auto opens = [&kv](int n) { return kv.segments[n].position % kPage == 0; };
  if (i >= a.heads / kv.kv_heads * kv.page.head_dim || (!first && !opens(begin))) return;
  const auto of_seq = [&kv, seq](int n) { return n < kv.segment_count && kv.segments[n].seq == seq; };
  int end = begin + 1;
  while (of_seq(end) && !opens(end)) ++end;
  if (!first && !of_seq(end)) return;
  float sum = SumPage(a, offset, head, i, begin, end);
  if (!first) return;
  if (of_seq(end)) {
    int last = end;
    while (of_seq(end)) last = opens(end) ? end : last, ++end;
    sum = SumPage(a, offset, head, i, last, end);
  }
  reinterpret_cast<float*>(OpenRecord(kv, seq, head) + offset)[i] = sum;
}

}  // namespace

Launch PageAttention(const PageAttentionArgs& a, Stream stream) {
  const int group = a.heads / a.kv.kv_heads;
  if (a.kv.page.head_dim > kMaxAttentionHeadDim || group > kMaxAttentionGroup)
    return Refused("attention: head_dim must be at most 256, heads at most 64 times kv_heads");
  const int shared = Layout(a.kv.page.head_dim, group, true).total * 4;
  if (const cudaError_t error = AllowShared(&PageAttentionKernel, shared); error != cudaSuccess)
    return {int(error), "attention: shared memory"};
  const int blocks = (a.most_rows * group + kEntries - 1) / kEntries;
  const dim3 grid(unsigned(blocks), unsigned(a.kv.kv_heads), unsigned(a.kv.segment_count));
  PageAttentionKernel<<<grid, kThreads, size_t(shared), stream>>>(a);
  return Launched("attention over pages");
}

Launch SumQueries(const PageAttentionArgs& a, Stream stream) {
  const int count = a.heads / a.kv.kv_heads * a.kv.page.head_dim;
  const dim3 grid(unsigned(a.kv.segment_count), unsigned(a.kv.kv_heads), unsigned(count + 255) / 256);
  SumQueriesKernel<<<grid, 256, 0, stream>>>(a, a.means.q_record);
  return Launched("sums of queries");
}

}  // namespace nibble::cuda
