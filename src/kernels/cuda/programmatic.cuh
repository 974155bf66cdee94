// SPDX-License-Identifier: Apache-2.0
// Floor 4. Kernels that start before the one ahead of them in the stream has ended (Hopper): its end and
// their own start, the loads of indices and constants, overlap.
#pragma once
#include "kernels/cuda/launched.cuh"

namespace nibble::cuda {

// Returns when the kernels ahead have ended and what they wrote is seen. In a kernel that LaunchEarly starts
// every block calls it, before it reads what they write and before it writes anything.
__device__ __forceinline__ void AwaitPrevious() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// The kernel behind may start once all blocks said so: first thing, since it waits for the end itself.
__device__ __forceinline__ void ReleaseNext() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Whether this GPU runs the code of sm_90: that of later ones is the portable one, which does not wait.
inline bool StartsEarly() {
  static const bool starts = [] {
    int device = 0, major = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    return major == 9;
  }();
  return starts;
}

// `cluster`: blocks along x that share their memory, 1 where StartsEarly() is false.
template <class... Params, class... Args>
Launch LaunchEarly(const char* name, void (*kernel)(Params...), dim3 grid, unsigned threads, unsigned cluster,
                   Stream stream, int shared_bytes, const Args&... args) {
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {cluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = size_t(shared_bytes);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = StartsEarly() ? (cluster > 1 ? 2 : 1) : 0;
  return {int(cudaLaunchKernelEx(&config, kernel, Params(args)...)), name};
}

}  // namespace nibble::cuda
