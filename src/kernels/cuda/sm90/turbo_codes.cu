// SPDX-License-Identifier: Apache-2.0
// What TurboAttention's prompts read: query rows each quantized by itself, as their scale must not hang
// on how a prompt was cut, and the codes of sealed pages, V turned to [channel][token]. A block has a tile of
// queries of one head, or K or V of one KV head of one page.
#include "kernels/cuda/attention_turbo.h"
#include "kernels/cuda/launched.cuh"
#include "kernels/cuda/pages.cuh"
#include "kernels/cuda/rounding.cuh"
#include "kernels/cuda/sm90/fragment.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256, kTile = 128, kPage = kv::kPageTokens;
constexpr int kPitch = kPage + 4;  // of a channel in shared memory

__device__ uint32_t FourCodes(float a, float b, float c, float d) {
  const auto byte = [](float x) { return uint32_t(int(x)) & 255; };
  return byte(a) | byte(b) << 8 | byte(c) << 16 | byte(d) << 24;
}

template <int kCount>
struct alignas(4 * kCount) Floats {
  float at[kCount];
};
template <int kCount>
struct alignas(kCount) Codes {
  int8_t at[kCount];
};

// A warp has kAtOnce rows in flight: of each lane l has channels l * kEach, ...
template <int kDim>
__device__ void QueryCodes(const TurboCodesArgs& a, int tile, int head) {
  constexpr int kEach = kDim / 32, kAtOnce = 8;
  const TurboPlan& p = a.plan;
  int n = 0;
  while (tile >= p.q_tile_ends[n]) ++n;
  const int queries = p.q_offsets[n + 1] - p.q_offsets[n], keys = p.k_offsets[n + 1] - p.k_offsets[n];
  const int start = keys - queries, block = start / kTile + tile - (n > 0 ? p.q_tile_ends[n - 1] : 0);
  const int64_t at = (int64_t{head} * p.q_tiles + tile) * kTile;
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const float* first = a.q + int64_t{p.q_offsets[n] + block * kTile - start} * a.q_stride + head * kDim;
  for (int row0 = warp * kAtOnce; row0 < kTile; row0 += kThreads / 32 * kAtOnce) {
    Floats<kEach> x[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int row = row0 + i, position = block * kTile + row;
      x[i] = {};
      if (position >= start && position < keys)
        x[i] = *reinterpret_cast<const Floats<kEach>*>(first + row * a.q_stride + lane * kEach);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      uint32_t amax = 0;
#pragma unroll
      for (const float y : x[i].at) amax = max(amax, MagnitudeBits(y));
      const CodeScale c = ScaleOf(__reduce_max_sync(~0u, amax), 127);
      Codes<kEach> codes;
#pragma unroll
      for (int e = 0; e < kEach; ++e) codes.at[e] = int8_t(CodeOf(x[i].at[e], c.inverse));
      reinterpret_cast<Codes<kEach>*>(a.tiles.q + (at + row0 + i) * kDim)[lane] = codes;
      if (lane == 0) a.tiles.q_scale[at + row0 + i] = c.scale * a.scale;
    }
  }
}

