// SPDX-License-Identifier: Apache-2.0
// TurboAttention's prompts (arXiv 2412.08585): INT8 Q K^T and P V over the codes of sealed pages, then the
// own page of each query in bf16. A block is persistent: one producer thread feeds a ring with TMA, two
// consumer warpgroups own 64 queries each, which stand in one page. A page is a tile: its scales and those of
// its weights are factors of an integer sum, which is added to the outputs in f32.
//
// Pages come in order and the own page last, as in kernels/ref: what SAS takes from a weight, and what P is
// rounded to, are relative to the greatest score so far.
#include <cuda_bf16.h>

#include "kernels/cuda/attention_turbo.h"
#include "kernels/cuda/launched.cuh"
#include "kernels/cuda/sm90/descriptor.cuh"
#include "kernels/cuda/sm90/tensor_map.cuh"
#include "kernels/cuda/sm90/tile.cuh"
#include "kernels/cuda/sm90/turbo_softmax.cuh"

namespace nibble::cuda {
namespace {

using namespace nibble::hopper;

constexpr int kTile = 128, kPage = 64;              // queries of a unit; of a warpgroup, and keys of a page
constexpr int kPanelBytes = kPage * kSwizzleBytes;  // 64 channels of a page in bf16

// A unit of work: 128 queries of one head. Made by the producer, which runs ahead.
struct Work {
  int head, tile;      // tile: among all q tiles
  int query;           // row of the packed input that the tile's row 0 is, or would be
  int first, queries;  // rows [first, queries) of the tile are of this call
  int block;           // the tile's rows stand in pages 2 block and 2 block + 1 of the sequence
  PageBases bases;
  // Rows of a half of the tile, which is one page, that are of this call.
  NIBBLE_DEVICE bool Has(int half) const { return half == 0 ? first < kPage : queries > kPage; }
  NIBBLE_DEVICE int Older() const { return 2 * block + (Has(1) ? 1 : 0); }
};

// A stage holds the codes of K and V of a page; or of a half of the tile its queries, keys or values in bf16.
template <int kDim>
struct alignas(1024) Shared {
  static constexpr int kBytes = kTile * kDim, kStages = 160 * 1024 / kBytes, kPanels = kDim / 64;
  uint8_t q[2][kBytes];
  uint8_t stage[kStages][kBytes];
  alignas(16) float scale[kStages][4];
  float q_scale[2][kTile];
  Work work[2];
  // A copy a lane, from which it stays in registers: from a parameter ptxas fetches it again for every page,
  // and what all lanes share it keeps in uniform registers, of which PRMT takes but one.
  SasTable table[32];
  uint64_t q_full[2], q_empty[2], full[kStages], empty[kStages];
};

NIBBLE_DEVICE Work FindWork(const TurboPlan& p, int index) {
  Work w;
  w.head = index / p.q_tiles;
  w.tile = p.q_tiles - 1 - index % p.q_tiles;  // the longest come first
  int s = 0;
  while (w.tile >= p.q_tile_ends[s]) ++s;
  const int queries = p.q_offsets[s + 1] - p.q_offsets[s], keys = p.k_offsets[s + 1] - p.k_offsets[s];
  const int start = keys - queries;
  w.block = start / kTile + w.tile - (s > 0 ? p.q_tile_ends[s - 1] : 0);
  w.first = max(0, start - w.block * kTile);
  w.query = p.q_offsets[s] + w.block * kTile - start;
  w.queries = min(kTile, keys - w.block * kTile);
  w.bases = p.bases[s];
  return w;
}

struct Maps {
  CUtensorMap q, k, v, own_q, own_k, own_v;
};

template <int kDim>
struct Producer {
  using Memory = Shared<kDim>;
  const Maps& maps;
  const TurboAttentionArgs& a;
  Memory& shared;
  RingPosition<2> q_ring;
  RingPosition<Memory::kStages> ring;

