// SPDX-License-Identifier: Apache-2.0
// Exact attention in bf16. A block is persistent: one producer warp feeds rings of keys and values with TMA,
// two consumer warpgroups own 64 queries each. A warpgroup issues Q K^T of the next tile, then P V of this
// one, and computes the softmax of the next while the second runs; the other warpgroup fills what remains.
// Keys are visited from the last to the first, so only the first tiles need a mask.
//
// With two kinds of pages a unit's queries stand at positions 128 b .. 128 b + 127. It visits its own two
// pages; then, where it has queries of the second, the first page as those see it; then older pages two by
// two. What a row visits hangs on its position alone, and a visit that it is hidden from adds zeros.
#include <cuda_bf16.h>

#include "kernels/cuda/attention_prefill.h"
#include "kernels/cuda/launched.cuh"
#include "kernels/cuda/sm90/descriptor.cuh"
#include "kernels/cuda/sm90/exact_softmax.cuh"
#include "kernels/cuda/sm90/tensor_map.cuh"
#include "kernels/cuda/sm90/tile.cuh"

namespace nibble::cuda {
namespace {

using namespace nibble::hopper;

constexpr int kTile = 128, kHalf = 64;  // queries and keys of a tile; keys of a load, which is a page
constexpr int kPanelBytes = kTile * kSwizzleBytes;  // 64 channels of a tile

// A unit of work: 128 queries of one head. Made by the producer, which runs ahead.
struct Work {
  int head, sequence, k_tiles;  // k_tiles: those the queries see, at least one
  int query, queries;           // first query row in the packed input; rows of this tile
  int position, keys;           // of the first query: how many keys it sees; keys of the sequence
  int first;                    // rows of the tile that belong to another step: `query` is that of row 0
  PageBases bases;
};

template <int kDim>
struct alignas(1024) Shared {
  static constexpr int kPanels = kDim / 64, kBytes = kPanels * kPanelBytes, kStages = 256 / kDim;
  uint8_t q[2][kBytes], k[kStages][kBytes], v[kStages][kBytes];
  Work work[2];
  uint64_t q_full[2], q_empty[2], k_full[kStages], k_empty[kStages], v_full[kStages], v_empty[kStages];
  uint64_t landed;  // values that the producer has yet to cut off
};

template <bool kTwo>
NIBBLE_DEVICE Work FindWork(const ExactAttentionArgs& a, int index) {
  Work w;
  w.head = index / a.q_tiles;
  const int tile = a.q_tiles - 1 - index % a.q_tiles;  // with a causal mask the longest come first
  int s = 0;
  while (tile >= a.q_tile_ends[s]) ++s;
  const int at = (tile - (s > 0 ? a.q_tile_ends[s - 1] : 0)) * kTile;
  const int queries = a.q_offsets[s + 1] - a.q_offsets[s];
  w.sequence = s;
  w.keys = a.k_offsets[s + 1] - a.k_offsets[s];
  w.first = 0;
  if constexpr (kTwo) {
    const int start = w.keys - queries, block = start / kTile + at / kTile;
    w.bases = a.bases[s];
    w.first = max(0, start - block * kTile);
    w.query = a.q_offsets[s] + block * kTile - start;
    w.queries = min(kTile, w.keys - block * kTile);
    w.position = block * kTile + 1;
    w.k_tiles = a.own_only ? 1 : block + (w.queries > kHalf ? 2 : 1);
    return w;
  }
  w.query = a.q_offsets[s] + at;
  w.queries = min(kTile, queries - at);
  w.position = a.causal ? w.keys - queries + at + 1 : w.keys;
  const int seen = a.causal ? min(w.keys, w.position + w.queries - 1) : w.keys;
  w.k_tiles = max(1, (seen + kTile - 1) / kTile);
  return w;
}

struct Maps {
  CUtensorMap q, k, v, k_open, v_open;  // contiguous rows, or sealed pages and open ones
};

// The page of half `half` of visit j.
NIBBLE_DEVICE int PageOf(const Work& w, int j, int half) {
  const int visit = w.k_tiles - 1 - j, own = w.position / kTile * 2;
  const bool second = w.queries > kHalf;  // a page that has no rows in this call may not be there
  if (visit == 0) return w.bases.own + own + (w.first >= kHalf ? 1 : second ? half : 0);
  return w.bases.older + (visit == 1 && second ? own : 2 * j + half);
}

template <int kDim, bool kTwo>
struct Producer {
  const Maps& maps;
  const ExactAttentionArgs& a;
  Shared<kDim>& shared;
  const bool lead = threadIdx.x == 0;
  uint32_t landed_parity = 0;

