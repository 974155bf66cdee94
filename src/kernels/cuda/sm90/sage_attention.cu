// SPDX-License-Identifier: Apache-2.0
// SageAttention2 with INT8 Q K^T and E4M3 P V. A block is persistent: one producer warpgroup feeds a ring
// with TMA, two consumer warpgroups own 64 queries each and take turns, one computes its softmax while the
// tensor cores work for the other. Keys are visited from the last to the first, so only the first tiles need
// a mask.
//
// Over sealed pages (SageAttentionArgs::sequences) a warpgroup's 64 queries stand in one page, so a tile is
// hidden from all of them, half hidden or seen whole; what they see of their own page is in `out` already.
#include <cuda_bf16.h>

#include "kernels/cuda/attention_prefill.h"
#include "kernels/cuda/launched.cuh"
#include "kernels/cuda/sm90/descriptor.cuh"
#include "kernels/cuda/sm90/sage_softmax.cuh"
#include "kernels/cuda/sm90/tensor_map.cuh"
#include "kernels/cuda/sm90/tile.cuh"

namespace nibble::cuda {
namespace {

using namespace nibble::hopper;

constexpr int kTile = 128, kStages = 4;
// Rows under V^T: one of ones, whose product with P is the sum of its rounded weights.
constexpr int kOnes = 8;
constexpr float kLog2e = 1.44269504f;

// A unit of work: 128 queries of one head. Made by the producer, which runs ahead.
struct Work {
  int head, tile;       // tile: among all q tiles
  int k_tile, k_tiles;  // first k tile of the sequence; how many of its tiles the queries see, at least one
  int query, queries;   // first query row in the packed input; rows of this tile
  int position, keys;   // of the first query: how many keys it sees; keys of the sequence
  int first, alone;     // over pages: rows of the tile that are not of this call; the tile of a page alone
  int delta;            // the first delta tile, of smoothed queries
};

// A stage holds the keys of one tile and the values of the tile before: what is needed and done with at the
// same time. Tiles of one unit follow those of another without a gap.
template <int kDim, bool kPages, bool kSmooth>
struct alignas(1024) Shared {
  static constexpr int kBytes = kTile * kDim;                            // of a tile of Q, K or V
  static constexpr int kDelta = kSmooth ? (kPages ? 2 : 1) * kTile : 0;  // floats of a tile of delta-S
  uint8_t q[2][kBytes];
  uint8_t k[kStages][kBytes];
  uint8_t v[kStages][kBytes + kOnes * kTile];
  float scale[kStages][16];
  alignas(16) float delta[kSmooth ? kStages : 1][kSmooth ? kDelta : 4];
  float q_scale[2][kPages ? 2 * kTile : 64];
  Work work[2];
  uint64_t q_full[2], q_empty[2], full[kStages], empty[kStages];
};

NIBBLE_DEVICE Work FindPageWork(const SageAttentionArgs& a, int index) {
  Work w;
  w.head = index / a.shape.q_tiles;
  w.tile = a.shape.q_tiles - 1 - index % a.shape.q_tiles;  // the longest come first
  int i = 0;
  while (w.tile >= a.sequences[i].q_tile_end) ++i;
  const SageSequence s = a.sequences[i];
  const int start = s.keys - s.queries,
            block = start / kTile + w.tile - (i > 0 ? a.sequences[i - 1].q_tile_end : 0);
  w.first = max(0, start - block * kTile);
  w.query = s.query + block * kTile - start;
  w.queries = min(kTile, s.keys - block * kTile);
  w.keys = block * kTile, w.position = 1;
  w.k_tiles = block + (w.queries > kTile / 2 ? 1 : 0);
  w.k_tile = s.pairs, w.alone = s.alone + block;
  w.delta = s.delta + (block - start / kTile) * SageDeltaTiles(s.keys);
  return w;
}

NIBBLE_DEVICE int TilesOf(const int32_t* ends, int sequence) {
  return ends[sequence] - (sequence > 0 ? ends[sequence - 1] : 0);
}

NIBBLE_DEVICE Work FindRowWork(const SageShape& s, int index) {
  Work w;
  w.head = index / s.q_tiles;
  w.tile = s.q_tiles - 1 - index % s.q_tiles;  // with a causal mask the longest come first
  w.first = w.alone = 0;
  int i = 0, delta = 0;
  while (w.tile >= s.q_tile_ends[i]) {
    if (s.delta_tiles > 0) delta += TilesOf(s.q_tile_ends, i) * TilesOf(s.k_tile_ends, i);
    ++i;
  }
  const int tile = w.tile - (i > 0 ? s.q_tile_ends[i - 1] : 0), at = tile * kTile;
  w.delta = delta + tile * TilesOf(s.k_tile_ends, i);
  const int queries = s.q_offsets[i + 1] - s.q_offsets[i];
  w.keys = s.k_offsets[i + 1] - s.k_offsets[i];
  w.k_tile = i > 0 ? s.k_tile_ends[i - 1] : 0;
  w.query = s.q_offsets[i] + at;
  w.queries = min(kTile, queries - at);
  w.position = s.causal ? w.keys - queries + at + 1 : w.keys;
  const int seen = s.causal ? min(w.keys, w.position + w.queries - 1) : w.keys;
  w.k_tiles = max(1, (seen + kTile - 1) / kTile);
  return w;
}

template <bool kPages>
NIBBLE_DEVICE Work FindWork(const SageAttentionArgs& a, int index) {
  if constexpr (kPages)
    return FindPageWork(a, index);
  else
    return FindRowWork(a.shape, index);
}

struct Maps {
  CUtensorMap q, k, v;
};

template <int kDim, bool kPages, bool kSmooth>
NIBBLE_DEVICE void Produce(const Maps& maps, const SageAttentionArgs& a,
                           Shared<kDim, kPages, kSmooth>& shared, int units) {
  using S = Shared<kDim, kPages, kSmooth>;
  constexpr int kTileBytes = S::kBytes, kScaleBytes = sizeof(shared.q_scale[0]), kDeltaBytes = S::kDelta * 4;
  RingPosition<2> q_ring;
  RingPosition<kStages> ring;
  const int group = a.shape.heads / a.shape.kv_heads;
  int v_column = -1, v_row = 0;  // the values still to be loaded
  for (int round = 0; unit_of(round) < units; ++round, q_ring.advance()) {
    const Work w = FindWork<kPages>(a, unit_of(round));
    const int kv_head = w.head / group, at = w.head * a.shape.q_tiles + w.tile;
    barrier_wait(&shared.q_empty[q_ring.stage], q_ring.parity ^ 1);
    shared.work[q_ring.stage] = w;
    barrier_arrive_expect(&shared.q_full[q_ring.stage], kTileBytes + kScaleBytes);
    bulk_load(shared.q_scale[q_ring.stage], a.tiles.q_scale + int64_t{at} * (kScaleBytes / 4), kScaleBytes,
              &shared.q_full[q_ring.stage]);
    tma_load_2d(shared.q[q_ring.stage], &maps.q, &shared.q_full[q_ring.stage], 0, at * kTile);
    for (int j = w.k_tiles - 1; j >= 0; --j, ring.advance()) {
      const int s = ring.stage;
      const int k_tile = kPages && j * kTile == w.keys ? w.alone : w.k_tile + j;
      const int64_t tile = int64_t{kv_head} * a.shape.k_tiles + k_tile;
      barrier_wait(&shared.empty[s], ring.parity ^ 1);
      barrier_arrive_expect(&shared.full[s],
                            kTileBytes + 64 + kDeltaBytes + (v_column >= 0 ? kTileBytes : 0));
      tma_load_2d(shared.k[s], &maps.k, &shared.full[s], 0, int(tile * kTile));
      bulk_load(shared.scale[s], a.tiles.scale + tile * 16, 64, &shared.full[s]);
      if constexpr (kSmooth)
        bulk_load(shared.delta[s],
                  a.tiles.delta + (int64_t{w.head} * a.shape.delta_tiles + w.delta + j) * S::kDelta,
                  kDeltaBytes, &shared.full[s]);
      if (v_column >= 0) tma_load_2d(shared.v[s], &maps.v, &shared.full[s], v_column, v_row);
      v_column = k_tile * kTile;
      v_row = kv_head * kDim;
    }
  }
  if (v_column < 0) return;
  barrier_wait(&shared.empty[ring.stage], ring.parity ^ 1);
  barrier_arrive_expect(&shared.full[ring.stage], kTileBytes);
  tma_load_2d(shared.v[ring.stage], &maps.v, &shared.full[ring.stage], v_column, v_row);
}

// out = o / sum as bf16, 16 bytes a lane; over pages that is one share of the output and what lies there the
// other. `bias`: what the scores of a row have besides, in base 2.
template <int kDim, bool kPages>
NIBBLE_DEVICE void StoreOutput(const SageAttentionArgs& a, const Work& w, const RowState& state,
                               const float (&bias)[2], const float (&weights)[2], const float (&o)[kDim / 2],
                               int first_row) {
  const int lane = threadIdx.x % 32, quad = lane % 4;
  auto* out = static_cast<__nv_bfloat16*>(a.out) + w.head * kDim;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float sum = __shfl_sync(~0u, weights[i], lane & ~3);  // of the quad's first lane
    float inverse = 1.0f / sum;
    const int row = first_row + 8 * i;
    const bool mine = row >= w.first && row < w.queries;
    bool sees = w.keys > 0 && (!a.shape.causal || w.position + row > 0);  // or the output is 0
    float own = 0;                                                        // share of the own page
    if constexpr (kPages) {
      sees = sum != 0;  // NaN too
      const float lse = mine ? a.lse[int64_t{w.query + row} * a.shape.heads + w.head] * kLog2e : 0.0f;
      own = sees ? 1.0f / (1.0f + exp2f(state.max[i] + bias[i] - kPBits + log2f(sum) - lse)) : 1.0f;
      inverse *= 1.0f - own;
    }
#pragma unroll
    for (int j = 0; j < kDim / 8; j += 4) {
      uint32_t v[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        float2 x = {0, 0};
        if (sees) x = {o[4 * (j + r) + 2 * i] * inverse, o[4 * (j + r) + 2 * i + 1] * inverse};
        if (kPages && mine) {
          const uint32_t pair = *reinterpret_cast<const uint32_t*>(out + (w.query + row) * a.out_stride +
                                                                   8 * (j + r) + 2 * quad);
          x.x = fmaf(__uint_as_float(pair << 16), own, x.x);
          x.y = fmaf(__uint_as_float(pair & 0xFFFF0000u), own, x.y);
        }
        v[r] = to_bf16x2(x.x, x.y);
      }
      transpose_quad(v);
      if (mine)
        *reinterpret_cast<uint4*>(out + (w.query + row) * a.out_stride + 8 * (j + quad)) =
            make_uint4(v[0], v[1], v[2], v[3]);
    }
  }
}

// o = o * alpha + part * v_scale, for a quarter of the channels.
template <int kOutputs>
NIBBLE_DEVICE void Add(float (&o)[kOutputs], const float (&part)[kOutputs + 4], int quarter, float v_scale) {
#pragma unroll
  for (int r = kOutputs / 4 * quarter; r < kOutputs / 4 * (quarter + 1); ++r)
    o[r] = fmaf(part[r], v_scale, o[r]);
}

// x * alpha, where 0 forgets even NaN. A row's first visible tile has alpha 0, which clears what the unit
// before left.
NIBBLE_DEVICE float Times(float x, float alpha) { return alpha == 0 ? 0.0f : x * alpha; }

template <int kOutputs>
NIBBLE_DEVICE void Rescale(float (&o)[kOutputs], const float (&alpha)[2]) {
  if (!__any_sync(~0u, alpha[0] != 1.0f || alpha[1] != 1.0f)) return;
#pragma unroll
  for (int r = 0; r < kOutputs; ++r) o[r] = Times(o[r], alpha[r / 2 % 2]);
}

template <int kDim, bool kPages, bool kSmooth>
NIBBLE_DEVICE void Consume(const SageAttentionArgs& a, Shared<kDim, kPages, kSmooth>& shared, int units) {
  constexpr int kOutputs = kDim / 2;  // of a thread
  constexpr int kScales = kPages ? 2 : 1;
  const int mine = threadIdx.x / 128 - 1, lane = threadIdx.x % 32, quad = lane % 4;
  const int warp = threadIdx.x % 128 / 32;
  const int row = 64 * mine + 16 * warp + lane / 4;  // first of the thread's two
  RingPosition<2> q_ring;
  RingPosition<kStages> ring;
  int32_t s[64];
  float part[kOutputs + 4];
  uint32_t p[4][4];
  if (int(blockIdx.x) >= units) return;

  const auto my_turn = [&] { named_sync(1 + mine, 256); };
  // ptxas moves arithmetic across barriers, so the barrier's number is made to hang on all of the weights.
  const auto next_turn = [&](const uint32_t(&p)[4][4]) {
    uint32_t all = 0;
#pragma unroll
    for (int i = 0; i < 16; ++i) all |= p[i / 4][i % 4];
    asm volatile(
        "{\n .reg .u32 id;\n shr.u32 id, %0, 24;\n add.u32 id, id, %1;\n min.u32 id, id, %1;\n"
        " bar.arrive id, 256;\n}" ::"r"(all),
        "r"(2 - mine)
        : "memory");
  };
  const auto scores = [&](int q_stage, int stage) {
    wgmma_fence();
    const uint64_t q = k_major_line<kDim>(shared.q[q_stage]) + mine * (64 * kDim / 16),
                   k = k_major_line<kDim>(shared.k[stage]);
#pragma unroll
    for (int step = 0; step < kDim / 32; ++step) wgmma_s8_ss(s, q + step * kStepK, k + step * kStepK, 1);
    wgmma_commit();
  };
  float inverse[kScales] = {};  // of the scales of Q of the tile under way, for delta-S
  const auto scale_place = [&](int i) { return kPages ? row + 8 * i : (mine * 4 + warp) * 8 + lane / 4; };
  const auto read_inverse = [&](int q_stage) {
#pragma unroll
    for (int i = 0; i < kScales; ++i) inverse[i] = 1.0f / shared.q_scale[q_stage][scale_place(i)];
  };
  const auto start_scores = [&](int stage) {
    if constexpr (kSmooth)
      StartScores(s, shared.delta[stage] + (kPages ? mine * kTile : 0), inverse);
    else
      ClearScores(s);
  };
  if (mine == 1) named_arrive(1, 256);  // the first turn is the first warpgroup's
#pragma unroll
  for (int r = 0; r < kOutputs + 4; ++r) part[r] = 0;
  pin(part);
  barrier_wait(&shared.q_full[0], 0);
  barrier_wait(&shared.full[0], 0);
  if constexpr (kSmooth) read_inverse(0);
  start_scores(0);
  scores(0, 0);

  // The scores of the next tile are always under way, those of the next unit's first tile too, so that an
  // output is stored while the tensor cores work.
  for (int round = 0; unit_of(round) < units; ++round) {
    const Work w = shared.work[q_ring.stage];
    const float* q_scale = shared.q_scale[q_ring.stage];
    float q_factor[kScales], bias[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < kScales; ++i) q_factor[i] = q_scale[scale_place(i)] * a.scale * kLog2e;
    if constexpr (kPages)
      bias[0] = q_scale[kTile + row] * kLog2e, bias[1] = q_scale[kTile + row + 8] * kLog2e;
    const bool more = unit_of(round + 1) < units;
    const int this_q = q_ring.stage;
    RowState state;
    float o[kOutputs];
    float weights[2] = {0, 0};  // sums of P: of quads' first lanes
    float v_scale = 0;
    bool hidden = kPages;  // the tile before, from all rows of this warpgroup; or there is none
#pragma unroll
    for (int r = 0; r < kOutputs; ++r) o[r] = 0;
    for (int j = w.k_tiles - 1; j >= 0; --j) {
      const int stage = ring.stage;
      const bool hide = kPages && j * kTile == w.keys && mine == 0;
      float factor[kScales][2];
#pragma unroll
      for (int i = 0; i < kScales; ++i)
#pragma unroll
        for (int h = 0; h < 2; ++h)
          factor[i][h] = hide ? 1.0f : Factor(q_factor[i] * shared.scale[stage][4 * h + quad]);
      const float v_scale_next = shared.scale[stage][8];
      const int visible = a.shape.causal && !kPages ? w.position + row - j * kTile : kTile;
      const int limit = w.keys - j * kTile + (kPages ? 64 * mine : 0);
      const bool whole =
          limit >= kTile && (kPages || !a.shape.causal || w.position + 64 * mine - j * kTile >= kTile);
      ring.advance();
      int next_q = this_q;
      if (j == 0) {
        q_ring.advance();
        next_q = q_ring.stage;
        if (more) barrier_wait(&shared.q_full[next_q], q_ring.parity);
        if constexpr (kSmooth) read_inverse(next_q);
      }
      barrier_wait(&shared.full[ring.stage], ring.parity);
      wgmma_wait<0>();
      pin(s);
      pin(part);
      if (!whole) Mask(s, visible, limit);
      pin(s);  // or the compiler keeps the sums twice, as integers and as floats
      float alpha[2];
      const Arguments<kScales> arguments = UpdateMax(s, factor, &state, alpha);
      // The pipe of the exponentials is what both warpgroups want at once: they take turns there, and the
      // tensor cores work for the one whose turn it is not. The product of the tile before is added in its
      // shadow.
      my_turn();
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        Weigh(s, arguments, c, p[c]);
        if (!kPages || !hidden) Add(o, part, c, v_scale);  // weights of 0, but values may be NaN
      }
      if constexpr (!kSmooth) ClearScores(s);
      next_turn(p);
#pragma unroll
      for (int i = 0; i < 2; ++i)
        weights[i] = Times(weights[i] + (kPages && hidden ? 0.0f : part[kOutputs + 2 * i]), alpha[i]);
      hidden = hide;
      v_scale = v_scale_next;
      // While the values are multiplied; heads of 64 have too few products to hide it.
      if constexpr (kSmooth && kDim == 64) start_scores(ring.stage);
      wgmma_fence();
      const uint64_t v = k_major(shared.v[ring.stage]);
#pragma unroll
      for (int c = 0; c < 4; ++c) wgmma_e4m3_rs(part, p[c], v + c * kStepK, c > 0);
      wgmma_commit();
      if constexpr (kSmooth && kDim == 128) start_scores(ring.stage);
      scores(next_q, ring.stage);  // after the last tile of all of old bytes, which nobody reads
      barrier_arrive_if(&shared.empty[stage], lane == 0);
      Rescale(o, alpha);
    }
    wgmma_wait<1>();
    pin(part);
    barrier_arrive_if(&shared.q_empty[this_q], lane == 0);
#pragma unroll
    for (int c = 0; c < 4; ++c)
      if (!kPages || !hidden) Add(o, part, c, v_scale);
#pragma unroll
    for (int i = 0; i < 2; ++i) weights[i] += part[kOutputs + 2 * i];
    StoreOutput<kDim, kPages>(a, w, state, bias, weights, o, row);
  }
  wgmma_wait<0>();
  if (mine == 0) named_sync(1, 256);  // takes the turn that nobody needs
}

