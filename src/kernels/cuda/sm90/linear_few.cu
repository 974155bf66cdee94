// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/sm90/linear_few.cuh"

namespace nibble::cuda::sm90 {
namespace {

template <Storage kStorage, int kTiles>
Launch with_depth(const LinearIntArgs& a, int depth, int processors, cudaStream_t stream) {
  switch (depth) {
    case 2:
      return launch_few<kStorage, kTiles, 16, 2>(a, processors, stream);
    case 3:
      return launch_few<kStorage, kTiles, 16, 3>(a, processors, stream);
    case 4:
      return launch_few<kStorage, kTiles, 16, 4>(a, processors, stream);
    case 5:
      return launch_few<kStorage, kTiles, 16, 5>(a, processors, stream);
    case 6:
      return launch_few<kStorage, kTiles, 16, 6>(a, processors, stream);
    case 8:
      return launch_few<kStorage, kTiles, 8, 8>(a, processors, stream);
    case 10:
      return launch_few<kStorage, kTiles, 8, 10>(a, processors, stream);
    default:
      return launch_few<kStorage, kTiles, 8, 6>(a, processors, stream);
  }
}

template <Storage kStorage>
Launch with_tiles(const LinearIntArgs& a, LinearPlan plan, int processors, cudaStream_t stream) {
  if (a.rows <= 8) return with_depth<kStorage, 1>(a, plan.split, processors, stream);
  if (a.rows <= 16) return with_depth<kStorage, 2>(a, plan.split, processors, stream);
  return with_depth<kStorage, 4>(a, plan.split, processors, stream);
}

}  // namespace

Launch linear_few(const LinearIntArgs& a, LinearPlan plan, int processors, cudaStream_t stream) {
  if (a.w.storage == Storage::kW8A8) return Refused("LinearInt: few rows take 4-bit weights");
  if (a.w.storage == Storage::kW4A8Group) return with_tiles<Storage::kW4A8Group>(a, plan, processors, stream);
  return with_tiles<Storage::kW4A8Channel>(a, plan, processors, stream);
}

}  // namespace nibble::cuda::sm90