  // Half `half` of tile j: 64 rows of K or V, which are neighbours in memory.
  NIBBLE_DEVICE void LoadHalf(const Work& w, bool values, int j, int half, uint8_t* to, uint64_t* bar) {
    const int first = j * kTile + half * kHalf, kv_head = w.head / (a.heads / a.kv_heads);
    const CUtensorMap* map = values ? &maps.v : &maps.k;
    int column = kv_head * kDim, row = a.k_offsets[w.sequence] + first;
    if constexpr (kTwo) {
      column = 0, row = (PageOf(w, j, half) * a.kv_heads + kv_head) * kHalf;
    } else if (a.page_table != nullptr) {
      const KvPages& pages = values ? a.v_pages : a.k_pages;
      const bool open = first / kHalf == (w.keys - 1) / kHalf;
      const int64_t page = open ? (a.open_index != nullptr ? a.open_index[w.sequence] : w.sequence)
                                : a.page_table[int64_t{w.sequence} * a.max_pages + first / kHalf];
      const int64_t at = open ? page * pages.open_stride + kv_head * pages.open_head_stride
                              : page * pages.page_stride + kv_head * pages.head_stride;
      if (open) map = values ? &maps.v_open : &maps.k_open;
      column = 0, row = int(at / (kDim * 2));
    }
    for (int panel = 0; panel < Shared<kDim>::kPanels; ++panel)
      tma_load_2d(to + panel * kPanelBytes + half * kPanelBytes / 2, map, bar, column + 64 * panel, row);
  }
  // The halves of tile j that have keys.
  NIBBLE_DEVICE void LoadTile(const Work& w, bool values, int j, uint8_t* to, uint64_t* bar) {
    const int halves = kTwo || w.keys - j * kTile > kHalf ? 2 : w.keys > 0 ? 1 : 0;
    barrier_arrive_expect(bar, uint32_t(halves * Shared<kDim>::kBytes / 2));
    for (int half = 0; half < halves; ++half) LoadHalf(w, values, j, half, to, bar);
  }
  // Values behind the last key become 0: another sequence, or nobody, wrote there, and 0 * NaN is NaN.
  NIBBLE_DEVICE void LoadLastValues(const Work& w, int j, uint8_t* to, uint64_t* bar) {
    if (lead) LoadTile(w, true, j, to, &shared.landed);
    barrier_wait(&shared.landed, landed_parity);
    landed_parity ^= 1;
    const int first = w.keys - j * kTile;
    for (int panel = 0; panel < Shared<kDim>::kPanels; ++panel)
      for (int i = first * 8 + int(threadIdx.x); i < kTile * 8; i += 32)
        reinterpret_cast<uint4*>(to + panel * kPanelBytes)[i] = make_uint4(0, 0, 0, 0);
    fence_proxy_async();
    __syncwarp();
    if (lead) barrier_arrive(bar);
  }
  NIBBLE_DEVICE void LoadQueries(const Work& w, int stage) {
    shared.work[stage] = w;
    barrier_arrive_expect(&shared.q_full[stage], Shared<kDim>::kBytes);
    for (int panel = 0; panel < Shared<kDim>::kPanels; ++panel)
      tma_load_2d(shared.q[stage] + panel * kPanelBytes, &maps.q, &shared.q_full[stage],
                  w.head * kDim + 64 * panel, w.query);
  }
  NIBBLE_DEVICE void Run(int units) {
    RingPosition<2> q_ring;
    RingPosition<Shared<kDim>::kStages> ring;
    for (int round = 0; unit_of(round) < units; ++round, q_ring.advance()) {
      const Work w = FindWork<kTwo>(a, unit_of(round));
      barrier_wait(&shared.q_empty[q_ring.stage], q_ring.parity ^ 1);
      if (lead) LoadQueries(w, q_ring.stage);
      for (int j = w.k_tiles - 1; j >= 0; --j, ring.advance()) {
        const int s = ring.stage;
        barrier_wait(&shared.k_empty[s], ring.parity ^ 1);
        if (lead) LoadTile(w, false, j, shared.k[s], &shared.k_full[s]);
        barrier_wait(&shared.v_empty[s], ring.parity ^ 1);
        if (!kTwo && w.keys - j * kTile < kTile)
          LoadLastValues(w, j, shared.v[s], &shared.v_full[s]);
        else if (lead)
          LoadTile(w, true, j, shared.v[s], &shared.v_full[s]);
      }
    }
  }
};

// One warpgroup: 64 queries of each unit.
template <int kDim, bool kTwo>
struct Consumer {
  using Memory = Shared<kDim>;
  using Ring = RingPosition<Memory::kStages>;
  // The warpgroups take turns at issuing products: the softmax of one then falls under the products of the
  // other. At head size 64 the softmax takes longer than they do, and turns cost 2%.
  static constexpr bool kTurns = kDim == 128;
  const ExactAttentionArgs& a;
  Memory& shared;
  const int mine = int(threadIdx.x) / 128 - 1, lane = int(threadIdx.x) % 32;
  const int row = 64 * mine + int(threadIdx.x) % 128 / 32 * 16 + lane / 4;  // first of the thread's two
  RingPosition<2> q_ring;
  Ring k_ring, v_ring;
  ExactState state;
  float s[64], o[kDim / 2];
  uint32_t p[8][4];

