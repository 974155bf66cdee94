// SPDX-License-Identifier: Apache-2.0
// The kernel: a block is one chunk of one entry and KV head, for up to 8 kN of its query rows x heads. Its
// four warps take tiles in turn, each with its own ring of copies under way, its own softmax and no barrier
// until the end; then the warps merge in order, and of several chunks the block that ends last merges all, in
// order.
#pragma once
#include <cuda_bf16.h>

#include "kernels/cuda/decode_merge.cuh"
#include "kernels/cuda/decode_tile.cuh"
#include "kernels/cuda/programmatic.cuh"

namespace nibble::cuda::decode {

// Sizes of one instance. A warp's ring has slots for tiles of K, then one less for tiles of V: V is waited
// for later. The open page's tile of 16 raw tokens is the first a warp reads; it takes as many slots as it
// needs.
template <class K, class V, int kDim_, int kN_>
struct Config {
  static constexpr int kDim = kDim_, kN = kN_;
  static constexpr int kTokens = Min(TokensOf<K>(kDim), TokensOf<V>(kDim));
  using KeyTile = Tile<K, kTokens, kDim>;
  using ValueTile = Tile<V, kTokens, kDim>;
  using Raw = Codec<kv::CodecId::kF16, Affine::kRaw, 16, K::kBf16>;
  using OpenTile = Tile<Raw, kOpenTokens, kDim>;
  static constexpr int kOpenSlots = (OpenTile::kBytes + Min(KeyTile::kBytes, ValueTile::kBytes) - 1) /
                                    Min(KeyTile::kBytes, ValueTile::kBytes);
  static constexpr int kValueSlots = Max(KeyTile::kBytes + ValueTile::kBytes < 6000 ? 2 : 1, kOpenSlots);
  static constexpr int kKeySlots = kValueSlots + 1;
  static constexpr int kValueRing = kKeySlots * KeyTile::kBytes;
  static constexpr int kRingBytes = kValueRing + kValueSlots * ValueTile::kBytes;
  using KeyOperand = KeyQueries<K, KeyTile, kN>;
  static constexpr int kSharedBytes =
      Max(kWarps * kRingBytes + KeyOperand::kSharedBytes, MergeBytes<kDim, kN>());
  // By registers, then by shared memory.
  static constexpr int kFit = kN == 2 || kDim == 256 ? 2 : 4;
  static constexpr int kBlocks = Max(1, Min(kFit, 227 * 1024 / (kSharedBytes + 1024)));
  // Groups of copies that may be under way when the oldest tile of K, or of V, is waited for.
  static constexpr int kPendingKeys = 2 * kValueSlots, kPendingValues = 2 * kValueSlots - 1;
  static_assert(K::kBf16 == V::kBf16);
};

// Copies of one warp: tile i of the sealed pages is tile first + kWarps * i of the chunk.
template <class Cfg, class K, class V>
struct Feed {
  const DecodeArgs& a;
  const Item& item;
  uint32_t ring;
  int warp, open, first, total;  // open: slots of the open tile; total: those and the sealed tiles
  int32_t table;                 // of lane l: page l of the chunk
  typename Cfg::KeyTile::Places key_places;
  typename Cfg::ValueTile::Places value_places;

  static constexpr int kTilesOfPage = kPage / Cfg::kTokens;

  __device__ __forceinline__ Feed(const DecodeArgs& args, const Item& of, uint32_t shared)
      : a(args), item(of) {
    const int lane = int(threadIdx.x % 32);
    key_places = Cfg::KeyTile::PlacesOf(lane);
    value_places = Cfg::ValueTile::PlacesOf(lane);
    warp = int(threadIdx.x / 32);
    ring = shared + uint32_t(warp * Cfg::kRingBytes);
    const int page =
        item.chunk_page + lane;  // read before the length is known, and used if it is in the range
    table = lane < a.chunk_pages && page < a.max_pages
                ? a.page_table[int64_t{item.entry} * a.max_pages + page]
                : 0;
    const int begin = (item.page_begin - item.chunk_page) * kTilesOfPage;
    const int end = (item.page_end - item.chunk_page) * kTilesOfPage;
    first = begin + (warp - begin % kWarps + kWarps) % kWarps;
    open = item.has_open && OpenLast() > 0 && OpenFirst() < kOpenTokens ? Cfg::kOpenSlots : 0;
    total = open + (first < end ? (end - first + kWarps - 1) / kWarps : 0);
  }
  // Seen tokens of the warp's part of the open page.
  __device__ __forceinline__ int OpenStart() const { return item.sealed * kPage + warp * kOpenTokens; }
  __device__ __forceinline__ int OpenFirst() const { return item.first_seen - OpenStart(); }
  __device__ __forceinline__ int OpenLast() const { return item.length - OpenStart(); }

