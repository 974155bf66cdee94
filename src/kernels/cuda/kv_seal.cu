// SPDX-License-Identifier: Apache-2.0
// Floor 4. Full pages through their codec: one block a page, one kernel a codec, so that none pays for the
// stack of another. Compiled without contraction, as the CPU's encoders are: rounding is part of a format.
#include "kernels/cuda/kv_append.h"
#include "kernels/cuda/pages.cuh"
#include "kernels/cuda/programmatic.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 64, kSealThreads = 256;

// Codecs whose parts are tokens, each of its own row and nothing else.
template <class C>
constexpr bool kByToken = C::kId == kv::CodecId::kInt4Token || C::kId == kv::CodecId::kInt8Token;

// Codecs whose page is the open page, bytes for bytes.
template <class C>
constexpr bool kIsRaw =
    C::kId == kv::CodecId::kF32 || C::kId == kv::CodecId::kF16 || C::kId == kv::CodecId::kBF16;

// A thread a token. Rows stand a word further apart, so that the threads of a warp read different banks; the
// page is made in shared memory and leaves it in whole words.
template <class C>
__device__ void SealByToken(const PagedKv& kv, const std::byte* raw, float* rows, std::byte* page) {
  const int dim = kv.page.head_dim, stride = dim + 1, tokens = kv.page.tokens, t = int(threadIdx.x);
  static_assert(C::kRaw == DType::kF16);
#pragma unroll 4
  for (int i = t; i < tokens * dim / 8; i += kSealThreads) {
    const uint4 eight = reinterpret_cast<const uint4*>(raw)[i];
    const uint32_t words[4] = {eight.x, eight.y, eight.z, eight.w};
    float* to = rows + i * 8 / dim * stride + i * 8 % dim;
    for (int j = 0; j < 8; ++j) to[j] = HalfToFloat(uint16_t(words[j / 2] >> (16 * (j % 2))));
  }
  __syncthreads();
  auto* made = reinterpret_cast<std::byte*>(rows + tokens * stride);
  if (t < tokens) C::EncodePart(kv.page, {}, rows + t * stride - t * dim, t, made);
  __syncthreads();
  for (int i = t; i < C::PageBytes(kv.page) / 4; i += kSealThreads)
    reinterpret_cast<uint32_t*>(page)[i] = reinterpret_cast<const uint32_t*>(made)[i];
}

template <class C>
int SealBytes(kv::PageShape s) {
  if (kIsRaw<C>) return 0;
  return kByToken<C> ? s.tokens * (s.head_dim + 1) * 4 + C::PageBytes(s) : s.tokens * s.head_dim * 4;
}

// One page by the block's threads.
template <class C>
__device__ void SealPage(const PagedKv& kv, const PagedSide& side, const KvSegment& s, float* rows) {
  const int head = int(blockIdx.y), t = int(threadIdx.x);
  const SealedPages pages = SealedPagesOf(kv, side, s.seq, head);
  if (pages.codec != C::kId) return;  // the other width's launch has it
  const std::byte* raw = OpenPage(kv, side, s.raw_slot, head);
  std::byte* page = pages.At(s.seal_page);
  if constexpr (kv::HasInt8Codes<C>) {
    if (kv.open == kv::Tail::kInt8) {
      const bool broken = kv::Int8Tail::Broken(kv.page, raw);
      for (int part = t; part < C::Parts(kv.page); part += kSealThreads)
        kv::Int8Tail::SealPart<C>(kv.page, broken, raw, part, page);
      return;
    }
  }
  if constexpr (kIsRaw<C>) {  // the page is the open page: a codec's own parts would be stores of two bytes
    for (int i = t; i < C::PageBytes(kv.page) / 16; i += kSealThreads)
      reinterpret_cast<uint4*>(page)[i] = reinterpret_cast<const uint4*>(raw)[i];
    return;
  }
  if constexpr (kByToken<C>) {
    if (kv.page.head_dim % 8 == 0) return SealByToken<C>(kv, raw, rows, page);
  }
  LoadOpen(kv, C::kRaw, raw, kv.page.tokens, rows, kv.page.head_dim);
  __syncthreads();
  if constexpr (kv::HasParts<C>) {
    const auto prepared = C::Prepare(kv.page, rows);
    for (int part = t; part < C::Parts(kv.page); part += kSealThreads)
      C::EncodePart(kv.page, prepared, rows, part, page);
  } else if (t == 0) {
    C::EncodePage(kv.page, rows, page);
  }
}