  // s = Q K^T of the next tile in the ring.
  NIBBLE_DEVICE void IssueScores() {
    wgmma_fence();
    const uint64_t queries = k_major(shared.q[q_ring.stage]) + mine * (kHalf * kSwizzleBytes / 16),
                   keys = k_major(shared.k[k_ring.stage]);
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      const uint64_t at = step / 4 * (kPanelBytes / 16) + step % 4 * kStepK;
      wgmma_bf16_ss(s, queries + at, keys + at, step > 0);
    }
    wgmma_commit();
  }
  // o += P V.
  NIBBLE_DEVICE void IssueValues() {
    wgmma_fence();
    const uint64_t values = mn_major(shared.v[v_ring.stage], kTile);
#pragma unroll
    for (int step = 0; step < 8; ++step) wgmma_bf16_bt_rs(o, p[step], values + step * kStepMn, 1);
    wgmma_commit();
  }
  // The scores of tile j become weights, from which the keys of a row that it does not see are hidden.
  NIBBLE_DEVICE void WeighTile(const Work& w, int j, float (&alpha)[2]) {
    pin(s);
    barrier_arrive_if(&shared.k_empty[k_ring.stage], lane == 0);
    k_ring.advance();
    if constexpr (kTwo) {
      if (j == w.k_tiles - 1) MaskScores(s, kHalf * mine, row + 1, kTile);
      if (j == w.k_tiles - 2 && w.queries > kHalf) MaskScores(s, 0, kTile, kHalf * mine);
    } else {
      const int limit = w.keys - j * kTile, visible = a.causal ? w.position + row - j * kTile : kTile;
      if (limit < kTile || (a.causal && w.position + 64 * mine - j * kTile < kTile))
        MaskScores(s, 0, visible, limit);
    }
    UpdateState(s, a.scale * kLog2e, &state, alpha);
  }
  // The product with V is done.
  NIBBLE_DEVICE void TakeOutputs() {
    wgmma_wait<0>();
    pin(o);
    barrier_arrive_if(&shared.v_empty[v_ring.stage], lane == 0);
    v_ring.advance();
  }
  NIBBLE_DEVICE void ClearOutputs() {
#pragma unroll
    for (int r = 0; r < kDim / 2; ++r) o[r] = 0;
  }
  // Tile after tile over all units: Q K^T of the next one is issued, then P V of this one, and the softmax of
  // the next runs while the second is under way.
  NIBBLE_DEVICE void Run(int units) {
    int round = 0;
    if (unit_of(round) >= units) return;
    barrier_wait(&shared.q_full[0], 0);
    Work w = shared.work[0];
    int j = w.k_tiles - 1;
    float alpha[2];
    ClearOutputs();
    barrier_wait(&shared.k_full[0], 0);
    IssueScores();
    wgmma_wait<0>();
    WeighTile(w, j, alpha);
    PackWeights(s, p);
    if (kTurns && mine == 1) named_arrive(1, 256);
    while (j > 0 || unit_of(round + 1) < units) {
      const bool turn = j == 0;  // the next tile is of the next unit
      const ExactState ended = state;
      Work next = w;
      if (turn) {
        barrier_arrive_if(&shared.q_empty[q_ring.stage], lane == 0);
        ++round;
        q_ring.advance();
        barrier_wait(&shared.q_full[q_ring.stage], q_ring.parity);
        next = shared.work[q_ring.stage];
        j = next.k_tiles;
        state = ExactState{};
      }
      --j;
      barrier_wait(&shared.v_full[v_ring.stage], v_ring.parity);
      barrier_wait(&shared.k_full[k_ring.stage], k_ring.parity);
      if (kTurns) named_sync(1 + mine, 256);
      IssueScores();
      IssueValues();
      if (kTurns) named_arrive(2 - mine, 256);
      wgmma_wait<1>();
      WeighTile(next, j, alpha);
      TakeOutputs();
      if (turn) {
        Store(w, ended);
        ClearOutputs();
        w = next;
      } else {
        Rescale(o, alpha);
      }
      PackWeights(s, p);
    }
    barrier_wait(&shared.v_full[v_ring.stage], v_ring.parity);
    IssueValues();
    TakeOutputs();
    Store(w, state);
  }
  // out = o / sum as bf16, 16 bytes a lane, and the log-sum-exp.
  NIBBLE_DEVICE void Store(const Work& w, const ExactState& ended) {
    const int quad = lane % 4;
    auto* out = static_cast<__nv_bfloat16*>(a.out) + w.head * kDim;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float sum = SumOfQuad(ended.sum[i]), inverse = 1.0f / sum;
      const int at = row + 8 * i;
      const bool sees = w.keys > 0 && (!a.causal || w.position + at > 0);  // or the output is 0
      if (a.lse != nullptr && quad == 0 && at >= w.first && at < w.queries)
        a.lse[int64_t{w.query + at} * a.heads + w.head] =
            sees ? (ended.max[i] + log2f(sum)) * 0.69314718f : -INFINITY;
#pragma unroll
      for (int j = 0; j < kDim / 8; j += 4) {
        uint32_t v[4];
#pragma unroll
        for (int r = 0; r < 4; ++r)
          v[r] = sees ? to_bf16x2(o[4 * (j + r) + 2 * i] * inverse, o[4 * (j + r) + 2 * i + 1] * inverse) : 0;
        transpose_quad(v);
        if (at >= w.first && at < w.queries)
          *reinterpret_cast<uint4*>(out + (w.query + at) * a.out_stride + 8 * (j + quad)) =
              make_uint4(v[0], v[1], v[2], v[3]);
      }
    }
  }
};