  __device__ __forceinline__ uint32_t KeySlot(int i) const {
    return ring + uint32_t(i % Cfg::kKeySlots * Cfg::KeyTile::kBytes);
  }
  __device__ __forceinline__ uint32_t ValueSlot(int i) const {
    return ring + uint32_t(Cfg::kValueRing + i % Cfg::kValueSlots * Cfg::ValueTile::kBytes);
  }
  __device__ __forceinline__ int Start(int i) const {  // position of the first token of a sealed tile
    return item.chunk_page * kPage + (first + (i - open) * kWarps) * Cfg::kTokens;
  }
  template <class C, class T>
  __device__ __forceinline__ void Load(const DecodeSide& side, uint32_t to, const typename T::Places& places,
                                       int i) {
    if (i < open) {
      if (i > 0) return;
      const int64_t index = a.open_index != nullptr ? a.open_index[item.entry] : item.entry;
      const std::byte* page = side.open + index * side.open_stride + item.head * side.open_head_stride;
      CopyTile<typename Cfg::Raw, typename Cfg::OpenTile>(to, page, warp * kOpenTokens, a.head_dim,
                                                          OpenFirst(), OpenLast(),
                                                          Cfg::OpenTile::PlacesOf(int(threadIdx.x % 32)));
    } else if (i < total) {
      const int tile = first + (i - open) * kWarps;
      const int64_t index = __shfl_sync(kAll, table, tile / kTilesOfPage);
      const std::byte* page = side.pool + index * side.page_stride + item.head * side.head_stride;
      CopyTile<C, T>(to, page, tile % kTilesOfPage * Cfg::kTokens, a.head_dim, item.first_seen - Start(i),
                     Cfg::kTokens, places);
    }
  }
  __device__ __forceinline__ void LoadKeys(int i) {
    Load<K, typename Cfg::KeyTile>(a.k, KeySlot(i), key_places, i);
    CopyCommit();
  }
  __device__ __forceinline__ void LoadValues(int i) {
    Load<V, typename Cfg::ValueTile>(a.v, ValueSlot(i), value_places, i);
    CopyCommit();
  }
};

// The B operand: q of column g, channels as KeyChannel has them, divided by what the codes carry. Also the
// sums of q, for the columns of this lane's scores.
template <class C, int kDim, int kN>
__device__ __forceinline__ void LoadQueries(uint32_t (&x)[kN][kDim / 8], Queries<kN>& queries,
                                            const DecodeArgs& a, const Item& item, float scale) {
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
        words[w] = real && channel + 2 * w < a.head_dim
                       ? __ldg(reinterpret_cast<const uint32_t*>(q + channel) + w)
                       : 0;
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
  return start + tokens - 1 > item.length - item.rows ||
         (a.window > 0 && start <= item.length - 1 - a.window);
}

// The outputs of the open tile stand by the channels of raw rows. Brings them to the channels and units of V,
// by way of the tile's own memory.
template <class V, int kDim, int kN>
__device__ __forceinline__ void Rearrange(State<kDim, kN>& state, float* shared) {
  const int g = int(threadIdx.x % 32 / 4), j = int(threadIdx.x % 4);
#pragma unroll
  for (int n = 0; n < kN; ++n) {
    __syncwarp();
#pragma unroll
    for (int u = 0; u < kDim / 8; ++u)
#pragma unroll
      for (int e = 0; e < 2; ++e) shared[(8 * u + g) * 8 + 2 * j + e] = state.o[u / 2][n][u % 2 * 2 + e];
    __syncwarp();
#pragma unroll
    for (int u = 0; u < kDim / 8; ++u)
#pragma unroll
      for (int e = 0; e < 2; ++e)
        state.o[u / 2][n][u % 2 * 2 + e] =
            shared[ValueChannel<V>(u, g) * 8 + 2 * j + e] * (1.0f / ValueUnit<V>(u));
  }
}

// This warp's share of the open page: the first tile of its feed.
template <class Cfg, class K, class V>
__device__ __forceinline__ void AttendOpen(State<Cfg::kDim, Cfg::kN>& state, Queries<Cfg::kN>& queries,
                                           const Feed<Cfg, K, V>& feed, char* shared, float scale) {
  using Raw = typename Cfg::Raw;
  using T = typename Cfg::OpenTile;
  KeyQueries<Raw, T, Cfg::kN> q;
  LoadQueries<Raw, Cfg::kDim>(q.words, queries, feed.a, feed.item, scale);
  CopyWait<Cfg::kPendingValues>();
  __syncwarp();
  float s[1][Cfg::kN][4];
  Scores<Raw, T>(s, feed.KeySlot(0), q, queries, scale);
  Mask(s, queries, feed.OpenStart());
  float total[Cfg::kN][2];
  Weigh(s, state, total);
  Values<Raw, T>(s, total, feed.ValueSlot(0), state, true);
  if constexpr (V::kHalves != 1) {
    Rearrange<V>(state, reinterpret_cast<float*>(shared + feed.warp * Cfg::kRingBytes));
  }
  __syncwarp();
}

// The queries for sealed tiles. Where they lie in shared memory, one warp puts them there for all.
template <class Cfg, class K, class V>
__device__ __forceinline__ void PrepareQueries(typename Cfg::KeyOperand& q, Queries<Cfg::kN>& queries,
                                               const Feed<Cfg, K, V>& feed, uint32_t shared, float scale) {
  if constexpr (Cfg::KeyOperand::kSharedBytes == 0) {
    LoadQueries<K, Cfg::kDim>(q.words, queries, feed.a, feed.item, scale);
  } else {
    constexpr int kH = K::kHalves;
    q.at = shared + uint32_t(kWarps * Cfg::kRingBytes) + threadIdx.x % 32 * kH * 4;
    if (feed.warp == 0) {
      uint32_t words[Cfg::kN][Cfg::kDim / 8];
      LoadQueries<K, Cfg::kDim>(words, queries, feed.a, feed.item, scale);
#pragma unroll
      for (int n = 0; n < Cfg::kN; ++n)
#pragma unroll
        for (int i = 0; i < Cfg::kDim / 8; ++i)
          asm volatile("st.shared.b32 [%0], %1;" ::"r"(q.Address(n, i / kH) + i % kH * 4), "r"(words[n][i])
                       : "memory");
    }
    __syncthreads();
  }
}

template <class Cfg, class K, class V>
__global__ void __launch_bounds__(32 * kWarps, Cfg::kBlocks)
    DecodeKernel(const __grid_constant__ DecodeArgs a, const __grid_constant__ Plan plan) {
  extern __shared__ __align__(128) char shared[];
  constexpr int kN = Cfg::kN, kDim = Cfg::kDim;
  using KeyTile = typename Cfg::KeyTile;
  ReleaseNext();
  const Item item(a, plan, 8 * kN);
  Feed<Cfg, K, V> feed(a, item, SharedAddress(shared));
  AwaitPrevious();
  if (!item.Present()) return;
  if (a.head_dim != kDim) {  // channels that no copy reaches
    uint4* ring = reinterpret_cast<uint4*>(shared + feed.warp * Cfg::kRingBytes);
    for (int i = int(threadIdx.x % 32); i < Cfg::kRingBytes / 16; i += 32) ring[i] = uint4{0, 0, 0, 0};
    __syncwarp();
  }
  // Rolled up, as much as can be: what runs once waits for its instructions.
#pragma unroll 1
  for (int i = 0; i < Cfg::kKeySlots; ++i) {
    feed.LoadKeys(i);
    if (i < Cfg::kValueSlots) feed.LoadValues(i);
  }
  State<kDim, kN> state;
  state.Clear();
  Queries<kN> queries;
  SetPositions(queries, a, item);
  typename Cfg::KeyOperand q;
  if (feed.open > 0) {
    AttendOpen(state, queries, feed, shared, plan.scale);
#pragma unroll 1
    for (int i = 0; i < feed.open; ++i) {
      feed.LoadKeys(i + Cfg::kKeySlots);
      feed.LoadValues(i + Cfg::kValueSlots);
    }
  }
  PrepareQueries<Cfg, K, V>(q, queries, feed, SharedAddress(shared), plan.scale);
#pragma unroll 1
  for (int i = feed.open; i < feed.total; ++i) {
    const bool masked = Masked(a, item, feed.Start(i), Cfg::kTokens);
    float s[Cfg::kTokens / 16][kN][4], total[kN][2];
    CopyWait<Cfg::kPendingKeys>();
    __syncwarp();
    Scores<K, KeyTile>(s, feed.KeySlot(i), q, queries, plan.scale);
    __syncwarp();
    feed.LoadKeys(i + Cfg::kKeySlots);
    if (masked) Mask(s, queries, feed.Start(i));
    Weigh(s, state, total);
    CopyWait<Cfg::kPendingValues>();
    __syncwarp();
    Values<V, typename Cfg::ValueTile>(s, total, feed.ValueSlot(i), state, masked);
    __syncwarp();
    feed.LoadValues(i + Cfg::kValueSlots);
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
  if (allowed != cudaSuccess)
    return {int(allowed), "attention_decode: this GPU has too little shared memory"};
  const dim3 grid(unsigned(plan.groups * plan.chunks), unsigned(a.kv_heads), unsigned(a.batch));
  if (a.early_start)
    return LaunchEarly("attention_decode", DecodeKernel<Cfg, K, V>, grid, 32 * kWarps, 1, stream,
                       Cfg::kSharedBytes, a, plan);
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