template <int kDim, bool kPages, bool kSmooth>
__global__ __launch_bounds__(384, 1) void SageKernel(const __grid_constant__ Maps maps,
                                                     const SageAttentionArgs a) {
  using S = Shared<kDim, kPages, kSmooth>;
  extern __shared__ uint8_t raw[];
  auto& shared = *reinterpret_cast<S*>(raw + ((1024 - (shared_address(raw) & 1023)) & 1023));
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) {
      barrier_init(&shared.q_full[i], 1);
      barrier_init(&shared.q_empty[i], 8);
    }
    for (int s = 0; s < kStages; ++s) {
      barrier_init(&shared.full[s], 1);
      barrier_init(&shared.empty[s], 8);  // one arrival a consumer warp
    }
    barrier_init_fence();
  }
  for (int i = threadIdx.x; i < kStages * kOnes * kTile; i += blockDim.x) {
    const int row = i / kTile % kOnes;
    shared.v[i / (kOnes * kTile)][S::kBytes + i % (kOnes * kTile)] = row == 0 ? 0x38 : 0;  // 1.0 in E4M3
  }
  fence_proxy_async();
  __syncthreads();
  const int units = a.shape.heads * a.shape.q_tiles;
  if (threadIdx.x < 128) {
    shrink_registers<24>();
    if (threadIdx.x == 0) Produce(maps, a, shared, units);
  } else {
    grow_registers<240>();
    Consume(a, shared, units);
  }
}

