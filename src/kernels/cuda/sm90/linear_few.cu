// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/sm90/linear_few.cuh"

namespace nibble::cuda::sm90 {
namespace {

template <Storage kStorage, int kTiles>
Launch with_depth(const LinearIntArgs& a, int depth, int processors, cudaStream_t stream) {
  switch (depth) {
    case 3:
      return launch_few<kStorage, kTiles, 3>(a, processors, stream);
    case 4:
      return launch_few<kStorage, kTiles, 4>(a, processors, stream);
    case 6:
      return launch_few<kStorage, kTiles, 6>(a, processors, stream);
    case 8:
      return launch_few<kStorage, kTiles, 8>(a, processors, stream);
    default:
      return Refused("LinearInt: rings for few rows have depth 3, 4, 6 or 8");
  }
}

template <Storage kStorage>
Launch with_tiles(const LinearIntArgs& a, LinearPlan plan, int processors, cudaStream_t stream) {
  return a.rows <= 8 ? with_depth<kStorage, 1>(a, plan.depth, processors, stream)
                     : with_depth<kStorage, 2>(a, plan.depth, processors, stream);
}

int UnitsOfBlock(int n, int processors) {
  return ((n + kUnitRows - 1) / kUnitRows + processors - 1) / processors;
}

}  // namespace

Launch linear_few(const LinearIntArgs& a, LinearPlan plan, int processors, cudaStream_t stream) {
  if (a.w.storage == Storage::kW8A8) return Refused("LinearInt: the kernel for few rows takes 4-bit weights");
  if (plan.tokens > 16 || a.rows > plan.tokens || plan.split != 1)
    return Refused("LinearInt: the kernel for few rows takes up to 16 and does not split k");
  if (a.w.storage == Storage::kW4A8Group) return with_tiles<Storage::kW4A8Group>(a, plan, processors, stream);
  return with_tiles<Storage::kW4A8Channel>(a, plan, processors, stream);
}

LinearPlan PlanFew(Storage storage, int n, int k, int rows, int processors) {
  constexpr LinearPlan kNone;
  if (storage != Storage::kW4A8Group && storage != Storage::kW4A8Channel) return kNone;
  const int units = UnitsOfBlock(n, processors), items = units * KBlocks(k) / kFewWarps;  // items of a warp
  const bool much = items > kFewDeep;
  if (rows > (much ? 8 : 16)) return kNone;
  LinearIntArgs a{};
  a.w.k = k, a.rows = rows;
  for (const int depth : {rows <= 8 ? 6 : 3, 3})
    if (FewLayout::Of(a, units, kFewWarps * depth * int(sizeof(FewSlot))).bytes <= kFewMostShared)
      return {rows <= 8 ? 8 : 16, 1, LinearPlan::kFew, depth};
  return kNone;
}

}  // namespace nibble::cuda::sm90
