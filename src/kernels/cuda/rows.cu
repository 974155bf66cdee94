// SPDX-License-Identifier: Apache-2.0
// Floor 4. A row stays in registers from the op to its codes: a block has it, or a cluster of blocks where
// the op is dear. Every sum has one order, which depends on the row's length alone.
#include <algorithm>

#include "kernels/cuda/activate.cuh"
#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/programmatic.cuh"
#include "kernels/cuda/rows.h"

namespace nibble::cuda {
namespace {

constexpr int kEach = 8;  // neighbouring values of a thread, kChunks times
constexpr int kMostThreads = 1024, kMostBlocks = 8, kRowThreads = 512, kGluThreads = 256;

// One of the `count` threads of a row.
struct RowThread {
  int index, count;
  __device__ int At(int chunk) const { return (chunk * count + index) * kEach; }
};
__device__ RowThread OfBlockAlone() { return {int(threadIdx.x), int(blockDim.x)}; }
__device__ RowThread OfCluster() {
  return {ClusterRank() * int(blockDim.x) + int(threadIdx.x), ClusterBlocks() * int(blockDim.x)};
}

__device__ void Load(const float* row, float (&x)[kEach]) {
  const float4 low = reinterpret_cast<const float4*>(row)[0], high = reinterpret_cast<const float4*>(row)[1];
  x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
  x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
}
__device__ void Store(float* row, const float (&x)[kEach]) {
  reinterpret_cast<float4*>(row)[0] = make_float4(x[0], x[1], x[2], x[3]);
  reinterpret_cast<float4*>(row)[1] = make_float4(x[4], x[5], x[6], x[7]);
}

// Sums over the block: lanes of a warp as a tree, then warps ascending. `part`: used once in a kernel.
__device__ float SumOverBlock(float x, float* part) {
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = part[0];
  for (int i = 1; i < int(blockDim.x / 32); ++i) sum += part[i];
  return sum;
}

// A maximum over the row. Every block of a cluster writes its own into all of them: one barrier, after which
// none reads another's memory. REQUIRES that all blocks have started.
template <bool kCluster>
__device__ uint32_t MaxOverRow(uint32_t x) {
  __shared__ uint32_t part[kMostThreads / 32], of_blocks[kMostBlocks];
  x = __reduce_max_sync(~0u, x);
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
  __syncthreads();
  for (int i = 0; i < int(blockDim.x / 32); ++i) x = max(x, part[i]);
  if constexpr (kCluster) {
    const int t = int(threadIdx.x);
    if (t < ClusterBlocks()) *const_cast<uint32_t*>(OfBlock(&of_blocks[ClusterRank()], t)) = x;
    ClusterSync();
    for (int r = 0; r < ClusterBlocks(); ++r) x = max(x, of_blocks[r]);
  }
  return x;
}

__device__ uint32_t Bf16Pair(float low, float high) {
  return FloatToBf16(low) | uint32_t{FloatToBf16(high)} << 16;
}

template <bool kCluster, int kChunks>
__device__ void Leave(const RowCopies& to, int row, int k, RowThread me, const float (&x)[kChunks][kEach]) {
  if (to.bf16 != nullptr) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c)
      if (me.At(c) < k)
        *reinterpret_cast<uint4*>(to.bf16 + int64_t{row} * k + me.At(c)) =
            make_uint4(Bf16Pair(x[c][0], x[c][1]), Bf16Pair(x[c][2], x[c][3]), Bf16Pair(x[c][4], x[c][5]),
                       Bf16Pair(x[c][6], x[c][7]));
  }
  if (to.q == nullptr) return;
  if (kCluster && me.index == 0) to.row_sum[row] = 0;  // before the cluster's barrier
  // |x| as bits: integers order as the floats do, and infinity and NaN lie above every finite value.
  uint32_t greatest = 0;
#pragma unroll
  for (int c = 0; c < kChunks; ++c)
#pragma unroll
    for (const float v : x[c]) greatest = max(greatest, __float_as_uint(v) & 0x7FFFFFFFu);
  greatest = MaxOverRow<kCluster>(greatest);
  const float amax = __uint_as_float(greatest);
  const bool finite = greatest < 0x7F800000u, zero = finite && amax < 0x1p-119f;
  const float inverse = finite && !zero ? __fdiv_rn(127.0f, amax) : 0.0f;
  int sum = 0;
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    uint32_t packed[2] = {0, 0};
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const int q = finite ? max(-127, min(127, __float2int_rn(__fmul_rn(x[c][j], inverse)))) : 0;
      sum += q;
      packed[j / 4] |= uint32_t(q & 0xFF) << (8 * (j % 4));
    }
    if (me.At(c) < k)
      *reinterpret_cast<uint2*>(to.q + int64_t{row} * k + me.At(c)) = make_uint2(packed[0], packed[1]);
  }
  __shared__ int sums[kMostThreads / 32];
  sum = __reduce_add_sync(~0u, sum);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < int(blockDim.x / 32); ++i) sum += sums[i];
  if constexpr (kCluster)
    atomicAdd(&to.row_sum[row], sum);
  else
    to.row_sum[row] = sum;
  if (me.index != 0) return;
  to.scale[row] = !finite ? __uint_as_float(0x7FC00000u) : zero ? 0.0f : __fdiv_rn(amax, 127.0f);
}

