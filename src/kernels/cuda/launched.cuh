// SPDX-License-Identifier: Apache-2.0
// Floor 4. How a launcher tells what came of its launch.
#pragma once
#include <cuda_runtime.h>

#include <utility>

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

// Clusters and programmatic launch came with sm_90.
inline bool HasClusters() {
  static const bool has = [] {
    int device = 0, major = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    return major >= 9;
  }();
  return has;
}

// Launches with clusters of cluster.x blocks along x, and early where wanted; on GPUs without either
// cluster.x is 1 and `early_start` has no effect.
template <class... Parameters, class... Arguments>
cudaError_t LaunchClusters(void (*kernel)(Parameters...), dim3 grid, int threads, int shared_bytes,
                           int cluster, bool early_start, Stream stream, Arguments&&... arguments) {
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = early_start;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {unsigned(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = size_t(shared_bytes);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = !HasClusters() ? 0 : cluster > 1 ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

}  // namespace nibble::cuda
