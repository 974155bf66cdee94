// SPDX-License-Identifier: Apache-2.0
// The kernel: a block is one chunk of one entry and KV head, for up to 8 kN of its query rows x heads. Its four
// warps take tiles in turn, each with its own ring of copies under way, its own softmax and no barrier until the
// end; then the warps merge in order, and of several chunks the block that ends last merges all, in order.
#pragma once
#include <cuda_bf16.h>

#include "kernels/cuda/decode_merge.cuh"
#include "kernels/cuda/decode_tile.cuh"

namespace nibble::cuda::decode {

// Sizes of one instance. A stage holds a tile of K and one of V. The open page's tile of 16 raw tokens is the
// first a warp reads; it takes as many stages as it needs.
template <class K, class V, int kDim_, int kN_>
struct Config {
  static constexpr int kDim = kDim_, kN = kN_;
  static constexpr int kTokens = Min(TokensOf<K>(kDim), TokensOf<V>(kDim));
  using KeyTile = Tile<K, kTokens, kDim>;
  using ValueTile = Tile<V, kTokens, kDim>;
  using Raw = Codec<kv::CodecId::kF16, Affine::kRaw, 16, K::kBf16>;
  using OpenTile = Tile<Raw, kOpenTokens, kDim>;
  static constexpr int kStageBytes = KeyTile::kBytes + ValueTile::kBytes;
#ifdef NIBBLE_DECODE_STAGES
  static constexpr int kStages = NIBBLE_DECODE_STAGES;
#else
  static constexpr int kStages = kStageBytes < 6000 ? 3 : 2;
#endif
  // The next tile of K is requested before V of the open tile is read.
  static constexpr int kOpenValues = Max(KeyTile::kBytes, OpenTile::kBytes);
  static constexpr int kOpenStages = (kOpenValues + OpenTile::kBytes + kStageBytes - 1) / kStageBytes;
  static constexpr int kRingBytes = kStages * kStageBytes;
  static constexpr int kSharedBytes = Max(kWarps * kRingBytes, MergeBytes<kDim, kN>());
  static constexpr int kBlocks = Min(kN == 1 && kDim <= 128 ? 4 : 2, 227 * 1024 / (kSharedBytes + 1024));
  static_assert(kOpenStages <= kStages && K::kBf16 == V::kBf16);
};

// Copies of one warp: tile i of the sealed pages is tile first + kWarps * i of the chunk.
template <class Cfg, class K, class V>
struct Feed {
  const DecodeArgs& a;
  const Item& item;
  uint32_t ring;
  int warp, open, first, total;  // open: stages of the open tile; total: those and the sealed tiles
  int32_t table;                 // of lane l: page l of the chunk
  typename Cfg::KeyTile::Places key_places;
  typename Cfg::ValueTile::Places value_places;

  static constexpr int kTilesOfPage = kPage / Cfg::kTokens;

  __device__ __forceinline__ Feed(const DecodeArgs& args, const Item& of, uint32_t shared) : a(args), item(of) {
    const int lane = int(threadIdx.x % 32);
    key_places = Cfg::KeyTile::PlacesOf(lane);
    value_places = Cfg::ValueTile::PlacesOf(lane);
    warp = int(threadIdx.x / 32);
    ring = shared + uint32_t(warp * Cfg::kRingBytes);
    const int page = item.chunk_page + lane;  // read before the length is known, and used if it is in the range
    table = lane < a.chunk_pages && page < a.max_pages ? a.page_table[int64_t{item.entry} * a.max_pages + page] : 0;
    const int begin = (item.page_begin - item.chunk_page) * kTilesOfPage;
    const int end = (item.page_end - item.chunk_page) * kTilesOfPage;
    first = begin + (warp - begin % kWarps + kWarps) % kWarps;
    open = item.has_open && OpenLast() > 0 && OpenFirst() < kOpenTokens ? Cfg::kOpenStages : 0;
    total = open + (first < end ? (end - first + kWarps - 1) / kWarps : 0);
  }
  // Seen tokens of the warp's part of the open page.
  __device__ __forceinline__ int OpenStart() const { return item.sealed * kPage + warp * kOpenTokens; }
  __device__ __forceinline__ int OpenFirst() const { return item.first_seen - OpenStart(); }
  __device__ __forceinline__ int OpenLast() const { return item.length - OpenStart(); }