  NIBBLE_DEVICE uint64_t* Next(int bytes) {
    barrier_wait(&shared.empty[ring.stage], ring.parity ^ 1);
    barrier_arrive_expect(&shared.full[ring.stage], uint32_t(bytes));
    return &shared.full[ring.stage];
  }
  NIBBLE_DEVICE void LoadQueries(const Work& w) {
    const int at = w.head * a.plan.q_tiles + w.tile, s = q_ring.stage;
    barrier_wait(&shared.q_empty[s], q_ring.parity ^ 1);
    shared.work[s] = w;
    barrier_arrive_expect(&shared.q_full[s], Memory::kBytes + sizeof shared.q_scale[0]);
    bulk_load(shared.q_scale[s], a.tiles.q_scale + int64_t{at} * kTile, sizeof shared.q_scale[0],
              &shared.q_full[s]);
    tma_load_2d(shared.q[s], &maps.q, &shared.q_full[s], 0, at * kTile);
    q_ring.advance();
  }
  NIBBLE_DEVICE void LoadCodes(int page) {
    uint64_t* bar = Next(Memory::kBytes + 16);
    bulk_load(shared.scale[ring.stage], a.tiles.scale + int64_t{page} * 4, 16, bar);
    tma_load_2d(shared.stage[ring.stage], &maps.k, bar, 0, page * kPage);
    tma_load_2d(shared.stage[ring.stage] + Memory::kBytes / 2, &maps.v, bar, 0, page * kDim);
    ring.advance();
  }
  NIBBLE_DEVICE void LoadRows(const CUtensorMap& map, int column, int row) {
    uint64_t* bar = Next(Memory::kBytes);
    for (int panel = 0; panel < Memory::kPanels; ++panel)
      tma_load_2d(shared.stage[ring.stage] + panel * kPanelBytes, &map, bar, column + 64 * panel, row);
    ring.advance();
  }
  NIBBLE_DEVICE void Run(int units) {
    for (int round = 0; unit_of(round) < units; ++round) {
      const Work w = FindWork(a.plan, unit_of(round));
      const int kv_head = w.head / (a.plan.heads / a.plan.kv_heads);
      LoadQueries(w);
      for (int j = 0; j < w.Older(); ++j) LoadCodes(kv_head * a.plan.pages + w.bases.older + j);
      for (int half = 0; half < 2; ++half) {
        if (!w.Has(half)) continue;
        const int own = ((w.bases.own + 2 * w.block + half) * a.plan.kv_heads + kv_head) * kPage;
        LoadRows(maps.own_q, w.head * kDim, w.query + half * kPage);
        LoadRows(maps.own_k, 0, own);
        LoadRows(maps.own_v, 0, own);
      }
    }
  }
};

// One warpgroup: 64 queries of each unit.
template <int kDim>
struct Consumer {
  using Memory = Shared<kDim>;
  static constexpr int kOutputs = kDim / 2;  // of a thread
  const TurboAttentionArgs& a;
  const SasTable& table;
  Memory& shared;
  const int mine = int(threadIdx.x) / 128 - 1, lane = int(threadIdx.x) % 32;
  const int row =
      int(threadIdx.x) % 128 / 32 * 16 + lane / 4;  // of the warpgroup's, first of the thread's two
  const uint64_t keys = k_major_line<kDim>(shared.stage[0]),
                 values = k_major_line<64>(shared.stage[0] + Memory::kBytes / 2);
  RingPosition<2> q_ring;
  RingPosition<Memory::kStages> ring;

