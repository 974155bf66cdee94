// SPDX-License-Identifier: Apache-2.0
// Floor 4. The integer matmul: a transposed product, 256 outputs x kTokens rows a tile. Weights stand where
// wgmma wants its 64 rows, so that one row of x fills the tensor cores as well as a thousand.
//
// A producer keeps a ring of stages full (128 inputs: four blocks of weights by bulk copies, x by TMA);
// four consumer warpgroups turn 64 outputs each into bytes in registers and multiply. Two half-size fragments
// take turns: one is filled while wgmma reads the other. With `split` > 1 the blocks of a cluster share the
// inputs of one tile, leave their integer sums in shared memory and each finishes a part of the tile; the
// order of integer additions cannot show in the result.
#pragma once
#include <algorithm>

#include "kernels/cuda/launched.cuh"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/sm90/linear_epilogue.cuh"
#include "kernels/cuda/sm90/linear_weights.cuh"
#include "kernels/cuda/sm90/tensor_map.cuh"

namespace nibble::cuda::sm90 {

inline constexpr int kTileRows = 256, kWarpgroups = kTileRows / kBlockRows;
inline constexpr int kConsumerWarps = 4 * kWarpgroups, kThreads = 128 * (kWarpgroups + 1);
inline constexpr int kBandTiles = 2048;  // rows of x walked together, so that L2 holds them
inline constexpr int kLag = 2;           // stages by which warpgroups 2 and 3 follow 0 and 1

template <Storage kStorage, int kTokens>
struct alignas(1024) LinearShared {
  static constexpr int kStages =
      std::min(12, 200 * 1024 / (kTokens * kBlockK + kWarpgroups * BlockBytes(kStorage)));
  uint8_t x[kStages][kTokens * kBlockK];
  uint8_t weights[kStages][kWarpgroups][BlockBytes(kStorage)];
  TokenInfo tokens[2][kWarpgroups][kTokens];  // [parity of the tile]
  uint64_t full[kStages], empty[kStages];
  static_assert(kStages * (kTokens * kBlockK + kWarpgroups * BlockBytes(kStorage)) >= kTokens * 1024,
                "the sums of a tile are exchanged in the ring");
};

// What a consumer reads of the ring: addresses of stage 0, and the stage whose turn it is.
template <Storage kStorage, int kTokens>
struct LinearReader {
  using Shared = LinearShared<kStorage, kTokens>;
  uint32_t full, codes, scales;  // of this thread
  uint32_t x, weights;           // low halves of descriptors
  uint32_t previous = 0;         // barrier of the stage before
  int stage = 0;
  uint32_t parity = 0;

  NIBBLE_DEVICE LinearReader(const Shared& shared, int mine) {
    using namespace hopper;
    const int t = int(threadIdx.x % 128);
    const uint8_t* block = shared.weights[0][mine];
    full = kept(shared_address(shared.full));
    codes = kept(shared_address(block + 16 * t));
    scales = kept(shared_address(block + 4096 + (t / 32 * 8 + t % 32 / 4) * 4));
    x = kept(k_major_low(shared.x[0]));
    weights = kept(k_major_low(block));
  }
  NIBBLE_DEVICE void advance(uint32_t from) {
    previous = full + from * 8 + uint32_t(sizeof(Shared::full));  // the empty barriers follow the full ones
    if (++stage == Shared::kStages) stage = 0, parity ^= 1;
  }
};

// What a thread has read of a stage ahead of its turn.
struct StageWords {
  uint4 codes;  // of the first 64 inputs
  uint32_t scales;
};

// The tiles of a matmul in the order that keeps x in L2, and the inputs of one part.
struct LinearWalk {
  int row_tiles, token_tiles, band, k_begin, k_end;
  NIBBLE_DEVICE hopper::Element at(int index) const {
    const int first = index / (band * row_tiles) * band, height = min(band, token_tiles - first),
              inside = index - first * row_tiles;
    return {inside / height, first + inside % height};
  }
};

template <Storage kStorage, int kTokens>
struct LinearKernel {
  using Shared = LinearShared<kStorage, kTokens>;
  static constexpr int kStages = Shared::kStages;
  static constexpr bool kBytes = kStorage == Storage::kW8A8;
  Shared& shared;
  const LinearIntArgs& a;
  const LinearWalk& walk;
  int tiles, first_tile, tile_step;

