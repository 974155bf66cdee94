// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/copy_parts.h"
#include "kernels/cuda/launched.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void CopyPartsKernel(const __grid_constant__ CopyPartsArgs a) {
  const CopyPartsArgs::Part& part = a.parts[blockIdx.x];
  for (int i = int(threadIdx.x); i < part.words; i += kThreads) part.to[i] = part.from[i];
}

}  // namespace

Launch CopyParts(const CopyPartsArgs& a, Stream stream) {
  CopyPartsKernel<<<unsigned(a.count), kThreads, 0, stream>>>(a);
  return Launched("copy of a step's plan");
}

}  // namespace nibble::cuda
