// SPDX-License-Identifier: Apache-2.0
// Floor 4. How a launcher tells what came of its launch.
#pragma once
#include <cuda_runtime.h>

#include "kernels/cuda/stream.h"

namespace nibble::cuda {

// Of the launch just made.
inline Launch Launched(const char* kernel) { return {int(cudaGetLastError()), kernel}; }

// Arguments that break `rule`.
inline Launch Refused(const char* rule) { return {int(cudaErrorInvalidValue), rule}; }

// Lets a kernel have more than 48 KB of dynamic shared memory. Once a kernel and device is enough.
template <class Kernel>
cudaError_t AllowShared(Kernel kernel, int bytes) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

// Clusters came with sm_90.
inline bool HasClusters() {
  static const bool has = [] {
    int device = 0, major = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    return major >= 9;
  }();
  return has;
}

}  // namespace nibble::cuda