  // `from`: the first of the tile's blocks at k block 0; the others follow a strip apart, `last` of them.
  // Beyond the matrix the last one comes again and is never stored.
  NIBBLE_DEVICE void load_weights(int stage, const std::byte* from, int last, int kb) const {
    const size_t strip = size_t(KBlocks(a.w.k)) * BlockBytes(kStorage);
    from += kb * BlockBytes(kStorage);
    hopper::barrier_arrive_expect(&shared.full[stage], sizeof shared.x[0] + sizeof shared.weights[0]);
#pragma unroll
    for (int c = 0; c < kWarpgroups; ++c, from += c <= last ? strip : 0)
      hopper::bulk_load(shared.weights[stage][c], from, BlockBytes(kStorage), &shared.full[stage]);
  }

  // Whatever does not change along k is computed once a tile: divisions here would starve the ring.
  NIBBLE_DEVICE void produce(const CUtensorMap* map_x) const {
    hopper::RingPosition<kStages> ring;
    int ahead = 0;
    for (int tile = first_tile; tile < tiles; tile += tile_step) {
      const hopper::Element at = walk.at(tile);
      const int block = at.row * kWarpgroups, last = RowBlocks(a.w.n) - 1 - block;
      const std::byte* from = a.w.blocks + size_t(block) * KBlocks(a.w.k) * BlockBytes(kStorage);
      if (tile == first_tile) {  // weights do not depend on the kernel before this one
        for (; ahead < min(kStages, walk.k_end - walk.k_begin); ++ahead)
          load_weights(ahead, from, last, walk.k_begin + ahead);
        hopper::wait_for_previous_kernel();
      }
      for (int kb = walk.k_begin; kb < walk.k_end; ++kb, ring.advance(), --ahead) {
        const int s = ring.stage;
        if (ahead <= 0) {
          hopper::barrier_wait(&shared.empty[s], ring.parity ^ 1);
          load_weights(s, from, last, kb);
        }
        hopper::tma_load_2d(shared.x[s], map_x, &shared.full[s], kb * kBlockK, at.column * kTokens);
      }
    }
  }

  // Waits for a stage and begins to read it.
  NIBBLE_DEVICE void open_stage(const LinearReader<kStorage, kTokens>& at, StageWords* words) const {
    hopper::barrier_wait(at.full + uint32_t(at.stage) * 8, at.parity);
    if constexpr (kBytes) return;
    const uint32_t offset = uint32_t(at.stage) * uint32_t(sizeof shared.weights[0]);
    words->codes = hopper::shared_load4(at.codes + offset);
    if (kStorage == Storage::kW4A8Group) words->scales = hopper::shared_load(at.scales + offset);
  }

  // Multiplies the open stage, hands back the one before, which wgmma has finished reading by then, and opens
  // the next, so that no warp waits for words that it needs at once.
  NIBBLE_DEVICE void multiply_stage(LinearReader<kStorage, kTokens>* at, StageWords* words, bool release,
                                    bool last, uint32_t (&fragment)[2][2][4],
                                    int32_t (&sum)[kTokens / 2]) const {
    using namespace hopper;
    const uint32_t s = uint32_t(at->stage), x = at->x + s * (sizeof shared.x[0] / 16),
                   weights = at->weights + s * (sizeof shared.weights[0] / 16);
    const auto multiply = [&](int half) {
      wgmma_fence();
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        const uint32_t k = uint32_t(2 * half + step) * kStepK;
        if constexpr (kBytes)
          wgmma_s8_ss(sum, k_major_of(weights + k), k_major_of(x + k), 1);
        else
          wgmma_u8s8_rs(sum, fragment[half][step], k_major_of(x + k), 1);
      }
      wgmma_commit();
    };
    const GroupInfo group = group_of<kStorage>(words->scales);
    uint4 second{};
    if constexpr (!kBytes) {
      second = shared_load4(at->codes + s * uint32_t(sizeof shared.weights[0]) + 2048);
      dequantize_words<kStorage>(words->codes, group, fragment[0]);
    }
    multiply(0);
    wgmma_wait<1>();
    barrier_arrive_if(at->previous, release);
    if constexpr (!kBytes) dequantize_words<kStorage>(second, group, fragment[1]);
    multiply(1);
    at->advance(s);
    if (!last) open_stage(*at, words);
    wgmma_wait<1>();
  }