template <int kChunks>
__global__ void __launch_bounds__(kRowThreads)
    NormRowsKernel(const __grid_constant__ NormArgs a, const __grid_constant__ RowCopies to) {
  ReleaseNext();
  const RowThread me = OfBlockAlone();
  const int row = int(blockIdx.x);
  float x[kChunks][kEach] = {}, weight[kChunks][kEach] = {};
#pragma unroll
  for (int c = 0; c < kChunks; ++c)
    if (me.At(c) < a.k) Load(a.weight + me.At(c), weight[c]);
  AwaitPrevious();
  float square = 0;
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    if (me.At(c) < a.k) Load(a.x + row * a.x_stride + me.At(c), x[c]);
#pragma unroll
    for (const float v : x[c]) square = __fmaf_rn(v, v, square);
  }
  __shared__ float part[kMostThreads / 32];
  square = SumOverBlock(square, part);
  const float factor = 1.0f / sqrtf(square / float(a.k) + a.eps);
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) x[c][j] = x[c][j] * factor * weight[c][j];
    if (me.At(c) < a.k) Store(a.y + row * a.y_stride + me.At(c), x[c]);
  }
  Leave<false>(to, row, a.k, me, x);
}

template <int kThreads, int kChunks>
__global__ void __launch_bounds__(kThreads)
    GluRowsKernel(const __grid_constant__ GluArgs a, const __grid_constant__ RowCopies to) {
  ReleaseNext();
  ClusterSync();  // all blocks have started: their memory can be written
  AwaitPrevious();
  const RowThread me = OfCluster();
  const int row = int(blockIdx.y);
  float x[kChunks][kEach] = {};
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    if (me.At(c) >= a.k) continue;
    float up[kEach];
    Load(a.gate + row * a.gate_stride + me.At(c), x[c]);
    Load(a.up + row * a.up_stride + me.At(c), up);
#pragma unroll
    for (int j = 0; j < kEach; ++j) x[c][j] = Activate(a.activation, x[c][j]) * up[j];
    Store(a.y + row * a.y_stride + me.At(c), x[c]);
  }
  Leave<true>(to, row, a.k, me, x);
}

template <int kChunks>
__global__ void __launch_bounds__(kRowThreads)
    WidenRowsKernel(const __grid_constant__ WidenArgs a, const __grid_constant__ RowCopies to) {
  ReleaseNext();
  AwaitPrevious();
  const RowThread me = OfBlockAlone();
  const int row = int(blockIdx.x);
  float x[kChunks][kEach] = {};
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    if (me.At(c) >= a.k) continue;
    const uint4 word = *reinterpret_cast<const uint4*>(a.x + int64_t{row} * a.k + me.At(c));
    const uint32_t words[4] = {word.x, word.y, word.z, word.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[c][2 * i] = __uint_as_float(words[i] << 16);
      x[c][2 * i + 1] = __uint_as_float(words[i] & 0xFFFF0000u);
    }
    Store(a.to + row * a.to_stride + me.At(c), x[c]);
  }
  Leave<false>(to, row, a.k, me, x);
}