  NIBBLE_DEVICE void WaitFull() { barrier_wait(&shared.full[ring.stage], ring.parity); }
  NIBBLE_DEVICE void Release(int stage) { barrier_arrive_if(&shared.empty[stage], lane == 0); }
  // ptxas moves arithmetic behind a wait that follows it, so this arrival is made to hang on all of the
  // codes, of which none has the upper bit.
  NIBBLE_DEVICE void ReleaseAfter(const uint32_t (&p)[2][4], int stage, bool used) {
    uint32_t all = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) all |= p[i / 4][i % 4];
    barrier_arrive_if(&shared.empty[stage], used && lane == 0 && (all & 0x80808080u) == 0);
  }
  NIBBLE_DEVICE void Skip(int stages) {
    for (int i = 0; i < stages; ++i) {
      WaitFull();
      Release(ring.stage);
      ring.advance();
    }
  }
  NIBBLE_DEVICE void ClearOutputs(float (&o)[kOutputs]) {
#pragma unroll
    for (int r = 0; r < kOutputs; ++r) o[r] = 0;
  }
  // `bytes` on from what a descriptor points at: the address is in its low word and stays there.
  NIBBLE_DEVICE static uint64_t MoveOn(uint64_t descriptor, int bytes) {
    return (descriptor & 0xFFFFFFFF00000000) | (uint32_t(descriptor) + uint32_t(bytes / 16));
  }
  NIBBLE_DEVICE void IssueScores(int32_t (&s)[32], uint64_t queries, int stage) {
    wgmma_fence();
    const uint64_t k = MoveOn(keys, stage * Memory::kBytes);
#pragma unroll
    for (int step = 0; step < kDim / 32; ++step)
      wgmma_s8_ss(s, MoveOn(queries, 32 * step), MoveOn(k, 32 * step), step > 0);
    wgmma_commit();
  }
  NIBBLE_DEVICE void IssueValues(int32_t (&part)[kOutputs], const uint32_t (&p)[2][4], int stage) {
    wgmma_fence();
    const uint64_t v = MoveOn(values, stage * Memory::kBytes);
#pragma unroll
    for (int c = 0; c < 2; ++c) wgmma_s8_rs(part, p[c], MoveOn(v, 32 * c), c > 0);
    wgmma_commit();
  }
  // Products are issued whether or not there is something to multiply, as a branch around them would make the
  // compiler wait for each; what nobody is to read comes of any bytes. Behind the sealed pages that a
  // warpgroup sees there always is a stage of the same unit.
  //
  // Sealed pages, of which the warpgroup sees `pages`. The product of a page with its values runs while the
  // scores of the next are read, and the scores of the one behind that while these become codes.
  NIBBLE_DEVICE void AttendSealed(int pages, TurboState& state, float (&o)[kOutputs]) {
    const float* q_scale = shared.q_scale[q_ring.stage] + mine * kPage + row;
    const float q_factor[2] = {q_scale[0], q_scale[8]};
    int32_t s[32], part[kOutputs];
    uint32_t p[2][4] = {};
    float factor[2] = {0, 0};  // of the sums of the page before
    const uint64_t queries = MoveOn(k_major_line<kDim>(shared.q[q_ring.stage]), mine * kPage * kDim);
    WaitFull();
    IssueScores(s, queries, ring.stage);
    wgmma_wait<0>();
    pin(s);
    int j = 0, before = ring.stage;
    do {  // once without a page: a loop that may not run at all is such a branch too
      const int stage = ring.stage;
      const float k_scale = shared.scale[stage][0], v_scale = shared.scale[stage][1];
      IssueValues(part, p, before);  // at first weights of 0
      if (pages > 0) ring.advance();
      float alpha[2], next[2];
      const TurboPage page = ReadScores(s, q_factor, k_scale, table, state, alpha, next);
      WaitFull();
      IssueScores(s, queries, ring.stage);
      wgmma_wait<1>();
      pin(part);
      RescaleOutputs(o, alpha);
#pragma unroll
      for (int i = 0; i < 2; ++i) factor[i] *= alpha[i];
      AddSums(o, part, factor);
      Weigh(page, table, state, p);
#pragma unroll
      for (int i = 0; i < 2; ++i) factor[i] = next[i] * v_scale;
      ReleaseAfter(p, before, j > 0);
      before = stage;
      wgmma_wait<0>();
      pin(s);
    } while (++j < pages);
    IssueValues(part, p, before);
    wgmma_wait<0>();
    pin(part);
    if (pages > 0) {
      Release(before);
      AddSums(o, part, factor);
    } else {
      state = TurboState{};
      ClearOutputs(o);
    }
  }
  // The own page, from three stages of the ring where the warpgroup has rows.
  NIBBLE_DEVICE void AttendOwn(bool has, TurboState& state, float (&o)[kOutputs]) {
    float s[32], alpha[2];
    uint32_t p[4][4];
    int stage[3];
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      stage[i] = ring.stage;
      if (!has) continue;
      WaitFull();
      ring.advance();
    }
    const uint64_t q = k_major(shared.stage[stage[0]]), k = k_major(shared.stage[stage[1]]),
                   v = mn_major(shared.stage[stage[2]], kPage);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      const uint64_t at = step / 4 * (kPanelBytes / 16) + step % 4 * kStepK;
      wgmma_bf16_ss(s, q + at, k + at, step > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    pin(s);
    WeighOwn(s, row, a.scale, table, state, p, alpha);
    RescaleOutputs(o, alpha);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; ++step) wgmma_bf16_bt_rs(o, p[step], v + step * kStepMn, 1);
    wgmma_commit();
    wgmma_wait<0>();
    pin(o);
#pragma unroll
    for (int i = 0; i < 3; ++i) barrier_arrive_if(&shared.empty[stage[i]], has && lane == 0);
  }
  // out = o / sum as bf16, 16 bytes a lane.
  NIBBLE_DEVICE void Store(const Work& w, const TurboState& state, const float (&o)[kOutputs]) {
    auto* out = static_cast<__nv_bfloat16*>(a.out) + w.head * kDim;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float sum = state.sum[i];
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      const float inverse = 1.0f / sum;
      const int at = kPage * mine + row + 8 * i;
#pragma unroll
      for (int j = 0; j < kDim / 8; j += 4) {
        uint32_t v[4];
#pragma unroll
        for (int r = 0; r < 4; ++r)
          v[r] = to_bf16x2(o[4 * (j + r) + 2 * i] * inverse, o[4 * (j + r) + 2 * i + 1] * inverse);
        transpose_quad(v);
        if (at >= w.first && at < w.queries)
          *reinterpret_cast<uint4*>(out + (w.query + at) * a.out_stride + 8 * (j + lane % 4)) =
              make_uint4(v[0], v[1], v[2], v[3]);
      }
    }
  }
  NIBBLE_DEVICE void Run(int units) {
    for (int round = 0; unit_of(round) < units; ++round) {
      barrier_wait(&shared.q_full[q_ring.stage], q_ring.parity);
      const Work w = shared.work[q_ring.stage];
      const bool has = w.Has(mine);
      TurboState state;
      float o[kOutputs];
      ClearOutputs(o);
      const int pages = has ? 2 * w.block + mine : 0;
      AttendSealed(pages, state, o);
      __syncwarp();  // all lanes have read `work`
      barrier_arrive_if(&shared.q_empty[q_ring.stage], lane == 0);
      q_ring.advance();
      Skip(w.Older() - pages);
      if (mine == 1 && w.Has(0)) Skip(3);
      AttendOwn(has, state, o);
      if (mine == 0 && w.Has(1)) Skip(3);
      if (has) Store(w, state, o);
    }
  }
};