template <int kDim, bool kTwo>
__global__ __launch_bounds__(384, 1) void ExactKernel(const __grid_constant__ Maps maps,
                                                      const ExactAttentionArgs a) {
  extern __shared__ uint8_t raw[];
  auto& shared = *reinterpret_cast<Shared<kDim>*>(raw + ((1024 - (shared_address(raw) & 1023)) & 1023));
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) {
      barrier_init(&shared.q_full[i], 1);
      barrier_init(&shared.q_empty[i], 8);  // one arrival a consumer warp
    }
    for (int s = 0; s < Shared<kDim>::kStages; ++s) {
      barrier_init(&shared.k_full[s], 1);
      barrier_init(&shared.v_full[s], 1);
      barrier_init(&shared.k_empty[s], 8);
      barrier_init(&shared.v_empty[s], 8);
    }
    barrier_init(&shared.landed, 1);
    barrier_init_fence();
  }
  __syncthreads();
  const int units = a.heads * a.q_tiles;
  if (threadIdx.x < 128) {
    shrink_registers<24>();
    if (threadIdx.x < 32) Producer<kDim, kTwo>{maps, a, shared}.Run(units);
  } else {
    grow_registers<240>();
    Consumer<kDim, kTwo>{a, shared}.Run(units);
  }
}