  NIBBLE_DEVICE void consume(int split, uint32_t rank) const {
    using namespace hopper;
    const int mine = int(threadIdx.x) / 128, t = int(threadIdx.x % 128), warp = t / 32;
    const bool first_lane = threadIdx.x % 32 == 0;
    LinearReader<kStorage, kTokens> at_stage(shared, mine);
    int32_t sum[kTokens / 2];
    uint32_t fragment[2][2][4];
    StageWords words{};
    int parity = 0;
    wait_for_previous_kernel();
    // Half of the warpgroups follow the others at a distance, for good: while one half stores its sums, the
    // other half multiplies.
    if (kTokens == 128 && first_tile + tile_step < tiles && mine >= 2 && walk.k_end - walk.k_begin > kLag)
      barrier_wait(&shared.full[kLag], 0);
    for (int tile = first_tile; tile < tiles; tile += tile_step, parity ^= 1) {
      const Element at = walk.at(tile);
      const int token0 = at.column * kTokens, row0 = at.row * kTileRows + mine * kBlockRows + 16 * warp;
      TokenInfo info{0.0f, 0};
      if (t < kTokens && token0 + t < a.rows) info = {a.x_scale[token0 + t], a.row_sum[token0 + t]};
#pragma unroll
      for (int i = 0; i < kTokens / 2; ++i) sum[i] = 0;
      open_stage(at_stage, &words);
      for (int kb = walk.k_begin; kb < walk.k_end; ++kb)
        multiply_stage(&at_stage, &words, first_lane && kb > walk.k_begin, kb + 1 == walk.k_end, fragment,
                       sum);
      wgmma_wait<0>();
      pin(sum);
      barrier_arrive_if(at_stage.previous, first_lane);
      TokenInfo* tokens = shared.tokens[parity][mine];
      if (t < kTokens) tokens[t] = info;
      named_sync(1 + mine, 128);
      if (split == 1) {
        if (row0 >= a.w.n) continue;
        const OutputInfo outputs = load_outputs<kStorage>(a, row0);
#pragma unroll
        for (int u = 0; u < kTokens / 16; ++u)
          if (token0 + 16 * u < a.rows)
            finish_unit<kStorage>(a, outputs, tokens + 16 * u, row0, token0 + 16 * u, sum + 8 * u);
      } else {
        exchange(at, split, rank, sum);
      }
    }
  }

  // All consumers of the cluster are past their last block: the ring holds the sums of each, [unit][2][lane].
  NIBBLE_DEVICE void exchange(hopper::Element at, int split, uint32_t rank,
                              const int32_t (&sum)[kTokens / 2]) const {
    constexpr int kUnits = kTokens / 16;  // of a warp
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x % 32);
    int4* sums = reinterpret_cast<int4*>(shared.x);
    hopper::named_sync(15, 32 * kConsumerWarps);
#pragma unroll
    for (int u = 0; u < kUnits; ++u)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int32_t* from = sum + 8 * u + 4 * i;
        sums[((warp * kUnits + u) * 2 + i) * 32 + lane] = make_int4(from[0], from[1], from[2], from[3]);
      }
    hopper::cluster_sync();
    for (int item = int(rank) + split * warp; item < kConsumerWarps * kUnits;
         item += split * kConsumerWarps) {
      const int row0 = at.row * kTileRows + item / kUnits * 16, unit = item % kUnits,
                token0 = at.column * kTokens + 16 * unit;
      if (row0 >= a.w.n || token0 >= a.rows) continue;
      int32_t total[8] = {};
      for (int r = 0; r < split; ++r)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int4 part = hopper::cluster_load(sums + (item * 2 + i) * 32 + lane, uint32_t(r));
          total[4 * i] += part.x, total[4 * i + 1] += part.y;
          total[4 * i + 2] += part.z, total[4 * i + 3] += part.w;
        }
      finish_unit<kStorage>(a, load_outputs<kStorage>(a, row0), shared.tokens[0][warp / 4] + 16 * unit, row0,
                            token0, total);
    }
    hopper::cluster_sync();  // no block leaves while another reads its sums
  }
};

