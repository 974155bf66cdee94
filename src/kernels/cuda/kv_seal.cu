// SPDX-License-Identifier: Apache-2.0
// Floor 4. Full pages through their codec: one block a page, one kernel a codec, so that none pays for the
// stack of another. Compiled without contraction, as the CPU's encoders are: rounding is part of a format.
#include "kernels/cuda/kv_append.h"
#include "kernels/cuda/launched.cuh"
#include "kernels/cuda/pages.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 64;

template <class C>
__global__ void __launch_bounds__(kThreads) SealKernel(PagedKv kv, bool only_v) {
  extern __shared__ float rows[];  // [tokens, head_dim]
  const PagedSide& side = only_v || blockIdx.z == 1 ? kv.v : kv.k;
  const KvSegment s = kv.segments[blockIdx.x];
  if (s.seal_page < 0) return;
  const int head = int(blockIdx.y), t = int(threadIdx.x);
  const SealedPages pages = SealedPagesOf(kv, side, s.seq, head);
  if (pages.codec != C::kId) return;  // the other width's launch has it
  const std::byte* raw = OpenPage(kv, side, s.raw_slot, head);
  std::byte* page = pages.At(s.seal_page);
  if constexpr (kv::HasInt8Codes<C>) {
    if (kv.open == kv::Tail::kInt8) {
      const bool broken = kv::Int8Tail::Broken(kv.page, raw);
      for (int part = t; part < C::Parts(kv.page); part += kThreads)
        kv::Int8Tail::SealPart<C>(kv.page, broken, raw, part, page);
      return;
    }
  }
  LoadOpen(kv, C::kRaw, raw, kv.page.tokens, rows, kv.page.head_dim);
  __syncthreads();
  if constexpr (kv::HasParts<C>) {
    const auto prepared = C::Prepare(kv.page, rows);
    for (int part = t; part < C::Parts(kv.page); part += kThreads)
      C::EncodePart(kv.page, prepared, rows, part, page);
  } else if (t == 0) {
    C::EncodePage(kv.page, rows, page);
  }
}

__global__ void MeanKernel(PagedKv kv, int mean) {
  const KvSegment s = kv.segments[blockIdx.x];
  if (s.seal_page < 0 || s.pages > 0) return;
  const int head = int(blockIdx.y);
  const std::byte* raw = OpenPage(kv, kv.k, s.raw_slot, head);
  float* to = reinterpret_cast<float*>(OpenRecord(kv, s.seq, head) + mean);
  for (int d = int(threadIdx.x); d < kv.page.head_dim; d += kThreads) {
    float sum = 0;
    for (int t = 0; t < kv.page.tokens; ++t) sum += OpenElement(kv, kv.k.raw, raw, t, d);
    to[d] = sum / float(kv.page.tokens);
  }
}