template <int kDim>
cudaError_t MakeMaps(Maps* maps, const ExactAttentionArgs& a) {
  const auto map = [](CUtensorMap* to, const void* data, int64_t rows, int64_t columns, int64_t stride,
                      int box) {
    return make_map_bf16(to, data, uint64_t(rows > 0 ? rows : 1), uint64_t(columns), uint32_t(box),
                         uint64_t(stride) * 2);
  };
  if (const cudaError_t e = map(&maps->q, a.q, a.q_rows, int64_t{a.heads} * kDim, a.q_stride, kTile))
    return e;
  if (a.bases != nullptr) {
    if (const cudaError_t e = map(&maps->k, a.k, a.k_rows, kDim, kDim, kHalf)) return e;
    return map(&maps->v, a.v, a.k_rows, kDim, kDim, kHalf);
  }
  if (a.page_table == nullptr) {
    const int64_t columns = int64_t{a.kv_heads} * kDim;
    if (const cudaError_t e = map(&maps->k, a.k, a.k_rows, columns, a.k_stride, kHalf)) return e;
    return map(&maps->v, a.v, a.k_rows, columns, a.v_stride, kHalf);
  }
  const std::pair<const KvPages*, std::pair<CUtensorMap*, CUtensorMap*>> sides[] = {
      {&a.k_pages, {&maps->k, &maps->k_open}}, {&a.v_pages, {&maps->v, &maps->v_open}}};
  for (const auto& [pages, to] : sides) {
    if (const cudaError_t e = map(to.first, pages->pool, pages->pool_bytes / (kDim * 2), kDim, kDim, kHalf))
      return e;
    if (const cudaError_t e = map(to.second, pages->open, pages->open_bytes / (kDim * 2), kDim, kDim, kHalf))
      return e;
  }
  return cudaSuccess;
}

template <int kDim, bool kTwo>
Launch Run(const ExactAttentionArgs& a, Stream stream) {
  Maps maps{};
  if (const cudaError_t e = MakeMaps<kDim>(&maps, a)) return {int(e), "exact attention: a tensor map"};
  const auto kernel = ExactKernel<kDim, kTwo>;
  constexpr int kBytes = sizeof(Shared<kDim>) + 1024;
  static_assert(kBytes <= 227 * 1024);
  static const cudaError_t allowed = AllowShared(kernel, kBytes);
  if (allowed != cudaSuccess) return {int(allowed), "exact attention: shared memory"};
  kernel<<<min(multiprocessors(), a.heads * a.q_tiles), 384, kBytes, stream>>>(maps, a);
  return Launched("exact attention");
}

const char* BrokenRule(const ExactAttentionArgs& a) {
  if (a.head_dim != 64 && a.head_dim != 128) return "exact attention: head_dim must be 64 or 128";
  if (a.kv_heads < 1 || a.heads % a.kv_heads != 0)
    return "exact attention: heads must be a multiple of kv_heads";
  if ((a.q_stride | a.k_stride | a.v_stride | a.out_stride) % 8 != 0)
    return "exact attention: row strides must be multiples of 8";
  if (a.bases != nullptr && !a.causal) return "exact attention: pages of two kinds want a causal mask";
  if (a.page_table == nullptr) return nullptr;
  for (const KvPages* p : {&a.k_pages, &a.v_pages})
    if ((p->page_stride | p->head_stride | p->open_stride | p->open_head_stride) % (a.head_dim * 2) != 0)
      return "exact attention: strides of pages must be multiples of a row";
  return nullptr;
}

}  // namespace

Launch ExactAttention(const ExactAttentionArgs& a, Stream stream) {
  if (const char* rule = BrokenRule(a); rule != nullptr) return Refused(rule);
  if (a.bases != nullptr) return a.head_dim == 64 ? Run<64, true>(a, stream) : Run<128, true>(a, stream);
  return a.head_dim == 64 ? Run<64, false>(a, stream) : Run<128, false>(a, stream);
}

}  // namespace nibble::cuda
