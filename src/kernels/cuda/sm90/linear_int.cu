// SPDX-License-Identifier: Apache-2.0
// Floor 4. What LinearInt takes and how it cuts the work.
#include "kernels/cuda/sm90/linear_few.cuh"
#include "kernels/cuda/sm90/linear_int.cuh"

namespace nibble::cuda {

// How many clusters of 1..8 blocks run at once on 132 multiprocessors: they do not cross the chip's groups of
// up to 18. Measured; a round more costs most of a kernel's time, so what is in doubt counts as not fitting.
constexpr int kClusters[8] = {132, 64, 40, 28, 22, 18, 14, 12};

// Microseconds of one block's stage and of a tile, fitted to `nibble_gpu time linear/sweep` on one H200: a
// stage takes what memory or its dequantization and product take; a split tile is exchanged.
LinearPlan PlanLinear(weight::Storage storage, int n, int k, int rows, int processors) {
  if (const LinearPlan few = sm90::PlanFew(storage, n, k, rows, processors); few.tokens != 0) return few;
  const int row_tiles = (n + sm90::kTileRows - 1) / sm90::kTileRows, k_blocks = KBlocks(k);
  LinearPlan best;
  double least = 0;
  for (int tokens : {16, 32, 64, 128}) {
    const double multiply = tokens == 128 ? 0.78 : 0.45;
    for (int split = 1; split <= 8 && split <= k_blocks; ++split) {
      const int tiles = row_tiles * ((rows + tokens - 1) / tokens),
                slots = std::max(1, kClusters[split - 1] * processors / 132),
                rounds = (tiles + slots - 1) / slots, stages = (k_blocks + split - 1) / split;
      const double bytes = sm90::kWarpgroups * BlockBytes(weight::Storage::kW4A8Group) + tokens * kBlockK,
                   memory = std::min(tiles, slots) * split * bytes / 4.6e6,
                   fixed = split == 1 ? 3.0
                                      : 3.5 + 0.5 * split + (tokens == 128 ? 0.012 : 0.003) * tokens * split,
                   time = rounds * (stages * std::max(multiply, memory) + fixed);
      if (best.tokens != 0 && time >= least) continue;
      best = {tokens, split};
      least = time;
    }
  }
  return best;
}

Launch LinearInt(const LinearIntArgs& a, Stream stream) {
  if (a.rows < 1 || a.w.n % 8 != 0) return Refused("LinearInt: rows must be 1 or more, n a multiple of 8");
  if (a.w.k % (a.w.storage == weight::Storage::kW4A8Group ? weight::kGroup : 16) != 0)
    return Refused("LinearInt: k must be a multiple of 16, of 128 for w4a8-g128");
  if (a.y_stride % 8 != 0 || a.y_stride < a.w.n)
    return Refused("LinearInt: y_stride must be a multiple of 8, and n or more");
  static const int processors = hopper::multiprocessors();
  const LinearPlan plan =
      a.plan.tokens != 0 ? a.plan : PlanLinear(a.w.storage, a.w.n, a.w.k, a.rows, processors);
  if (plan.kind == LinearPlan::kFew) return sm90::linear_few(a, plan, processors, stream);
  if (plan.split < 1 || plan.split > 8 || plan.split > KBlocks(a.w.k))
    return Refused("LinearInt: k is split into 1 to 8 parts of 128 or more");
  switch (a.w.storage) {
    case weight::Storage::kW4A8Group:
      return sm90::linear_w4a8_group(a, plan, processors, stream);
    case weight::Storage::kW4A8Channel:
      return sm90::linear_w4a8_channel(a, plan, processors, stream);
    case weight::Storage::kW8A8:
      return sm90::linear_w8a8(a, plan, processors, stream);
    default:
      return Refused("LinearInt takes w4a8-g128, w4a8-chn and w8a8");
  }
}

}  // namespace nibble::cuda
