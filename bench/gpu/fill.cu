// SPDX-License-Identifier: Apache-2.0
#include "bench/gpu/random.h"

namespace nibble::gpu {
namespace {

__global__ void FillKernel(uint32_t* words, size_t count, uint32_t seed) {
  const size_t stride = size_t{gridDim.x} * blockDim.x;
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride)
    words[i] = Mix(uint32_t(i), seed);
}

}  // namespace

void FillRandom(void* data, size_t bytes, uint32_t seed) {
  FillKernel<<<1024, 256>>>(static_cast<uint32_t*>(data), bytes / 4, seed);
}

}  // namespace nibble::gpu
