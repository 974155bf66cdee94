// SPDX-License-Identifier: Apache-2.0
// Floor 4. Elementwise kernels and those that reduce a row: one block a vector where there is a sum.
#include "kernels/cuda/activate.cuh"
#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/linear_layout.h"
#include "kernels/cuda/programmatic.cuh"
#include "kernels/cuda/rope.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

unsigned Blocks(int64_t items) { return unsigned((items + kThreads - 1) / kThreads); }

// The sum over the block, in one order: lanes of a warp as a tree, then warps ascending.
template <class T>
__device__ T BlockSum(T x, T* part) {
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
  __syncthreads();
  T sum = part[0];
  for (int i = 1; i < kWarps; ++i) sum += part[i];
  __syncthreads();
  return sum;
}

__global__ void __launch_bounds__(kThreads) NormKernel(NormArgs a) {
  __shared__ float part[kWarps];
  const int row = int(blockIdx.x) / a.inner, at = int(blockIdx.x) % a.inner;
  const float* x = a.x + row * a.x_stride + at * a.x_inner_stride;
  float* y = a.y + row * a.y_stride + at * a.y_inner_stride;
  float square = 0;
  for (int i = int(threadIdx.x); i < a.k; i += kThreads) square += x[i] * x[i];
  const float factor = 1.0f / sqrtf(BlockSum(square, part) / float(a.k) + a.eps);
  for (int i = int(threadIdx.x); i < a.k; i += kThreads) y[i] = x[i] * factor * a.weight[i];
}

__global__ void AffineKernel(AffineArgs a) {
  const int row = int(blockIdx.x), count = a.heads * a.head_dim;
  for (int i = int(threadIdx.x); i < count; i += int(blockDim.x)) {
    const int head = i / a.head_dim, d = i % a.head_dim, from = head / a.repeat * a.head_dim + d;
    float* x = a.x + row * a.x_stride + head * a.head_stride + d;
    float y = *x;
    if (a.scale != nullptr) y = __fmul_rn(y, a.scale[from]);
    if (a.shift != nullptr) y = __fadd_rn(y, a.shift[from]);
    *x = y;
  }
}

__device__ float TableValue(const weight::PackedWeight& w, int row, int i) {
  const int64_t at = int64_t{row} * w.k + i;
  switch (w.layout) {
    case weight::Layout::kF32:
      return reinterpret_cast<const float*>(w.codes)[at];
    case weight::Layout::kF16:
      return HalfToFloat(reinterpret_cast<const uint16_t*>(w.codes)[at]);
    case weight::Layout::kBF16:
      return Bf16ToFloat(reinterpret_cast<const uint16_t*>(w.codes)[at]);
    default:
      return float(CodeS8(w.codes, w.k, row, i)) * w.scale[row];
  }
}

__global__ void EmbedKernel(EmbedArgs a) {
  const int row = int(blockIdx.y), i = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < a.table.k) a.y[int64_t{row} * a.table.k + i] = TableValue(a.table, a.tokens[row], i);
}

__global__ void RopeTableKernel(RopeTableArgs a) {
  const int half = a.head_dim / 2, i = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= a.rows * half) return;
  const float angle = __fmul_rn(float(a.positions[i / half]), a.inv_freq[i % half]);
  sincosf(angle, &a.sin[i], &a.cos[i]);
}

__global__ void RopeKernel(RopeArgs a) {
  const int half = a.head_dim / 2, row = int(blockIdx.x);
  for (int i = int(threadIdx.x); i < a.heads * half; i += int(blockDim.x)) {
    const int d = i % half;
    float* x = a.x + row * a.x_stride + int64_t{i / half} * a.head_dim + d;
    const float c = a.cos[int64_t{row} * half + d], s = a.sin[int64_t{row} * half + d];
    const Pair turned = Rotate({x[0], x[half]}, c, s);
    x[0] = turned.low;
    x[half] = turned.high;
  }
}

__global__ void GluKernel(GluArgs a) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x), row = int(blockIdx.y);
  if (i >= a.k) return;
  a.y[row * a.y_stride + i] =
      Activate(a.activation, a.gate[row * a.gate_stride + i]) * a.up[row * a.up_stride + i];
}

// A maximum and the lowest index that has it.
struct Top {
  float x;
  int at;
  __device__ void Take(float y, int index) {
    if (y > x || (y == x && index < at)) x = y, at = index;
  }
};