constexpr int kFewGluRows = 4;
static_assert(2 * kMostThreads * kEach >= kMostRowValues);

int Ceil(int a, int b) { return (a + b - 1) / b; }

// Calls run<chunks> with the least number of chunks that is enough.
template <int kMost, class F>
Launch WithChunks(int chunks, F run) {
  if (chunks <= 1) return run.template operator()<1>();
  if (chunks <= 2) return run.template operator()<2>();
  if (kMost == 4 || chunks <= 4) return run.template operator()<4>();
  return run.template operator()<kMost>();
}

bool Fits(int k, int64_t strides, std::initializer_list<const void*> rows) {
  for (const void* p : rows)
    if (reinterpret_cast<uintptr_t>(p) % 16 != 0) return false;
  return k >= 16 && k % 16 == 0 && k <= kMostRowValues && strides % 4 == 0;
}
constexpr const char* kRule =
    "rows with copies have a multiple of 16 values, at most 16384, and start at multiples of 16 bytes";

// Whole warps, enough for a row if there are so many.
unsigned ThreadsFor(int k) { return unsigned(std::min(kRowThreads, Ceil(k / kEach, 32) * 32)); }

}  // namespace

Launch NormRows(const NormArgs& a, const RowCopies& to, Stream stream) {
  if (!Fits(a.k, a.x_stride | a.y_stride, {a.x, a.y, a.weight}) || a.inner != 1) return Refused(kRule);
  const unsigned threads = ThreadsFor(a.k);
  return WithChunks<kMostRowValues / (kRowThreads * kEach)>(
      Ceil(a.k, int(threads) * kEach), [&]<int kChunks>() {
        return LaunchEarly("norm", NormRowsKernel<kChunks>, dim3(unsigned(a.rows)), threads, 1, stream, 0, a,
                           to);
      });
}

Launch GluRows(const GluArgs& a, const RowCopies& to, Stream stream) {
  if (!Fits(a.k, a.gate_stride | a.up_stride | a.y_stride, {a.gate, a.up, a.y})) return Refused(kRule);
  // Few rows: two large blocks, which find room beside a product that fills most of the processors. A cluster
  // of more would wait for its end.
  if (StartsEarly() && a.rows <= kFewGluRows && a.k > kGluThreads * kEach)
    return LaunchEarly("glu", GluRowsKernel<kMostThreads, 1>, dim3(2, unsigned(a.rows)), kMostThreads, 2,
                       stream, 0, a, to);
  const int blocks = StartsEarly() ? std::min(kMostBlocks, Ceil(a.k, kGluThreads * kEach)) : 1;
  return WithChunks<kMostRowValues / (kGluThreads * kEach)>(
      Ceil(a.k, blocks * kGluThreads * kEach), [&]<int kChunks>() {
        return LaunchEarly("glu", GluRowsKernel<kGluThreads, kChunks>,
                           dim3(unsigned(blocks), unsigned(a.rows)), kGluThreads, unsigned(blocks), stream, 0,
                           a, to);
      });
}

Launch WidenRows(const WidenArgs& a, const RowCopies& to, Stream stream) {
  if (!Fits(a.k, a.to_stride, {a.x, a.to})) return Refused(kRule);
  const unsigned threads = ThreadsFor(a.k);
  RowCopies codes = to;
  codes.bf16 = nullptr;
  return WithChunks<kMostRowValues / (kRowThreads * kEach)>(
      Ceil(a.k, int(threads) * kEach), [&]<int kChunks>() {
        return LaunchEarly("widening bf16", WidenRowsKernel<kChunks>, dim3(unsigned(a.rows)), threads, 1,
                           stream, 0, a, codes);
      });
}

}  // namespace nibble::cuda
