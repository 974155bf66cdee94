// SPDX-License-Identifier: Apache-2.0
// Floor 4. Dense products in f32: tiles of outputs in registers, slabs of k through shared memory. Two tile
// heights, for prompts and for decoding; the sum of an output does not know which.
#include "kernels/cuda/dense.h"
#include "kernels/cuda/launched.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256, kOutputs = 64, kSlab = 32;

struct F32Weight {
  using Element = float;
  __device__ static float Value(float w) { return w; }
};
struct F16Weight {
  using Element = uint16_t;
  __device__ static float Value(uint16_t w) { return HalfToFloat(w); }
};
struct Bf16Weight {
  using Element = uint16_t;
  __device__ static float Value(uint16_t w) { return Bf16ToFloat(w); }
};

// A thread has kEach x kEach outputs of kRows x kOutputs, strided so that a warp's shared loads do not
// collide.
template <class Weight, int kRows, int kEach>
__global__ void __launch_bounds__(kThreads) DenseKernel(DenseArgs a) {
  constexpr int kColumns = kOutputs / kEach;
  static_assert(kRows / kEach * kColumns == kThreads);
  __shared__ float xs[kSlab][kRows + 1], ws[kSlab][kOutputs + 1];
  const int t = int(threadIdx.x), column = t % kColumns, line = t / kColumns;
  const int row0 = int(blockIdx.y) * kRows, n0 = int(blockIdx.x) * kOutputs;
  const auto* w = reinterpret_cast<const typename Weight::Element*>(a.w);
  float sum[kEach][kEach] = {};
  for (int k0 = 0; k0 < a.k; k0 += kSlab) {
    for (int i = t; i < kRows * kSlab; i += kThreads) {
      const int row = row0 + i / kSlab, k = k0 + i % kSlab;
      const float x = row < a.rows && k < a.k ? a.x[row * a.x_stride + k] : 0.0f;
      xs[i % kSlab][i / kSlab] = a.round_x ? Bf16ToFloat(FloatToBf16(x)) : x;
    }
    for (int i = t; i < kOutputs * kSlab; i += kThreads) {
      const int n = n0 + i / kSlab, k = k0 + i % kSlab;
      ws[i % kSlab][i / kSlab] = n < a.n && k < a.k ? Weight::Value(w[int64_t{n} * a.k + k]) : 0.0f;
    }
    __syncthreads();
    const int slab = min(kSlab, a.k - k0);  // what pads k would turn a sum of -0 into 0
    for (int k = 0; k < slab; ++k)
      for (int i = 0; i < kEach; ++i)
        for (int j = 0; j < kEach; ++j)
          sum[i][j] = __fmaf_rn(xs[k][line + i * (kRows / kEach)], ws[k][column + j * kColumns], sum[i][j]);
    __syncthreads();
  }
  for (int i = 0; i < kEach; ++i)
    for (int j = 0; j < kEach; ++j) {
      const int row = row0 + line + i * (kRows / kEach), n = n0 + column + j * kColumns;
      if (row >= a.rows || n >= a.n) continue;
      float* y = a.y + row * a.y_stride + n;
      float value = sum[i][j];
      if (a.bias != nullptr) value = __fadd_rn(value, a.bias[n]);
      *y = a.accumulate ? __fadd_rn(value, *y) : value;
    }
}

template <class Weight>
void Run(const DenseArgs& a, Stream stream) {
  constexpr int kFew = 4, kMany = 64;
  const auto blocks = [&](int rows) {
    return dim3(unsigned((a.n + kOutputs - 1) / kOutputs), unsigned((a.rows + rows - 1) / rows));
  };
  if (a.rows <= 2 * kFew)
    DenseKernel<Weight, kFew, 1><<<blocks(kFew), kThreads, 0, stream>>>(a);
  else
    DenseKernel<Weight, kMany, 4><<<blocks(kMany), kThreads, 0, stream>>>(a);
}

}  // namespace

Launch Dense(const DenseArgs& a, Stream stream) {
  switch (a.type) {
    case DType::kF32:
      Run<F32Weight>(a, stream);
      break;
    case DType::kF16:
      Run<F16Weight>(a, stream);
      break;
    case DType::kBF16:
      Run<Bf16Weight>(a, stream);
      break;
    default:
      return Refused("dense weights are f32, f16 or bf16");
  }
  return Launched("dense product");
}

}  // namespace nibble::cuda
