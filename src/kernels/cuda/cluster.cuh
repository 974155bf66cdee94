// SPDX-License-Identifier: Apache-2.0
// Blocks that run together and see each other's shared memory. Before sm_90 a cluster is one block.
#pragma once
#include <cstdint>

namespace nibble::cuda {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
__device__ __forceinline__ int ClusterRank() {
  int rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ int ClusterBlocks() {
  int blocks;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
  return blocks;
}
// A barrier of all threads of the cluster; what was written before it is seen after it.
__device__ __forceinline__ void ClusterSync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// What lies in block `rank` where `p`, in shared memory, lies in this one.
template <class T>
__device__ __forceinline__ const T* OfBlock(const T* p, int rank) {
  uint64_t there;
  asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(p), "r"(rank));
  return reinterpret_cast<const T*>(there);
}
__device__ __forceinline__ void WaitForPreviousKernel() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
#else
__device__ __forceinline__ int ClusterRank() { return 0; }
__device__ __forceinline__ int ClusterBlocks() { return 1; }
__device__ __forceinline__ void ClusterSync() { __syncthreads(); }
template <class T>
__device__ __forceinline__ const T* OfBlock(const T* p, int) {
  return p;
}
#endif

}  // namespace nibble::cuda
