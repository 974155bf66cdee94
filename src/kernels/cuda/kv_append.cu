// SPDX-License-Identifier: Apache-2.0
// Floor 4. Rows into open pages.
#include "kernels/cuda/kv_append.h"
#include "kernels/cuda/pages.cuh"
#include "kernels/cuda/programmatic.cuh"
#include "kernels/cuda/rope.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 128;

dim3 Grid(const PagedKv& kv) { return dim3(unsigned(kv.segment_count), unsigned(kv.kv_heads), 2); }

__global__ void CopyOpenKernel(PagedKv kv) {
  const KvSegment s = kv.segments[blockIdx.x];
  if (s.copy_from < 0) return;
  const PagedSide& side = blockIdx.z == 1 ? kv.v : kv.k;
  const int head = int(blockIdx.y);
  std::byte* to = OpenPage(kv, side, s.raw_slot, head);
  const std::byte* from = OpenPage(kv, side, s.copy_from, head);
  // An INT8 page has exponents and its scale behind the rows.
  const int64_t rows = int64_t{s.position % kv.page.tokens} * kv.page.head_dim * SizeOf(side.raw);
  const int64_t bytes = kv.open == kv::Tail::kInt8 ? side.raw_bytes : rows;
  for (int64_t i = threadIdx.x; i < bytes / 4; i += blockDim.x)
    reinterpret_cast<uint32_t*>(to)[i] = reinterpret_cast<const uint32_t*>(from)[i];
}

// Element `at` of an open page of floats.
__device__ void Keep(DType type, std::byte* raw, int at, float y) {
  if (type == DType::kF32)
    reinterpret_cast<float*>(raw)[at] = y;
  else
    reinterpret_cast<uint16_t*>(raw)[at] = type == DType::kF16 ? FloatToHalf(y) : FloatToBf16(y);
}

__global__ void AppendKernel(AppendArgs a) {
  const PagedKv& kv = a.kv;
  const KvSegment s = kv.segments[blockIdx.x];
  const bool is_v = blockIdx.z == 1;
  const PagedSide& side = is_v ? kv.v : kv.k;
  const int head = int(blockIdx.y), dim = kv.page.head_dim;
  std::byte* raw = OpenPage(kv, side, s.raw_slot, head);
  const float* x = is_v ? a.v + s.row * a.v_stride + head * a.v_head_stride
                        : a.k + s.row * a.k_stride + head * a.k_head_stride;
  const int64_t stride = is_v ? a.v_stride : a.k_stride;
  const int first = s.position % kv.page.tokens * dim;
  if (side.raw != DType::kF32 && (stride | dim) % 4 == 0 && reinterpret_cast<uintptr_t>(x) % 16 == 0) {
#pragma unroll 4
    for (int i = int(threadIdx.x); i < s.rows * dim / 4; i += kThreads) {
      const float4 y = *reinterpret_cast<const float4*>(x + i * 4 / dim * stride + i * 4 % dim);
      const auto bits = [half = side.raw == DType::kF16](float f) -> uint32_t {
        return half ? FloatToHalf(f) : FloatToBf16(f);
      };
      reinterpret_cast<uint2*>(raw)[first / 4 + i] =
          make_uint2(bits(y.x) | bits(y.y) << 16, bits(y.z) | bits(y.w) << 16);
    }
    return;
  }
  for (int i = int(threadIdx.x); i < s.rows * dim; i += kThreads)
    Keep(side.raw, raw, first + i, x[i / dim * stride + i % dim]);
}

// One warp a head: those of q, of k, of v. Segments lie on the device before the step's first kernel.
__global__ void __launch_bounds__(kThreads) RopeAppendKernel(const __grid_constant__ RopeAppendArgs a) {
  ReleaseNext();
  const PagedKv& kv = a.append.kv;
  const int row = int(blockIdx.x), lane = int(threadIdx.x % 32), dim = kv.page.head_dim, half = dim / 2;
  int head = int(blockIdx.y * (kThreads / 32) + threadIdx.x / 32);
  const KvSegment s = kv.segments[row];
  AwaitPrevious();
  if (head >= a.heads + 2 * kv.kv_heads) return;
  const bool is_q = head < a.heads, is_v = head >= a.heads + kv.kv_heads;
  if (!is_q) head -= is_v ? a.heads + kv.kv_heads : a.heads;
  const PagedSide& side = is_v ? kv.v : kv.k;
  std::byte* raw = is_q ? nullptr : OpenPage(kv, side, s.raw_slot, head);
  const int first = s.position % kv.page.tokens * dim;
  if (is_v) {
    const float* x = a.append.v + row * a.append.v_stride + head * a.append.v_head_stride;
    for (int d = lane; d < dim; d += 32) Keep(side.raw, raw, first + d, x[d]);
    return;
  }
  float* x = is_q ? a.q + row * a.q_stride + head * dim : a.k + row * a.append.k_stride + head * dim;
  uint16_t* rounded = a.q_bf16 + (int64_t{row} * a.heads + head) * dim;
  for (int d = lane; d < half; d += 32) {
    const Pair turned =
        Rotate({x[d], x[d + half]}, a.cos[int64_t{row} * half + d], a.sin[int64_t{row} * half + d]);
    x[d] = turned.low, x[d + half] = turned.high;
    if (!is_q) {
      Keep(side.raw, raw, first + d, turned.low), Keep(side.raw, raw, first + d + half, turned.high);
    } else if (a.q_bf16 != nullptr) {
      rounded[d] = FloatToBf16(turned.low), rounded[d + half] = FloatToBf16(turned.high);
    }
  }
}

