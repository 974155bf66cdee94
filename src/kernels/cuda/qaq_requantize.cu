// SPDX-License-Identifier: Apache-2.0
// New widths for the pages of a sequence that completed one, and the page itself: a block has K or V of one
// KV head of one sequence. Compiled without contraction, as the CPU's code is.
#include "kernels/cuda/launched.cuh"
#include "kernels/cuda/pages.cuh"
#include "kernels/cuda/qaq.h"
#include "quant/kv/qaq_update.h"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;
using Sum = unsigned long long;

struct Shared {
  kv::QaqBound bound;
  int resident, active;  // planes of all older pages
  Sum least;             // bits of a need, then the page
  uint32_t half_range;   // bits
  int first_outlier[kv::kPageTokens + 1];
  QaqUsage usage;
};

struct Work {
  const QaqArgs& a;
  const KvSegment& s;
  int head;
  bool is_v;
  const QaqSide& side;
  kv::QaqParams params;
  SealedPages pages;
  Shared& shared;
  float* rows;  // [tokens, head_dim + 1] of the page that is sealed

  __device__ kv::QaqHeader* Header(int p) const {
    return reinterpret_cast<kv::QaqHeader*>(pages.At(PageAt(a.kv, s, p)));
  }
  __device__ int Stride() const { return a.kv.page.head_dim + 1; }
};

__device__ void Update(const Work& w) {
  for (int p = int(threadIdx.x); p < w.s.pages; p += kThreads) {
    kv::QaqHeader h = *w.Header(p);
    const int wanted = kv::QaqWantedWidth(w.params, w.shared.bound, w.is_v, &h), before = h.width;
    const int reached = wanted < h.resident ? wanted : h.resident;
    if (wanted < before) atomicAdd(&w.shared.usage.narrowings, Sum{1});
    if (wanted > before && reached < wanted) atomicAdd(&w.shared.usage.starved, Sum{1});
    if (wanted > before && reached > before) atomicAdd(&w.shared.usage.widenings, Sum{1});
    h.width = uint8_t(wanted > before ? reached : wanted);
    *w.Header(p) = h;
    atomicAdd(&w.shared.resident, int(h.resident)), atomicAdd(&w.shared.active, int(h.width));
  }
  __syncthreads();
}

// Planes above the widths stay while the sequence's share has room for them; the page that needs them least
// gives first, of equal ones the first. REQUIRES needs that are not negative: their bits order as they do.
__device__ void FreeSpare(const Work& w) {
  const auto budget = int64_t(std::floor(double(w.params.room) * w.s.pages));
  Shared& shared = w.shared;
  if (shared.active >= budget) {  // all of them go
    for (int p = int(threadIdx.x); p < w.s.pages; p += kThreads) w.Header(p)->resident = w.Header(p)->width;
    __syncthreads();
    return;
  }
  while (shared.resident > budget) {
    if (threadIdx.x == 0) shared.least = ~Sum{0};
    __syncthreads();
    for (int p = int(threadIdx.x); p < w.s.pages; p += kThreads) {
      const kv::QaqHeader* h = w.Header(p);
      if (h->resident > h->width) atomicMin(&shared.least, Sum{__float_as_uint(h->need)} << 32 | unsigned(p));
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      kv::QaqHeader* h = w.Header(int(shared.least & 0xffffffffu));
      const int spare = h->resident - h->width, over = shared.resident - int(budget);
      const int gone = spare < over ? spare : over;
      h->resident = uint8_t(h->resident - gone);
      shared.resident -= gone;
    }
    __syncthreads();
  }
}

