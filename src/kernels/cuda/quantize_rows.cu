// SPDX-License-Identifier: Apache-2.0
// Floor 4. Per-token INT8 activations. One block a row; the row is read twice, the second time from cache.
#include <cuda_bf16.h>

#include "kernels/cuda/launched.cuh"
#include "kernels/cuda/linear.h"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

template <Real kType>
__device__ void LoadEight(const void* row, int at, float (&x)[8]) {
  if constexpr (kType == Real::kF32) {
    const float4* from = static_cast<const float4*>(row) + at / 4;
    const float4 low = from[0], high = from[1];
    x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
    x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
  } else {
    const uint4 word = static_cast<const uint4*>(row)[at / 8];
    const uint32_t words[4] = {word.x, word.y, word.z, word.w};
    for (int i = 0; i < 4; ++i) {
      x[2 * i] = __uint_as_float(words[i] << 16);
      x[2 * i + 1] = __uint_as_float(words[i] & 0xFFFF0000u);
    }
  }
}

// |x| as bits: integers order as the floats do, and infinity and NaN lie above every finite value.
template <Real kType>
__global__ void __launch_bounds__(kThreads) QuantizeRowsKernel(QuantizeRowsArgs a) {
  __shared__ uint32_t part[kWarps];
  const int t = int(threadIdx.x), row = int(blockIdx.x);
  const char* from = static_cast<const char*>(a.x) + row * a.x_stride * (kType == Real::kF32 ? 4 : 2);
  uint32_t greatest = 0;
  for (int i = t * 8; i < a.k; i += kThreads * 8) {
    float x[8];
    LoadEight<kType>(from, i, x);
    for (float v : x) greatest = max(greatest, __float_as_uint(v) & 0x7FFFFFFFu);
  }
  greatest = __reduce_max_sync(~0u, greatest);
  if (t % 32 == 0) part[t / 32] = greatest;
  __syncthreads();
  for (uint32_t v : part) greatest = max(greatest, v);
  __syncthreads();
  const float amax = __uint_as_float(greatest);
  const bool finite = greatest < 0x7F800000u, zero = finite && amax < 0x1p-119f;
  const float inverse = finite && !zero ? __fdiv_rn(127.0f, amax) : 0.0f;
  int sum = 0;
  for (int i = t * 8; i < a.k; i += kThreads * 8) {
    float x[8];
    LoadEight<kType>(from, i, x);
    uint32_t packed[2] = {0, 0};
    for (int j = 0; j < 8; ++j) {
      const int q = finite ? max(-127, min(127, __float2int_rn(__fmul_rn(x[j], inverse)))) : 0;
      sum += q;
      packed[j / 4] |= uint32_t(q & 0xFF) << (8 * (j % 4));
    }
    *reinterpret_cast<uint2*>(a.q + int64_t{row} * a.k + i) = make_uint2(packed[0], packed[1]);
  }
  sum = __reduce_add_sync(~0u, sum);
  if (t % 32 == 0) part[t / 32] = uint32_t(sum);
  __syncthreads();
  if (t != 0) return;
  sum = 0;
  for (uint32_t v : part) sum += int(v);
  a.row_sum[row] = sum;
  a.scale[row] = !finite ? __uint_as_float(0x7FC00000u) : zero ? 0.0f : __fdiv_rn(amax, 127.0f);
}

}  // namespace

Launch QuantizeRows(const QuantizeRowsArgs& a, Stream stream) {
  if (a.k % 16 != 0 || a.rows < 1) return Refused("QuantizeRows: k must be a multiple of 16, rows 1 or more");
  if (a.type == Real::kF32)
    QuantizeRowsKernel<Real::kF32><<<unsigned(a.rows), kThreads, 0, stream>>>(a);
  else
    QuantizeRowsKernel<Real::kBF16><<<unsigned(a.rows), kThreads, 0, stream>>>(a);
  return Launched("QuantizeRows");
}

}  // namespace nibble::cuda