template <int kDim, bool kPages, bool kSmooth>
Launch Run(const SageAttentionArgs& a, Stream stream) {
  Maps maps;
  const SageShape& s = a.shape;
  if (make_map_8bit(&maps.q, a.tiles.q, uint64_t(s.heads) * s.q_tiles * kTile, kDim, kTile, kDim) ||
      make_map_8bit(&maps.k, a.tiles.k, uint64_t(s.kv_heads) * s.k_tiles * kTile, kDim, kTile, kDim) ||
      make_map_8bit(&maps.v, a.tiles.v, uint64_t(s.kv_heads) * kDim, uint64_t(s.k_tiles) * kTile, kDim))
    return Refused("sage: a tensor map was refused");
  const auto kernel = SageKernel<kDim, kPages, kSmooth>;
  constexpr int kShared = sizeof(Shared<kDim, kPages, kSmooth>) + 1024;
  static_assert(kShared <= 227 * 1024);
  static const cudaError_t allowed = AllowShared(kernel, kShared);
  if (allowed != cudaSuccess) return {int(allowed), "SageAttention: shared memory"};
  kernel<<<min(multiprocessors(), s.heads * s.q_tiles), 384, kShared, stream>>>(maps, a);
  return Launched("SageAttention");
}

template <int kDim>
Launch Run(const SageAttentionArgs& a, Stream stream) {
  const bool smooth = a.tiles.delta != nullptr;
  if (a.sequences != nullptr)
    return smooth ? Run<kDim, true, true>(a, stream) : Run<kDim, true, false>(a, stream);
  return smooth ? Run<kDim, false, true>(a, stream) : Run<kDim, false, false>(a, stream);
}

}  // namespace

Launch SageAttention(const SageAttentionArgs& a, Stream stream) {
  if (a.shape.head_dim != 64 && a.shape.head_dim != 128) return Refused("sage: head_dim must be 64 or 128");
  if (a.out_stride % 8) return Refused("sage: out_stride must be a multiple of 8");
  return a.shape.head_dim == 64 ? Run<64>(a, stream) : Run<128>(a, stream);
}

}  // namespace nibble::cuda