// Which of a token's values are stored exactly; they go behind those of the tokens before it.
struct TokenFit {
  kv::QaqRange range;
  kv::OutlierCounts count;
};
__device__ __noinline__ TokenFit FitToken(const Work& w, const float* x) {
  TokenFit fit;
  const int dim = w.a.kv.page.head_dim;
  if (!kv::QaqFits(x, dim)) return fit;
  fit.count = kv::QaqCountOutliers(w.params, x, dim, w.shared.bound.sigma);
  const kv::QaqExtremes e(x, dim, fit.count.low, fit.count.high);
  fit.range = kv::QaqFit(x, dim, e, fit.count.low, fit.count.high);
  return fit;
}
__device__ __noinline__ void StoreOutliers(const Work& w, const float* x, int token, kv::OutlierCounts count,
                                           std::byte* cells) {
  const kv::QaqExtremes e(x, w.a.kv.page.head_dim, count.low, count.high);
  for (int i = 0; i < count.low + count.high; ++i) {
    const int channel = i < count.low ? e.low[i] : e.high[i - count.low];
    const int at = w.shared.first_outlier[token] + i;
    std::byte* to = cells + at / kv::kQaqCellOutliers * kv::kQaqCellBytes + at % kv::kQaqCellOutliers * 4;
    kv::StoreU16(to, uint16_t(token << 10 | channel));
    kv::StoreU16(to + 2, FloatToHalf(x[channel]));
  }
}

// The header of a page that was just sealed.
__device__ kv::QaqHeader FreshHeader(const Work& w, const std::byte* page, int outliers) {
  const int plane_bytes = kv::QaqPlaneBytes(w.a.kv.page);
  kv::QaqHeader h = {};
  h.planes_at = w.side.planes + w.head * w.side.plane_capacity * plane_bytes - page;
  h.cells_at = w.side.cells + w.head * w.side.cell_capacity * kv::kQaqCellBytes - page;
  h.half_range = __uint_as_float(w.shared.half_range);
  for (int b = 0; b < w.params.max; ++b) h.plane[b] = uint32_t(w.s.seal_page * w.side.most_planes + b);
  h.first_cell = uint32_t(w.s.seal_page * w.side.most_cells);
  h.outliers = uint16_t(outliers);
  h.width = h.resident = uint8_t(w.params.max);
  return h;
}

__device__ void StoreCodes(const Work& w, std::byte* page, std::byte* planes) {
  const kv::PageShape shape = w.a.kv.page;
  const int eights = shape.head_dim / 8, plane_bytes = kv::QaqPlaneBytes(shape);
  for (int i = int(threadIdx.x); i < shape.tokens * eights; i += kThreads) {
    const float* x = w.rows + i / eights * w.Stride() + i % eights * 8;
    const kv::QaqRange r = kv::LoadQaqRange(shape, page, i / eights);
    const float min = HalfToFloat(r.min), half = HalfToFloat(r.half);
    int code[8];
    for (int j = 0; j < 8; ++j) code[j] = kv::QaqCode8(x[j], min, half);
    for (int b = 0; b < w.params.max; ++b) {
      int bits = 0;
      for (int j = 0; j < 8; ++j) bits |= (code[j] >> (kv::kQaqPlanes - 1 - b) & 1) << j;
      planes[b * plane_bytes + i] = std::byte(bits);
    }
  }
}

__device__ void Seal(const Work& w) {
  const kv::PageShape shape = w.a.kv.page;
  const PagedSide& paged = w.is_v ? w.a.kv.v : w.a.kv.k;
  std::byte* page = w.pages.At(w.s.seal_page);
  std::byte* cells =
      w.side.cells +
      (w.head * w.side.cell_capacity + int64_t{w.s.seal_page} * w.side.most_cells) * kv::kQaqCellBytes;
  std::byte* planes =
      w.side.planes + (w.head * w.side.plane_capacity + int64_t{w.s.seal_page} * w.side.most_planes) *
                          kv::QaqPlaneBytes(shape);
  LoadOpen(w.a.kv, paged.raw, OpenPage(w.a.kv, paged, w.s.raw_slot, w.head), shape.tokens, w.rows,
           w.Stride());
  for (int i = int(threadIdx.x); i < w.side.most_cells * kv::kQaqCellBytes / 4; i += kThreads)
    reinterpret_cast<uint32_t*>(cells)[i] = 0;
  __syncthreads();
  const int t = int(threadIdx.x);
  TokenFit fit;
  if (t < shape.tokens) {
    fit = FitToken(w, w.rows + t * w.Stride());
    kv::StoreQaqRange(shape, page, t, fit.range);
    const float half = HalfToFloat(fit.range.half);
    if (half > 0) atomicMax(&w.shared.half_range, __float_as_uint(half));
    w.shared.first_outlier[t + 1] = fit.count.low + fit.count.high;
  }
  __syncthreads();
  if (t == 0)
    for (int i = 0; i < shape.tokens; ++i) w.shared.first_outlier[i + 1] += w.shared.first_outlier[i];
  __syncthreads();
  const int outliers = w.shared.first_outlier[shape.tokens];
  if (t < shape.tokens) StoreOutliers(w, w.rows + t * w.Stride(), t, fit.count, cells);
  for (int i = t; i + 1 < kv::QaqCells(outliers); i += kThreads)
    reinterpret_cast<uint32_t*>(cells + i * kv::kQaqCellBytes)[kv::kQaqCellOutliers] =
        uint32_t(w.s.seal_page * w.side.most_cells + i + 1);
  StoreCodes(w, page, planes);
  if (t == 0) *reinterpret_cast<kv::QaqHeader*>(page) = FreshHeader(w, page, outliers);
  __syncthreads();
}