// Layer blockIdx.z / sides, K or V; of every gridDim.x segments the block looks at one.
template <class C>
__global__ void __launch_bounds__(kSealThreads)
    SealKernel(const __grid_constant__ SealLayersArgs a, bool of_k, bool of_v) {
  extern __shared__ float rows[];  // [tokens, head_dim]
  ReleaseNext();
  const PagedKv& kv = a.kv;
  const int sides = of_k && of_v ? 2 : 1, layer = int(blockIdx.z) / sides;
  const bool is_v = of_k ? int(blockIdx.z) % sides == 1 : true;
  PagedSide side = is_v ? kv.v : kv.k;
  side.pool = is_v ? a.layers[layer].v_pool : a.layers[layer].k_pool;
  side.tail = is_v ? a.layers[layer].v_tail : a.layers[layer].k_tail;
  AwaitPrevious();
  // All threads look at once: one after the other each load would wait for the one before.
  const int blocks = int(gridDim.x);
  for (int first = int(blockIdx.x); first < kv.segment_count; first += kSealThreads * blocks) {
    const int mine = first + int(threadIdx.x) * blocks;
    const bool full = mine < kv.segment_count && kv.segments[mine].seal_page >= 0;
    if (!__syncthreads_or(full)) continue;
    for (int i = 0; i < kSealThreads && first + i * blocks < kv.segment_count; ++i) {
      const KvSegment s = kv.segments[first + i * blocks];
      if (s.seal_page < 0) continue;
      SealPage<C>(kv, side, s, rows);
      __syncthreads();
    }
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

namespace {

constexpr unsigned kSealBlocks = 4;  // by which the segments of many layers are divided

// One launch a codec: K and V of the same one together.
Launch Seal(const SealLayersArgs& a, unsigned blocks, Stream stream) {
  const PagedKv& kv = a.kv;
  Launch launch{};
  const auto seal = [&](kv::CodecId codec, bool of_k, bool of_v) {
    if (!launch.ok() || (!of_k && !of_v) || codec == kv::CodecId::kQaq) return;  // qaq_requantize.cu has it
    Visit(kv::Codecs{}, codec, [&]<class C>() {
      const int shared = SealBytes<C>(kv.page);
      const unsigned sides = of_k && of_v ? 2 : 1;
      if (const cudaError_t error = AllowShared(&SealKernel<C>, shared); error != cudaSuccess)
        launch = {int(error), "seal"};
      else
        launch =
            LaunchEarly("seal", SealKernel<C>, dim3(blocks, unsigned(kv.kv_heads), sides * unsigned(a.count)),
                        kSealThreads, 1, stream, shared, a, of_k, of_v);
    });
  };
  seal(kv.k.codec, true, kv.v.codec == kv.k.codec);
  seal(kv.v.codec, false, kv.v.codec != kv.k.codec);
  const bool k_two = kv.k.places != nullptr, v_two = kv.v.places != nullptr,
             same = k_two && v_two && kv.k.two_bit == kv.v.two_bit;
  seal(kv.k.two_bit, k_two, same);
  seal(kv.v.two_bit, false, v_two && !same);
  return launch;
}

}  // namespace

Launch SealPages(const PagedKv& kv, int mean, Stream stream) {
  const unsigned segments = unsigned(kv.segment_count);
  if (mean >= 0) MeanKernel<<<dim3(segments, unsigned(kv.kv_heads)), kThreads, 0, stream>>>(kv, mean);
  SealLayersArgs args{.kv = kv, .layers = {}, .count = 1};
  args.layers[0] = {kv.k.pool, kv.v.pool, kv.k.tail, kv.v.tail};
  return Seal(args, segments, stream);
}

Launch SealLayers(const SealLayersArgs& a, Stream stream) {
  if (a.count < 1 || a.count > kMostSealLayers) return Refused("seal: 1 to 64 layers a launch");
  return Seal(a, a.kv.segment_count < int(kSealBlocks) ? unsigned(a.kv.segment_count) : kSealBlocks, stream);
}

}  // namespace nibble::cuda