  __device__ __forceinline__ uint32_t Stage(int i) const { return ring + uint32_t(i % Cfg::kStages * Cfg::kStageBytes); }
  __device__ __forceinline__ int Start(int i) const {  // position of the first token of a sealed tile
    return item.chunk_page * kPage + (first + (i - open) * kWarps) * Cfg::kTokens;
  }
  template <class C, class T>
  __device__ __forceinline__ void Load(const DecodeSide& side, uint32_t to, const typename T::Places& places,
                                       uint32_t open_at, int i) {
    if (i < open) {
      if (i > 0) return;
      const int64_t index = a.open_index != nullptr ? a.open_index[item.entry] : item.entry;
      const std::byte* page = side.open + index * side.open_stride + item.head * side.open_head_stride;
      CopyTile<typename Cfg::Raw, typename Cfg::OpenTile>(open_at, page, warp * kOpenTokens, a.head_dim, OpenFirst(),
                                                          OpenLast(), Cfg::OpenTile::PlacesOf(int(threadIdx.x % 32)));
    } else if (i < total) {
      const int tile = first + (i - open) * kWarps;
      const int64_t index = __shfl_sync(kAll, table, tile / kTilesOfPage);
      const std::byte* page = side.pool + index * side.page_stride + item.head * side.head_stride;
      CopyTile<C, T>(to, page, tile % kTilesOfPage * Cfg::kTokens, a.head_dim, item.first_seen - Start(i),
                     Cfg::kTokens, places);
    }
  }
  __device__ __forceinline__ void LoadKeys(int i) {
    Load<K, typename Cfg::KeyTile>(a.k, Stage(i), key_places, ring, i);
    CopyCommit();
  }
  __device__ __forceinline__ void LoadValues(int i) {
    Load<V, typename Cfg::ValueTile>(a.v, Stage(i) + Cfg::KeyTile::kBytes, value_places, ring + Cfg::kOpenValues, i);
    CopyCommit();
  }
};

// The B operand: q of column g, channels as KeyChannel has them, divided by what the codes carry. Also the sums
// of q, for the columns of this lane's scores.
template <class C, int kDim, int kN>
__device__ __forceinline__ void LoadQueries(uint32_t (&x)[kN][kDim / 8], Queries<kN>& queries, const DecodeArgs& a,
                                            const Item& item, float scale) {
  constexpr int kH = C::kHalves;
  const int g = int(threadIdx.x % 32 / 4), j = int(threadIdx.x % 4);
#pragma unroll
  for (int n = 0; n < kN; ++n) {
    const int query = item.query0 + 8 * n + g;
    const bool real = query < item.rows * item.group;
    const uint16_t* q = a.q + (item.row0 + query / item.group) * a.q_stride +
                        int64_t{item.head * item.group + query % item.group} * a.head_dim;
    float sum = 0;
#pragma unroll
    for (int c = 0; c < kDim / (8 * kH); ++c) {
      const int channel = KeyChannel<C>(c, j, 0);
      uint32_t words[kH];
#pragma unroll
      for (int w = 0; w < kH; ++w)
        words[w] = real && channel < a.head_dim ? __ldg(reinterpret_cast<const uint32_t*>(q + channel) + w) : 0;
      if constexpr (C::kBf16) {
        x[n][c] = words[0];
      } else {
        float values[2 * kH];
#pragma unroll
        for (int w = 0; w < kH; ++w) {
          values[2 * w] = __uint_as_float(words[w] << 16);
          values[2 * w + 1] = __uint_as_float(words[w] & 0xffff0000u);
          sum += values[2 * w] + values[2 * w + 1];
        }
#pragma unroll
        for (int i = 0; i < kH; ++i) {
          const float unit = 1.0f / float(1 << C::Weight(i));
          x[n][c * kH + i] = Bits(__floats2half2_rn(values[i] * unit, values[i + kH] * unit));
        }
      }
    }
    sum += __shfl_xor_sync(kAll, sum, 1);
    sum += __shfl_xor_sync(kAll, sum, 2);
#pragma unroll
    for (int e = 0; e < 2; ++e) queries.sum[n][e] = __shfl_sync(kAll, sum, (2 * j + e) * 4) * scale;
  }
}

template <int kN>
__device__ __forceinline__ void SetPositions(Queries<kN>& queries, const DecodeArgs& a, const Item& item) {
#pragma unroll
  for (int n = 0; n < kN; ++n)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int query = item.query0 + 8 * n + int(threadIdx.x % 4) * 2 + e;
      const int last = item.length - item.rows + min(query / item.group, item.rows - 1);
      queries.last[n][e] = last;
      queries.first[n][e] = a.window > 0 ? last - a.window + 1 : 0;
    }
}