// HeadPriority of quant/kv/head_mix.h: gap * population std of the channels' gaps, in its order of sums.
__global__ void PriorityKernel(PagedKv kv, PagedSide side) {
  extern __shared__ float rows[];  // [tokens, head_dim]
  const KvSegment s = kv.segments[blockIdx.x];
  if (s.seal_page < 0 || s.pages > 0) return;
  const int head = int(blockIdx.y), dim = kv.page.head_dim;
  LoadOpen(kv, side.raw, OpenPage(kv, side, s.raw_slot, head), kv.page.tokens, rows, dim);
  __syncthreads();
  for (int d = int(threadIdx.x); d < dim; d += kThreads) {  // least and greatest of a channel take its place
    float lo = INFINITY, hi = -INFINITY;
    bool finite = true;
    for (int t = 0; t < kv.page.tokens; ++t) {
      const float x = rows[t * dim + d];
      finite &= isfinite(x);
      lo = fminf(lo, x), hi = fmaxf(hi, x);
    }
    rows[d] = finite ? lo : NAN, rows[dim + d] = hi;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  double least = INFINITY, greatest = -INFINITY, mean = 0, variance = 0;
  bool finite = true;
  const auto gap = [&](int d) { return double(rows[dim + d]) - double(rows[d]); };
  for (int d = 0; d < dim; ++d) {
    finite &= !isnan(rows[d]);
    least = fmin(least, double(rows[d])), greatest = fmax(greatest, double(rows[dim + d]));
    mean += gap(d);
  }
  mean /= dim;
  for (int d = 0; d < dim; ++d) variance += (gap(d) - mean) * (gap(d) - mean) / dim;
  side.places[int64_t{s.seq} * kv.kv_heads + head].priority =
      finite ? (greatest - least) * sqrt(variance) : double(INFINITY);
}

// PlaceByPriority and Place. One thread a sequence.
__global__ void PlaceKernel(PagedKv kv, PagedSide side, int two_bit, const uint8_t* planned) {
  const KvSegment s = kv.segments[blockIdx.x];
  if (s.seal_page < 0 || s.pages > 0) return;
  kv::HeadPlace* heads = side.places + int64_t{s.seq} * kv.kv_heads;
  int before = 0;
  for (int h = 0; h < kv.kv_heads; ++h) {
    int lower = 0;  // heads that come before it on the way to 2 bits
    for (int i = 0; i < kv.kv_heads && planned == nullptr; ++i)
      lower += heads[i].priority < heads[h].priority || (heads[i].priority == heads[h].priority && i > h);
    const bool two = planned != nullptr ? planned[h] != 0 : lower < two_bit;
    heads[h].two_bit = two, heads[h].two_bit_before = before;
    before += two;
  }
}

}  // namespace

Launch ChooseHeads(const PagedKv& kv, bool is_v, int two_bit, const uint8_t* planned, Stream stream) {
  const PagedSide& side = is_v ? kv.v : kv.k;
  const dim3 grid(unsigned(kv.segment_count), unsigned(kv.kv_heads));
  if (planned == nullptr) {
    const int shared = kv.page.tokens * kv.page.head_dim * 4;
    if (const cudaError_t error = AllowShared(&PriorityKernel, shared); error != cudaSuccess)
      return {int(error), "choice of heads"};
    PriorityKernel<<<grid, kThreads, size_t(shared), stream>>>(kv, side);
  }
  PlaceKernel<<<unsigned(kv.segment_count), 1, 0, stream>>>(kv, side, two_bit, planned);
  return Launched("choice of heads");
}

// One launch a codec: K and V of the same one together.
Launch SealPages(const PagedKv& kv, int mean, Stream stream) {
  const int shared = kv.page.tokens * kv.page.head_dim * 4;
  const unsigned segments = unsigned(kv.segment_count), heads = unsigned(kv.kv_heads);
  if (mean >= 0) MeanKernel<<<dim3(segments, heads), kThreads, 0, stream>>>(kv, mean);
  cudaError_t error = cudaSuccess;
  const auto seal = [&](kv::CodecId codec, bool of_k, bool of_v) {
    if (error != cudaSuccess || (!of_k && !of_v)) return;
    Visit(kv::Codecs{}, codec, [&]<class C>() {
      error = AllowShared(&SealKernel<C>, shared);
      if (error == cudaSuccess)
        SealKernel<C><<<dim3(segments, heads, of_k && of_v ? 2 : 1), kThreads, size_t(shared), stream>>>(
            kv, !of_k);
    });
  };
  seal(kv.k.codec, true, kv.v.codec == kv.k.codec);
  seal(kv.v.codec, false, kv.v.codec != kv.k.codec);
  const bool k_two = kv.k.places != nullptr, v_two = kv.v.places != nullptr,
             same = k_two && v_two && kv.k.two_bit == kv.v.two_bit;
  seal(kv.k.two_bit, k_two, same);
  seal(kv.v.two_bit, false, v_two && !same);
  return error == cudaSuccess ? Launched("seal") : Launch{int(error), "seal"};
}

}  // namespace nibble::cuda
