// SPDX-License-Identifier: Apache-2.0
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "bench/gpu/random.h"

namespace nibble::gpu {
namespace {

__global__ void FillKernel(uint32_t* words, size_t count, uint32_t seed) {
  const size_t stride = size_t{gridDim.x} * blockDim.x;
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride)
    words[i] = Mix(uint32_t(i), seed);
}

__global__ void FillNormalKernel(uint32_t* words, size_t count, bool bf16, uint32_t seed) {
  const size_t stride = size_t{gridDim.x} * blockDim.x;
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride) {
    const float x = Normal(uint32_t(i), seed), y = Normal(uint32_t(i), seed + 1);
    const __half2 half = __floats2half2_rn(x, y);
    const __nv_bfloat162 wide = __floats2bfloat162_rn(x, y);
    words[i] = bf16 ? *reinterpret_cast<const uint32_t*>(&wide) : *reinterpret_cast<const uint32_t*>(&half);
  }
}

}  // namespace

void FillNormal(void* data, size_t bytes, bool bf16, uint32_t seed) {
  FillNormalKernel<<<1024, 256>>>(static_cast<uint32_t*>(data), bytes / 4, bf16, seed);
}

void FillRandom(void* data, size_t bytes, uint32_t seed) {
  FillKernel<<<1024, 256>>>(static_cast<uint32_t*>(data), bytes / 4, seed);
}

}  // namespace nibble::gpu