// True when some row does not see some of the tokens start .. start + tokens - 1.
__device__ __forceinline__ bool Masked(const DecodeArgs& a, const Item& item, int start, int tokens) {
  return start + tokens - 1 > item.length - item.rows || (a.window > 0 && start <= item.length - 1 - a.window);
}

// The outputs of the open tile stand by the channels of raw rows. Brings them to the channels and units of V, by
// way of the tile's own memory.
template <class V, int kDim, int kN>
__device__ __forceinline__ void Rearrange(State<kDim, kN>& state, float* shared) {
  const int g = int(threadIdx.x % 32 / 4), j = int(threadIdx.x % 4);
  constexpr int kPitch = 8 * kN;
  __syncwarp();
#pragma unroll
  for (int u = 0; u < kDim / 8; ++u)
#pragma unroll
    for (int n = 0; n < kN; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e)
        shared[(8 * u + g) * kPitch + 8 * n + 2 * j + e] = state.o[u / 2][n][u % 2 * 2 + e];
  __syncwarp();
#pragma unroll
  for (int u = 0; u < kDim / 8; ++u)
#pragma unroll
    for (int n = 0; n < kN; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e)
        state.o[u / 2][n][u % 2 * 2 + e] =
            shared[ValueChannel<V>(u, g) * kPitch + 8 * n + 2 * j + e] * (1.0f / ValueUnit<V>(u));
}

// This warp's share of the open page: the first tile of its feed.
template <class Cfg, class K, class V>
__device__ __forceinline__ void AttendOpen(State<Cfg::kDim, Cfg::kN>& state, Queries<Cfg::kN>& queries,
                                           const Feed<Cfg, K, V>& feed, char* shared, float scale) {
  using Raw = typename Cfg::Raw;
  using T = typename Cfg::OpenTile;
  uint32_t q[Cfg::kN][T::kWords];
  LoadQueries<Raw, Cfg::kDim>(q, queries, feed.a, feed.item, scale);
  CopyWait<2 * Cfg::kStages - 2>();
  __syncwarp();
  float s[1][Cfg::kN][4];
  Scores<Raw, T>(s, feed.ring, q, queries, scale);
  Mask(s, queries, feed.OpenStart());
  Weigh(s, state);
  Values<Raw, T>(s, feed.ring + Cfg::kOpenValues, state, true);
  if constexpr (V::kHalves != 1) {
    // K and V of the tile are two ranges; the values' range and what precedes it hold the outputs.
    static_assert(Cfg::kOpenValues + T::kBytes >= Cfg::kDim * 8 * Cfg::kN * 4);
    Rearrange<V>(state, reinterpret_cast<float*>(shared + feed.warp * Cfg::kRingBytes));
  }
  __syncwarp();
}