template <int kDim>
__global__ __launch_bounds__(384, 1) void TurboKernel(const __grid_constant__ Maps maps,
                                                      const __grid_constant__ TurboAttentionArgs a,
                                                      const __grid_constant__ SasTable table) {
  using Memory = Shared<kDim>;
  extern __shared__ uint8_t raw[];
  auto& shared = *reinterpret_cast<Memory*>(raw + ((1024 - (shared_address(raw) & 1023)) & 1023));
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) {
      barrier_init(&shared.q_full[i], 1);
      barrier_init(&shared.q_empty[i], 8);  // one arrival a consumer warp
    }
    for (int s = 0; s < Memory::kStages; ++s) {
      barrier_init(&shared.full[s], 1);
      barrier_init(&shared.empty[s], 8);
    }
    barrier_init_fence();
  }
  if (threadIdx.x < 32) shared.table[threadIdx.x] = table;
  __syncthreads();
  const int units = a.plan.heads * a.plan.q_tiles;
  if (threadIdx.x < 128) {
    shrink_registers<24>();
    if (threadIdx.x == 0) Producer<kDim>{maps, a, shared}.Run(units);
  } else {
    grow_registers<240>();
    const SasTable mine = shared.table[threadIdx.x % 32];
    Consumer<kDim>{a, mine, shared}.Run(units);
  }
}

template <int kDim>
bool MakeMaps(const TurboAttentionArgs& a, Maps* maps) {
  const TurboPlan& p = a.plan;
  const uint64_t pages = uint64_t(p.kv_heads) * uint64_t(p.pages), rows = pages * kPage;
  return make_map_8bit(&maps->q, a.tiles.q, uint64_t(p.heads) * p.q_tiles * kTile, kDim, kTile, kDim) ==
             cudaSuccess &&
         make_map_8bit(&maps->k, a.tiles.k, rows, kDim, kPage, kDim) == cudaSuccess &&
         make_map_8bit(&maps->v, a.tiles.v, pages * kDim, kPage, kDim, kPage) == cudaSuccess &&
         make_map_bf16(&maps->own_q, a.q, uint64_t(a.q_rows), uint64_t(p.heads) * kDim, kPage,
                       uint64_t(a.q_stride) * 2) == cudaSuccess &&
         make_map_bf16(&maps->own_k, a.k, rows, kDim, kPage) == cudaSuccess &&
         make_map_bf16(&maps->own_v, a.v, rows, kDim, kPage) == cudaSuccess;
}

template <int kDim>
Launch Run(const TurboAttentionArgs& a, Stream stream) {
  Maps maps;
  if (!MakeMaps<kDim>(a, &maps)) return Refused("turbo: a tensor map was refused");
  const auto kernel = TurboKernel<kDim>;
  constexpr int kShared = sizeof(Shared<kDim>) + 1024;
  static_assert(kShared <= 227 * 1024);
  static const cudaError_t allowed = AllowShared(kernel, kShared);
  if (allowed != cudaSuccess) return {int(allowed), "TurboAttention: shared memory"};
  kernel<<<min(multiprocessors(), a.plan.heads * a.plan.q_tiles), 384, kShared, stream>>>(
      maps, a, MakeSasTable(a.polynomial, a.threshold));
  return Launched("TurboAttention");
}

}  // namespace

Launch TurboAttention(const TurboAttentionArgs& a, Stream stream) {
  if (a.plan.head_dim != 64 && a.plan.head_dim != 128) return Refused("turbo: head_dim must be 64 or 128");
  if (a.q_stride % 8 || a.out_stride % 8) return Refused("turbo: row strides must be multiples of 8");
  if (a.polynomial.base2 || a.threshold < -6 || a.threshold > -1)
    return Refused("turbo: SAS in base e with a threshold from -6 to -1");
  return a.plan.head_dim == 64 ? Run<64>(a, stream) : Run<128>(a, stream);
}

}  // namespace nibble::cuda
