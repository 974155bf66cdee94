// SPDX-License-Identifier: Apache-2.0
// Floor 4. See unpack.h. A block has K or V of one KV head of one page; a thread makes eight neighbours of a
// row, 16 bytes. One kernel a codec, so that none pays for the stack of another.
#include "kernels/cuda/launched.cuh"
#include "kernels/cuda/pages.cuh"
#include "kernels/cuda/unpack.h"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;

__device__ uint32_t Bf16Pair(float low, float high) {
  return FloatToBf16(low) | uint32_t{FloatToBf16(high)} << 16;
}

// Eight values at a place of the page that the block makes.
__device__ void Put(uint16_t* to, int eight, const float (&x)[8]) {
  reinterpret_cast<uint4*>(to)[eight] =
      make_uint4(Bf16Pair(x[0], x[1]), Bf16Pair(x[2], x[3]), Bf16Pair(x[4], x[5]), Bf16Pair(x[6], x[7]));
}

__device__ void UnpackOpen(const PagedKv& kv, const PagedSide& side, const UnpackedPage& p, uint16_t* to) {
  const std::byte* raw = OpenPage(kv, side, p.page, int(blockIdx.y));
  const int dim = kv.page.head_dim;
  for (int i = int(threadIdx.x); i < kv.page.tokens * dim / 8; i += kThreads) {
    const int token = i * 8 / dim;
    float x[8] = {};
    for (int j = 0; j < 8 && token < p.rows; ++j)
      x[j] = OpenElement(kv, side.raw, raw, token, i * 8 % dim + j);
    Put(to, i, x);
  }
}

template <class C>
__device__ void UnpackSealed(kv::PageShape s, const std::byte* page, float* rows, uint16_t* to) {
  const int eights = s.tokens * s.head_dim / 8;
  if constexpr (kv::HasDecodeRow<C>) {
    LoadPageOf<C>(s, page, rows, s.head_dim);
    __syncthreads();
    for (int i = int(threadIdx.x); i < eights; i += kThreads) {
      float x[8];
      for (int j = 0; j < 8; ++j) x[j] = rows[i * 8 + j];
      Put(to, i, x);
    }
  } else {
    for (int i = int(threadIdx.x); i < eights; i += kThreads) {
      float x[8];
      C::Decode8(s, page, i * 8 / s.head_dim, i * 8 % s.head_dim, x);
      Put(to, i, x);
    }
  }
}

// Blocks along z: K, V or both. `open`: this launch has the open pages too.
template <class C>
__global__ void __launch_bounds__(kThreads)
    UnpackKernel(const __grid_constant__ UnpackArgs a, bool of_k, bool open) {
  extern __shared__ float rows[];  // [tokens, head_dim] of codecs that decode whole rows
  const bool is_v = !of_k || blockIdx.z == 1;
  const PagedSide& side = is_v ? a.kv.v : a.kv.k;
  const UnpackedPage p = a.pages[blockIdx.x];
  const int head = int(blockIdx.y);
  uint16_t* to = (is_v ? a.v : a.k) +
                 (int64_t{blockIdx.x} * a.kv.kv_heads + head) * a.kv.page.tokens * a.kv.page.head_dim;
  if (p.rows >= 0) {
    if (open) UnpackOpen(a.kv, side, p, to);
    return;
  }
  if (a.open_only) return;
  const SealedPages pages = SealedPagesOf(a.kv, side, p.seq, head);
  if (pages.codec == C::kId) UnpackSealed<C>(a.kv.page, pages.At(p.page), rows, to);
}

}  // namespace

Launch UnpackPages(const UnpackArgs& a, Stream stream) {
  if (a.kv.page.head_dim % 8 != 0) return Refused("unpacked pages: head_dim must be a multiple of 8");
  Launch launch{};
  const auto unpack = [&](kv::CodecId codec, bool of_k, bool of_v, bool open) {
    if (!launch.ok() || (!of_k && !of_v)) return;
    Visit(kv::Codecs{}, codec, [&]<class C>() {
      const int shared = kv::HasDecodeRow<C> ? a.kv.page.tokens * a.kv.page.head_dim * 4 : 0;
      if (const cudaError_t error = AllowShared(&UnpackKernel<C>, shared); error != cudaSuccess) {
        launch = {int(error), "unpacked pages"};
        return;
      }
      const dim3 grid(unsigned(a.count), unsigned(a.kv.kv_heads), of_k && of_v ? 2 : 1);
      UnpackKernel<C><<<grid, kThreads, size_t(shared), stream>>>(a, of_k, open);
      launch = Launched("unpacked pages");
    });
  };
  const PagedSide &k = a.kv.k, &v = a.kv.v;
  unpack(k.codec, true, v.codec == k.codec, true);
  unpack(v.codec, false, v.codec != k.codec, true);
  const bool k_two = k.places != nullptr, v_two = v.places != nullptr,
             same = k_two && v_two && k.two_bit == v.two_bit;
  if (a.open_only) return launch;
  unpack(k.two_bit, k_two, same, false);
  unpack(v.two_bit, false, v_two && !same, false);
  return launch;
}

}  // namespace nibble::cuda
