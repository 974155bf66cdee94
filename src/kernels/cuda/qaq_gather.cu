// SPDX-License-Identifier: Apache-2.0
// What the queries of a wave say of sealed pages: their norms, and the greatest weight x half range that they
// give a token of a page of V. Weights need the maximum and sum over all pages: the first kernel finds those
// of every page by itself, the second brings them together, pages in order.
#include "kernels/cuda/launched.cuh"
#include "kernels/cuda/pages.cuh"
#include "kernels/cuda/qaq.h"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32, kEntries = 16, kEach = 4, kPage = kv::kPageTokens;
constexpr int kMostParts = 16;  // blocks that share the pages of a segment and KV head

// Of one entry (a query row and head) in one page: the greatest score, the sum of exp(score - it), and the
// greatest exp(score - it) x half range. Once brought together, `max` and `sum` of the open page are those of
// all pages.
struct PagePart {
  float max, sum, weighed, unused;
};

struct Entries {            // of a segment and KV head
  int begin, count, group;  // rows from `begin` on
  PagePart* parts;          // [count, max_pages + 1]

  __device__ Entries(const QaqArgs& a, const KvSegment& s, int head) : group(a.heads / a.kv.kv_heads) {
    const int window = a.v.params != nullptr ? a.v.params[head].window : 0;
    begin = max(0, kPage - window - s.position % kPage);
    count = a.v.params == nullptr || s.pages == 0 ? 0 : max(0, s.rows - begin) * group;
    parts = static_cast<PagePart*>(a.workspace) +
            (int64_t{blockIdx.x} * a.kv.kv_heads + head) * a.most_rows * group * (a.max_pages + 1);
  }
  __device__ int64_t Position(const KvSegment& s, int e) const {
    return int64_t{s.position} + begin + e / group;
  }
  __device__ PagePart& Part(const QaqArgs& a, int e, int page) const {
    return parts[int64_t{e} * (a.max_pages + 1) + page];
  }
};