template <class Cfg, class K, class V>
__global__ void __launch_bounds__(32 * kWarps, Cfg::kBlocks) DecodeKernel(const __grid_constant__ DecodeArgs a,
                                                                          const __grid_constant__ Plan plan) {
  extern __shared__ __align__(128) char shared[];
  constexpr int kN = Cfg::kN, kDim = Cfg::kDim, kPending = 2 * Cfg::kStages - 1;
  const Item item(a, plan, 8 * kN);
  Feed<Cfg, K, V> feed(a, item, SharedAddress(shared));
  if (!item.Present()) return;
  if (a.head_dim != kDim) {  // channels that no copy reaches
    uint4* ring = reinterpret_cast<uint4*>(shared + feed.warp * Cfg::kRingBytes);
    for (int i = int(threadIdx.x % 32); i < Cfg::kRingBytes / 16; i += 32) ring[i] = uint4{0, 0, 0, 0};
    __syncwarp();
  }
#pragma unroll
  for (int i = 0; i < Cfg::kStages; ++i) feed.LoadKeys(i), feed.LoadValues(i);
  State<kDim, kN> state;
  state.Clear();
  Queries<kN> queries;
  SetPositions(queries, a, item);
  if (feed.open > 0) {
    AttendOpen(state, queries, feed, shared, plan.scale);
    for (int i = 0; i < feed.open; ++i) feed.LoadKeys(i + Cfg::kStages), feed.LoadValues(i + Cfg::kStages);
  }
  uint32_t q[kN][kDim / 8];
  LoadQueries<K, kDim>(q, queries, a, item, plan.scale);
  for (int i = feed.open; i < feed.total; ++i) {
    using KeyTile = typename Cfg::KeyTile;
    const uint32_t stage = feed.Stage(i);
    const bool masked = Masked(a, item, feed.Start(i), Cfg::kTokens);
    float s[Cfg::kTokens / 16][kN][4];
    CopyWait<kPending>();
    __syncwarp();
    Scores<K, KeyTile>(s, stage, q, queries, plan.scale);
    __syncwarp();
    feed.LoadKeys(i + Cfg::kStages);
    if (masked) Mask(s, queries, feed.Start(i));
    Weigh(s, state);
    CopyWait<kPending>();
    __syncwarp();
    Values<V, typename Cfg::ValueTile>(s, stage + KeyTile::kBytes, state, masked);
    __syncwarp();
    feed.LoadValues(i + Cfg::kStages);
  }
  CopyWait<0>();
  __syncthreads();
  KeepState<V>(state, reinterpret_cast<float*>(shared));
  __syncthreads();
  Finish<kDim, kN>(a, plan, item, reinterpret_cast<float*>(shared));
}

template <class Cfg, class K, class V>
Launch LaunchConfig(const DecodeArgs& a, const Plan& plan, Stream stream) {
  static const cudaError_t allowed = AllowShared(DecodeKernel<Cfg, K, V>, Cfg::kSharedBytes);
  if (allowed != cudaSuccess) return {int(allowed), "attention_decode: this GPU has too little shared memory"};
  const dim3 grid(unsigned(plan.groups * plan.chunks), unsigned(a.kv_heads), unsigned(a.batch));
  DecodeKernel<Cfg, K, V><<<grid, 32 * kWarps, Cfg::kSharedBytes, stream>>>(a, plan);
  return Launched("attention_decode");
}

template <class K, class V>
Launch LaunchCodec(const DecodeArgs& a, const Plan& plan, Stream stream) {
  const bool wide = plan.queries == 16;
  if (a.head_dim > 128) return LaunchConfig<Config<K, V, 256, 1>, K, V>(a, plan, stream);
  if (a.head_dim > 64)
    return wide ? LaunchConfig<Config<K, V, 128, 2>, K, V>(a, plan, stream)
                : LaunchConfig<Config<K, V, 128, 1>, K, V>(a, plan, stream);
  return wide ? LaunchConfig<Config<K, V, 64, 2>, K, V>(a, plan, stream)
              : LaunchConfig<Config<K, V, 64, 1>, K, V>(a, plan, stream);
}

}  // namespace nibble::cuda::decode