template <Storage kStorage, int kTokens>
__global__ __launch_bounds__(kThreads, 1) void linear_int_kernel(const __grid_constant__ CUtensorMap map_x,
                                                                 const __grid_constant__ LinearIntArgs a,
                                                                 int split) {
  using namespace hopper;
  extern __shared__ uint8_t raw[];
  using Shared = LinearShared<kStorage, kTokens>;
  Shared& shared = *reinterpret_cast<Shared*>(raw + ((1024 - (shared_address(raw) & 1023)) & 1023));
  const int rank = int(blockIdx.x) % split, k_blocks = KBlocks(a.w.k);
  const LinearWalk walk{(a.w.n + kTileRows - 1) / kTileRows, (a.rows + kTokens - 1) / kTokens,
                        kBandTiles / kTokens, k_blocks * rank / split, k_blocks * (rank + 1) / split};
  const LinearKernel<kStorage, kTokens> kernel{
      shared, a, walk, walk.row_tiles * walk.token_tiles, int(blockIdx.x) / split, int(gridDim.x) / split};
  if (threadIdx.x == 0) {
    prefetch_map(&map_x);
    for (int s = 0; s < Shared::kStages; ++s) {
      barrier_init(&shared.full[s], 1);
      barrier_init(&shared.empty[s], kConsumerWarps);
    }
    barrier_init_fence();
  }
  __syncthreads();
  let_next_kernel_start();
  if (threadIdx.x / 32 >= kConsumerWarps) {
    shrink_registers<kTokens == 128 ? 32 : 40>();
    if (threadIdx.x == 32 * kConsumerWarps) kernel.produce(&map_x);
    __syncwarp();
    if (split > 1) {
      cluster_sync();
      cluster_sync();
    }
  } else {
    grow_registers<kTokens == 128 ? 112 : 104>();
    kernel.consume(split, uint32_t(rank));
  }
}

template <Storage kStorage, int kTokens>
Launch launch_linear(const LinearIntArgs& a, int split, int processors, cudaStream_t stream) {
  const auto kernel = linear_int_kernel<kStorage, kTokens>;
  constexpr int kShared = sizeof(LinearShared<kStorage, kTokens>) + 1024;  // room to align
  static_assert(kShared <= 227 * 1024);
  static const cudaError_t allowed = AllowShared(kernel, kShared);
  if (allowed != cudaSuccess) return {int(allowed), "LinearInt: shared memory"};
  CUtensorMap map;
  if (const cudaError_t e = hopper::make_map_8bit(&map, a.x, uint64_t(a.rows), uint64_t(a.w.k), kTokens))
    return {int(e), "LinearInt: the tensor map of x"};
  const int tiles = (a.w.n + kTileRows - 1) / kTileRows * ((a.rows + kTokens - 1) / kTokens);
  // Unsplit blocks walk over tiles: as few blocks as end in the same number of rounds.
  const int rounds = (tiles + processors - 1) / processors;
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {unsigned(split), 1, 1};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = a.early_start;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(split > 1 ? tiles * split : (tiles + rounds - 1) / rounds));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kShared;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  if (const cudaError_t e = cudaLaunchKernelEx(&config, kernel, map, a, split))
    return {int(e), "LinearInt: the launch"};
  return Launched("LinearInt");
}

template <Storage kStorage>
Launch launch_linear_of(const LinearIntArgs& a, LinearPlan plan, int processors, cudaStream_t stream) {
  switch (plan.tokens) {
    case 16:
      return launch_linear<kStorage, 16>(a, plan.split, processors, stream);
    case 32:
      return launch_linear<kStorage, 32>(a, plan.split, processors, stream);
    case 64:
      return launch_linear<kStorage, 64>(a, plan.split, processors, stream);
    case 128:
      return launch_linear<kStorage, 128>(a, plan.split, processors, stream);
    default:
      return Refused("LinearInt: a tile has 16, 32, 64 or 128 rows");
  }
}

// One file each, so that they compile side by side.
Launch linear_w4a8_group(const LinearIntArgs&, LinearPlan, int processors, cudaStream_t);
Launch linear_w4a8_channel(const LinearIntArgs&, LinearPlan, int processors, cudaStream_t);
Launch linear_w8a8(const LinearIntArgs&, LinearPlan, int processors, cudaStream_t);

}  // namespace nibble::cuda::sm90