__device__ void Count(const Work& w) {
  const kv::PageShape shape = w.a.kv.page;
  const int values = shape.tokens * shape.head_dim;
  QaqUsage& usage = w.shared.usage;
  for (int p = int(threadIdx.x); p <= w.s.pages; p += kThreads) {
    const auto* h =
        p < w.s.pages ? w.Header(p) : reinterpret_cast<const kv::QaqHeader*>(w.pages.At(w.s.seal_page));
    const int bytes = kv::QaqRecordBytes(shape) + h->resident * kv::QaqPlaneBytes(shape) +
                      kv::QaqCells(h->outliers) * kv::kQaqCellBytes;
    atomicAdd(&usage.values, Sum(values));
    atomicAdd(&usage.bits, Sum(8 * bytes));
    atomicAdd(&usage.paper_bits,
              Sum(h->width * (values - h->outliers) + 16 * h->outliers + 32 * shape.tokens));
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  if (!w.is_v) usage.bits += 8 * sizeof(kv::NormHistogram);
  QaqUsage& to = w.a.usage[w.is_v ? 1 : 0];
  atomicAdd(&to.values, usage.values), atomicAdd(&to.bits, usage.bits);
  atomicAdd(&to.paper_bits, usage.paper_bits), atomicAdd(&to.narrowings, usage.narrowings);
  atomicAdd(&to.widenings, usage.widenings), atomicAdd(&to.starved, usage.starved);
}

__global__ void __launch_bounds__(kThreads) RequantizeKernel(const __grid_constant__ QaqArgs a) {
  extern __shared__ float rows[];
  __shared__ Shared shared;
  const KvSegment s = a.kv.segments[blockIdx.y];
  const bool is_v = blockIdx.x % 2 == 1;
  const QaqSide& side = is_v ? a.v : a.k;
  if (s.seal_page < 0 || side.params == nullptr) return;
  const int head = int(blockIdx.x) / 2;
  const Work w{a,
               s,
               head,
               is_v,
               side,
               side.params[head],
               SealedPagesOf(a.kv, is_v ? a.kv.v : a.kv.k, s.seq, head),
               shared,
               rows};
  if (threadIdx.x == 0) {
    const int64_t tokens = int64_t{s.position} + s.rows;
    const double seen = double(a.window > 0 && a.window < tokens ? a.window : tokens);
    shared.bound =
        is_v ? kv::QaqValueBound(w.params, seen)
             : kv::QaqKeyBound(w.params, seen, a.norms[int64_t{s.seq} * a.kv.kv_heads + head], a.scale);
    shared.resident = shared.active = shared.first_outlier[0] = 0;
    shared.half_range = 0;
    shared.usage = {};
  }
  __syncthreads();
  Update(w);
  FreeSpare(w);
  Seal(w);
  Count(w);
}

}  // namespace

Launch QaqRequantize(const QaqArgs& a, Stream stream) {
  const int shared = a.kv.page.tokens * (a.kv.page.head_dim + 1) * 4;
  if (const cudaError_t error = AllowShared(&RequantizeKernel, shared); error != cudaSuccess)
    return {int(error), "qaq: new widths"};
  const dim3 grid(2 * unsigned(a.kv.kv_heads), unsigned(a.kv.segment_count));
  RequantizeKernel<<<grid, kThreads, size_t(shared), stream>>>(a);
  return Launched("qaq: new widths");
}

}  // namespace nibble::cuda