// Of every `blocks`th kCount values of a row from the `block`th on, known to all of kCount threads.
// kFinite: -1 where one of them is NaN or infinite.
template <int kCount, bool kFinite = false>
__device__ Top TopOfRow(const float* x, int k, int block = 0, int blocks = 1) {
  __shared__ Top tops[kCount];
  const int t = int(threadIdx.x);
  Top top{-INFINITY, k - 1};
#pragma unroll 8
  for (int i = block * kCount + t; i < k; i += blocks * kCount) {
    const bool broken = kFinite && !(fabsf(x[i]) < INFINITY);
    top.Take(broken ? INFINITY : x[i], broken ? -1 : i);
  }
  tops[t] = top;
  for (int step = kCount / 2; step > 0; step /= 2) {
    __syncthreads();
    if (t < step) tops[t].Take(tops[t + step].x, tops[t + step].at);
  }
  __syncthreads();
  return tops[0];
}

__global__ void __launch_bounds__(kThreads) LogSumExpKernel(LogSumExpArgs a) {
  __shared__ double part[kWarps];
  const int row = int(blockIdx.x), t = int(threadIdx.x);
  const float* x = a.x + row * a.x_stride;
  const Top top = TopOfRow<kThreads>(x, a.k);
  double sum = 0;
  for (int i = t; i < a.k; i += kThreads) sum += exp(double(x[i]) - double(top.x));
  sum = BlockSum(sum, part);
  if (t != 0) return;
  a.max[row] = top.x;
  a.argmax[row] = top.at;
  a.lse[row] = double(top.x) + log(sum);
}

constexpr int kManyThreads = 512, kArgMaxBlocks = 8;

// A cluster of blocks a row.
__global__ void __launch_bounds__(kManyThreads) ArgMaxKernel(const __grid_constant__ ArgMaxArgs a) {
  __shared__ Top mine;
  ReleaseNext();
  AwaitPrevious();
  const int row = int(blockIdx.y);
  Top top = TopOfRow<kManyThreads, true>(a.x + row * a.x_stride, a.k, ClusterRank(), ClusterBlocks());
  if (threadIdx.x == 0) mine = top;
  ClusterSync();
  if (threadIdx.x == 0 && ClusterRank() == 0) {
    for (int r = 1; r < ClusterBlocks(); ++r) top.Take(OfBlock(&mine, r)->x, OfBlock(&mine, r)->at);
    a.ids[row] = top.at;
  }
  ClusterSync();  // no block leaves while its memory is read
}

}  // namespace

Launch Norm(const NormArgs& a, Stream stream) {
  NormKernel<<<unsigned(a.rows * a.inner), kThreads, 0, stream>>>(a);
  return Launched("norm");
}

Launch Affine(const AffineArgs& a, Stream stream) {
  AffineKernel<<<unsigned(a.rows), kThreads, 0, stream>>>(a);
  return Launched("affine");
}

Launch Embed(const EmbedArgs& a, Stream stream) {
  EmbedKernel<<<dim3(Blocks(a.table.k), unsigned(a.rows)), kThreads, 0, stream>>>(a);
  return Launched("embed");
}

Launch RopeTable(const RopeTableArgs& a, Stream stream) {
  RopeTableKernel<<<Blocks(int64_t{a.rows} * a.head_dim / 2), kThreads, 0, stream>>>(a);
  return Launched("rope table");
}

Launch Rope(const RopeArgs& a, Stream stream) {
  RopeKernel<<<unsigned(a.rows), kThreads, 0, stream>>>(a);
  return Launched("rope");
}

Launch Glu(const GluArgs& a, Stream stream) {
  GluKernel<<<dim3(Blocks(a.k), unsigned(a.rows)), kThreads, 0, stream>>>(a);
  return Launched("glu");
}

Launch LogSumExp(const LogSumExpArgs& a, Stream stream) {
  LogSumExpKernel<<<unsigned(a.rows), kThreads, 0, stream>>>(a);
  return Launched("log-sum-exp");
}

Launch ArgMax(const ArgMaxArgs& a, Stream stream) {
  const unsigned blocks = StartsEarly() ? kArgMaxBlocks : 1;
  return LaunchEarly("argmax", ArgMaxKernel, dim3(blocks, unsigned(a.rows)), kManyThreads, blocks, stream, 0,
                     a);
}

}  // namespace nibble::cuda