__device__ float WarpMax(float x) {  // NaN is passed over
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
  return x;
}
template <class T>
__device__ T WarpSum(T x) {
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

struct WeighShared {  // in floats
  int stride, q, scores, half, total;
  __host__ __device__ explicit WeighShared(int dim)
      : stride(dim + 1),
        q(kPage * stride),
        scores(q + kEntries * dim),
        half(scores + kEntries * kPage),
        total(half + kPage) {}
};

// A warp an entry, two tokens a lane.
__device__ void WeighPage(const QaqArgs& a, const KvSegment& s, const Entries& entries, int e0, int page,
                          const float* scores, const float* half) {
  const int lane = int(threadIdx.x) % 32;
  for (int i = int(threadIdx.x) / 32; i < kEntries && e0 + i < entries.count; i += kWarps) {
    const int64_t at = entries.Position(s, e0 + i), start = int64_t{page} * kPage;
    const int64_t first = a.window > 0 ? at - a.window + 1 : 0;
    float x[2], sum = 0, weighed = 0;
    for (int j = 0; j < 2; ++j) {
      const int64_t token = start + lane + 32 * j;
      x[j] = token >= first && token <= at ? scores[i * kPage + lane + 32 * j] : -INFINITY;
    }
    const float top = WarpMax(fmaxf(x[0], x[1]));
    for (int j = 0; j < 2; ++j) {
      const float weight = x[j] == -INFINITY ? 0.0f : expf(x[j] - top);
      sum += weight;
      weighed = fmaxf(weighed, weight * half[lane + 32 * j]);
    }
    sum = WarpSum(sum), weighed = WarpMax(weighed);
    if (lane == 0) entries.Part(a, e0 + i, page) = {top, sum, weighed, 0};
  }
}

// Blocks: a segment, a KV head, every gridDim.z-th page; the open page is the one behind the sealed ones.
__global__ void __launch_bounds__(kThreads) WeighKernel(const __grid_constant__ QaqArgs a) {
  extern __shared__ float shared[];
  const KvSegment s = a.kv.segments[blockIdx.x];
  const int head = int(blockIdx.y), dim = a.kv.page.head_dim;
  const Entries entries(a, s, head);
  const WeighShared at(dim);
  const int t = int(threadIdx.x) % kPage, e = int(threadIdx.x) / kPage * kEach;
  static_assert(kEntries * kPage == kThreads * kEach);
  for (int page = int(blockIdx.z); entries.count > 0 && page <= s.pages; page += int(gridDim.z)) {
    __syncthreads();
    if (page < s.pages) {
      const int id = PageAt(a.kv, s, page);
      const SealedPages k = SealedPagesOf(a.kv, a.kv.k, s.seq, head);
      LoadSealed(k.codec, a.kv.page, k.At(id), shared, at.stride);
      const std::byte* v = SealedPagesOf(a.kv, a.kv.v, s.seq, head).At(id);
      if (threadIdx.x < kPage)
        shared[at.half + threadIdx.x] = HalfToFloat(kv::LoadQaqRange(a.kv.page, v, int(threadIdx.x)).half);
    } else {
      const int tokens = s.position % kPage + s.rows;
      LoadOpen(a.kv, a.kv.k.raw, OpenPage(a.kv, a.kv.k, s.raw_slot, head), tokens, shared, at.stride);
      if (threadIdx.x < kPage) shared[at.half + threadIdx.x] = 0;
    }
    for (int e0 = 0; e0 < entries.count; e0 += kEntries) {
      __syncthreads();
      for (int i = int(threadIdx.x); i < kEntries * dim; i += kThreads) {
        const int entry = e0 + i / dim;
        shared[at.q + i] = entry < entries.count
                               ? a.q[(s.row + entries.begin + entry / entries.group) * a.q_stride +
                                     (head * entries.group + entry % entries.group) * dim + i % dim]
                               : 0.0f;
      }
      __syncthreads();
      float sum[kEach] = {};
      const float *k = shared + t * at.stride, *q = shared + at.q + e * dim;
      for (int d = 0; e0 + e < entries.count && d < dim; ++d)
        for (int i = 0; i < kEach; ++i) sum[i] = __fmaf_rn(q[i * dim + d], k[d], sum[i]);
      for (int i = 0; i < kEach; ++i) shared[at.scores + (e + i) * kPage + t] = sum[i] * a.scale;
      __syncthreads();
      WeighPage(a, s, entries, e0, page, shared + at.scores, shared + at.half);
    }
  }
}

// The greatest maximum and the sum of a segment's entries, then what every page of V was given.
__device__ void Merge(const QaqArgs& a, const KvSegment& s, const Entries& entries, int head) {
  const int lane = int(threadIdx.x) % 32;
  for (int e = int(threadIdx.x) / 32; e < entries.count; e += kWarps) {
    float top = -INFINITY, sum = 0;
    for (int p = lane; p <= s.pages; p += 32) top = fmaxf(top, entries.Part(a, e, p).max);
    top = WarpMax(top);
    for (int p = lane; p <= s.pages; p += 32) {
      const PagePart part = entries.Part(a, e, p);
      if (part.sum > 0) sum += part.sum * expf(part.max - top);
    }
    sum = WarpSum(sum);
    __syncwarp();
    if (lane == 0) entries.Part(a, e, s.pages) = {top, sum, 0, 0};
  }
  __syncthreads();
  const SealedPages v = SealedPagesOf(a.kv, a.kv.v, s.seq, head);
  for (int p = int(threadIdx.x); p < s.pages; p += kThreads) {
    float greatest = 0;
    for (int e = 0; e < entries.count; ++e) {
      const PagePart part = entries.Part(a, e, p), all = entries.Part(a, e, s.pages);
      if (part.weighed > 0)
        greatest = fmaxf(greatest, __fdiv_rn(part.weighed * expf(part.max - all.max), all.sum));
    }
    auto* h = reinterpret_cast<kv::QaqHeader*>(v.At(PageAt(a.kv, s, p)));
    h->fresh = fmaxf(h->fresh, greatest);
  }
}

// Squared norms of all queries, as the scores see them. A warp a query.
__device__ void AddNorms(const QaqArgs& a, const KvSegment& s, int head, uint32_t* count) {
  const int lane = int(threadIdx.x) % 32, group = a.heads / a.kv.kv_heads, dim = a.kv.page.head_dim;
  for (int i = int(threadIdx.x) / 32; i < s.rows * group; i += kWarps) {
    const float* q = a.q + (s.row + i / group) * a.q_stride + (head * group + i % group) * dim;
    double norm2 = 0;
    for (int d = lane; d < dim; d += 32) norm2 += double(q[d]) * double(q[d]);
    norm2 = WarpSum(norm2);
    if (lane == 0) atomicAdd(count + kv::NormHistogram::BinOf(norm2 * double(a.scale) * double(a.scale)), 1u);
  }
}

// What each row from dense_rows on reads of the pages of QAQ when it is a decode step by itself.
__device__ void CountBytes(const QaqArgs& a, const KvSegment& s, int head) {
  const kv::PageShape shape = a.kv.page;
  unsigned long long bytes = 0;
  for (const bool is_v : {false, true}) {
    const QaqSide& side = is_v ? a.v : a.k;
    if (side.params == nullptr) continue;
    const SealedPages pages = SealedPagesOf(a.kv, is_v ? a.kv.v : a.kv.k, s.seq, head);
    for (int p = int(threadIdx.x); p < s.pages; p += kThreads) {
      const auto* h = reinterpret_cast<const kv::QaqHeader*>(pages.At(PageAt(a.kv, s, p)));
      const int64_t page = kv::QaqRecordBytes(shape) + int64_t{h->width} * kv::QaqPlaneBytes(shape) +
                           int64_t{kv::QaqCells(h->outliers)} * kv::kQaqCellBytes;
      // A page is out of the window of rows from this position on.
      const int64_t last = a.window > 0 ? int64_t{p + 1} * kPage + a.window - 2 : INT64_MAX / 2;
      const int64_t rows = min(int64_t{s.rows}, last - s.position + 1) - s.dense_rows;
      if (rows > 0) bytes += static_cast<unsigned long long>(rows * page);
    }
  }
  bytes = WarpSum(bytes);
  if (threadIdx.x % 32 == 0 && bytes > 0) atomicAdd(a.bytes_read, bytes);
}

__global__ void __launch_bounds__(kThreads) GatherKernel(const __grid_constant__ QaqArgs a) {
  const KvSegment s = a.kv.segments[blockIdx.x];
  const int head = int(blockIdx.y);
  uint32_t* count = a.norms[int64_t{s.seq} * a.kv.kv_heads + head].count;
  if (s.position == 0)
    for (int i = int(threadIdx.x); i < kv::NormHistogram::kBins; i += kThreads) count[i] = 0;
  __syncthreads();
  if (a.k.params != nullptr) AddNorms(a, s, head, count);
  if (s.dense_rows < s.rows) CountBytes(a, s, head);
  const Entries entries(a, s, head);
  if (entries.count > 0) Merge(a, s, entries, head);
}

}  // namespace

int64_t QaqWorkspaceBytes(const QaqArgs& a) {
  return int64_t{a.kv.segment_count} * a.heads * a.most_rows * (a.max_pages + 1) * int64_t{sizeof(PagePart)};
}

Launch QaqGather(const QaqArgs& a, bool weighs, Stream stream) {
  const unsigned segments = unsigned(a.kv.segment_count), heads = unsigned(a.kv.kv_heads);
  if (weighs && a.v.params != nullptr) {
    const int shared = WeighShared(a.kv.page.head_dim).total * 4;
    if (const cudaError_t error = AllowShared(&WeighKernel, shared); error != cudaSuccess)
      return {int(error), "qaq: weights of tokens"};
    const int parts = a.max_pages + 1 < kMostParts ? a.max_pages + 1 : kMostParts;
    WeighKernel<<<dim3(segments, heads, unsigned(parts)), kThreads, size_t(shared), stream>>>(a);
    if (const Launch launch = Launched("qaq: weights of tokens"); !launch.ok()) return launch;
  }
  GatherKernel<<<dim3(segments, heads), kThreads, 0, stream>>>(a);
  return Launched("qaq: what queries say of pages");
}

}  // namespace nibble::cuda