struct WarpLanes {
  int first = int(threadIdx.x);
  static constexpr int count = 32;
  __device__ float Max(float x) const {  // of what is not negative, integers order as the floats do
    return __uint_as_float(__reduce_max_sync(~0u, __float_as_uint(x)));
  }
  __device__ int Sum(int x) const { return __reduce_add_sync(~0u, x); }
};

// A page's scale comes from the page before, so one warp does all segments of a sequence in order. It asks
// for rows ahead, as it waits for every one.
__global__ void AppendInt8Kernel(AppendArgs a) {
  constexpr int kAhead = 8;
  const PagedKv& kv = a.kv;
  const bool is_v = blockIdx.z == 1;
  const PagedSide& side = is_v ? kv.v : kv.k;
  const int first = int(blockIdx.x), head = int(blockIdx.y), end = SequenceEnd(kv, first);
  const auto row_of = [&](const KvSegment& s, int row) {
    return is_v ? a.v + (s.row + row) * a.v_stride + head * a.v_head_stride
                : a.k + (s.row + row) * a.k_stride + head * a.k_head_stride;
  };
  // What the last step left in the sequence's slot: the page before, where this step begins one.
  const std::byte* before = OpenPage(kv, side, kv.segments[first].seq, head);
  const WarpLanes lanes;
  int64_t clamped = 0;
  for (int i = first; i < end; ++i) {
    const KvSegment s = kv.segments[i];
    std::byte* tail = OpenPage(kv, side, s.raw_slot, head);
    const int token = s.position % kv.page.tokens;
    if (s.position == 0) before = nullptr;
    kv::Int8Tail::Row row = token == 0 ? kv::Int8Tail::Begin(kv.page, row_of(s, 0), before, lanes)
                                       : kv::Int8Tail::After(kv.page, tail, token);
    for (int r = 0; r < s.rows; ++r) {
      if (r + kAhead < s.rows)
        for (int d = lanes.first; d < kv.page.head_dim; d += lanes.count)
          asm volatile("prefetch.global.L1 [%0];" ::"l"(row_of(s, r + kAhead) + d));
      clamped += kv::Int8Tail::Append(kv.page, tail, token + r, row_of(s, r), row, lanes);
    }
    __syncwarp();
    if (lanes.first == 0) kv::Int8Tail::Store(kv.page, tail, row);
    __syncwarp();
    before = tail;
  }
  if (clamped > 0 && lanes.first == 0) atomicAdd(a.clamped, static_cast<unsigned long long>(clamped));
}

}  // namespace

Launch CopyOpenRows(const PagedKv& kv, Stream stream) {
  CopyOpenKernel<<<Grid(kv), kThreads, 0, stream>>>(kv);
  return Launched("copy of open rows");
}

Launch AppendRows(const AppendArgs& a, Stream stream) {
  if (a.kv.open == kv::Tail::kInt8)
    AppendInt8Kernel<<<Grid(a.kv), 32, 0, stream>>>(a);
  else
    AppendKernel<<<Grid(a.kv), kThreads, 0, stream>>>(a);
  return Launched("append to the cache");
}

Launch RopeAndAppend(const RopeAppendArgs& a, Stream stream) {
  const int heads = a.heads + 2 * a.append.kv.kv_heads, warps = kThreads / 32;
  return LaunchEarly("rope and append", RopeAppendKernel,
                     dim3(unsigned(a.append.kv.segment_count), unsigned((heads + warps - 1) / warps)),
                     kThreads, 1, stream, 0, a);
}

}  // namespace nibble::cuda