// K as it comes; of V four tokens at a time, to [channel][token].
template <class C, int kDim>
__device__ void PageCodes(const TurboCodesArgs& a, const std::byte* page, int64_t at, bool is_v,
                          uint8_t* turned) {
  const float scale = kv::Int8Scale<C>(a.kv.page, page),
              inverse = scale > 1.2e-38f ? __fdiv_rn(1.0f, scale) : 0.0f;
  if (threadIdx.x == 0) a.tiles.scale[at * 4 + (is_v ? 1 : 0)] = scale;
  constexpr int kEights = kDim / 8;
  const auto code = [&](int token, int eight, float(&x)[8]) {
    C::Decode8(a.kv.page, page, token, eight * 8, x);
#pragma unroll
    for (float& y : x) y = CodeOf(y, inverse);
  };
  if (!is_v) {
    for (int i = int(threadIdx.x); i < kPage * kEights; i += kThreads) {
      float x[8];
      code(i / kEights, i % kEights, x);
      reinterpret_cast<uint2*>(a.tiles.k + at * kPage * kDim)[i] =
          make_uint2(FourCodes(x[0], x[1], x[2], x[3]), FourCodes(x[4], x[5], x[6], x[7]));
    }
    return;
  }
  for (int i = int(threadIdx.x); i < kPage / 4 * kEights; i += kThreads) {
    const int k = i / kEights * 4, eight = i % kEights;
    float x[4][8];
#pragma unroll
    for (int t = 0; t < 4; ++t) code(hopper::token_of(k + t), eight, x[t]);
#pragma unroll
    for (int d = 0; d < 8; ++d)
      *reinterpret_cast<uint32_t*>(turned + (eight * 8 + d) * kPitch + k) =
          FourCodes(x[0][d], x[1][d], x[2][d], x[3][d]);
  }
  __syncthreads();
  for (int i = int(threadIdx.x); i < kDim * kPage / 16; i += kThreads) {
    const auto* from = reinterpret_cast<const uint32_t*>(turned + i / 4 * kPitch + i % 4 * 16);
    reinterpret_cast<uint4*>(a.tiles.v + at * kPage * kDim)[i] =
        make_uint4(from[0], from[1], from[2], from[3]);
  }
}

template <int kDim>
__global__ void __launch_bounds__(kThreads, 3) TurboCodesKernel(const __grid_constant__ TurboCodesArgs a) {
  __shared__ alignas(16) uint8_t turned[kDim * kPitch];
  const TurboPlan& p = a.plan;
  const int index = int(blockIdx.y);
  int head = int(blockIdx.x);
  if (head < p.heads) {
    if (index < p.q_tiles) QueryCodes<kDim>(a, index, head);
    return;
  }
  head -= p.heads;
  const bool is_v = head >= p.kv_heads;
  if (is_v) head -= p.kv_heads;
  if (index >= p.pages || a.page_list[index].rows >= 0) return;
  const UnpackedPage page = a.page_list[index];
  const SealedPages pages = SealedPagesOf(a.kv, is_v ? a.kv.v : a.kv.k, page.seq, head);
  Visit(kv::Codecs{}, pages.codec, [&]<class C>() {
    if constexpr (kv::HasInt8Codes<C>)
      PageCodes<C, kDim>(a, pages.At(page.page), int64_t{head} * p.pages + index, is_v, turned);
  });
}

}  // namespace

TurboTiles TurboTilesAt(int heads, int kv_heads, int head_dim, int q_tiles, int pages, void* base,
                        size_t* bytes) {
  const size_t rows = size_t(heads) * size_t(q_tiles) * kTile, of_kv = size_t(kv_heads) * size_t(pages);
  auto* at = static_cast<std::byte*>(base);
  const auto take = [&at](size_t n) { return std::exchange(at, at + (n + 255) / 256 * 256); };
  TurboTiles t{};
  t.q = reinterpret_cast<int8_t*>(take(rows * size_t(head_dim)));
  t.k = reinterpret_cast<int8_t*>(take(of_kv * kPage * size_t(head_dim)));
  t.v = reinterpret_cast<int8_t*>(take(of_kv * kPage * size_t(head_dim)));
  t.q_scale = reinterpret_cast<float*>(take(rows * sizeof(float)));
  t.scale = reinterpret_cast<float*>(take(of_kv * 4 * sizeof(float)));
  *bytes = size_t(at - static_cast<std::byte*>(base));
  return t;
}

Launch TurboCodes(const TurboCodesArgs& a, Stream stream) {
  const TurboPlan& p = a.plan;
  if (p.head_dim != 64 && p.head_dim != 128) return Refused("turbo: head_dim must be 64 or 128");
  if (a.q_stride % 4) return Refused("turbo: row strides must be multiples of 4");
  const dim3 grid(unsigned(p.heads + 2 * p.kv_heads), unsigned(p.q_tiles > p.pages ? p.q_tiles : p.pages));
  if (p.head_dim == 64)
    TurboCodesKernel<64><<<grid, kThreads, 0, stream>>>(a);
  else
    TurboCodesKernel<128><<<grid, kThreads, 0, stream>>>(a);
  return Launched("TurboAttention: codes");
}

}  // namespace nibble::cuda
