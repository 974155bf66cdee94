// SPDX-License-Identifier: Apache-2.0
// The decode kernel over pages of QAQ, whose widths differ. As in decode_kernel.cuh a warp has its own tiles,
// ring of copies and softmax. Planes become codes in registers (decode_planes.cuh). An outlier's bits are
// cleared first, so that it counts as code 0; what it has beyond that goes, 16 tokens at a time and where a
// page has any, through rows of f16 that are otherwise zero.
#include "kernels/cuda/decode_kernel.cuh"
#include "kernels/cuda/decode_qaq.cuh"
#include "kernels/cuda/decode_qaq_feed.cuh"

namespace nibble::cuda::decode {
namespace {

constexpr float kOutlierUnit = 2;  // f16 holds half of the greatest difference

// Minimum and half range of a token as the affine of its nibbles.
__device__ __forceinline__ float NibbleStep(float half) { return half * 0.125f; }
__device__ __forceinline__ float Least(float min, float half, int width) {
  return fmaf(0.5f, kv::QaqStep(half, width), min);
}

// Of this lane's tokens 2 g and 2 g + 1 of block m.
struct TokenPair {
  float2 step, least;
};
template <class T>
__device__ __forceinline__ TokenPair PairOf(uint32_t tile, int m, int width) {
  const uint32_t at = tile + T::kRanges + threadIdx.x % 32 / 4 * 4 + 32 * m;
  const float2 min = __half22float2(AsHalf2(SharedWord(at))),
               half = __half22float2(AsHalf2(SharedWord(at + 2 * T::kTokens)));
  return {{NibbleStep(half.x), NibbleStep(half.y)},
          {Least(min.x, half.x, width), Least(min.y, half.y, width)}};
}

// One side of a tile while its outliers matter.
template <class Cfg>
struct Outliers {
  using T = typename Cfg::Tile;
  const PagePlanes& page;
  int token, first;  // of the page: the tile's, and the tile's first outlier

  __device__ __forceinline__ Outliers(const PagePlanes& of, int token_of_page)
      : page(of), token(token_of_page), first(0) {
    if (page.outliers > 0 && token > 0) first = ForOutliers(page, 0, token, [](int, int, uint16_t) {});
  }
  __device__ __forceinline__ bool Any() const { return page.outliers > 0; }

  __device__ __forceinline__ void Clear(uint32_t tile, int planes) const {
    ForOutliers(page, first, token + T::kTokens, [&](int t, int channel, uint16_t) {
      const uint32_t at = tile + T::Offset(t - token, channel / 32 * 4), keep = ~(1u << channel % 32);
#pragma unroll
      for (int b = 0; b < kStepPlanes; ++b)
        if (b < planes)
          asm volatile("red.shared.and.b32 [%0], %1;" ::"r"(at + b * T::kPlaneBytes), "r"(keep) : "memory");
    });
    __syncwarp();
  }
  // Rows of tokens 16 m .. 16 m + 15 from outlier `at` on, in units of kOutlierUnit; the next outlier's index.
  // V's columns stand as those of its planes do.
  template <bool kValues>
  __device__ __forceinline__ int Put(int at, int m, uint32_t tile, uint32_t rows) const {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < Cfg::Rows::kBytes / 512; ++i)
      asm volatile("st.shared.v4.b32 [%0], {%1,%1,%1,%1};" ::"r"(rows + i * 512 + threadIdx.x % 32 * 16),
                   "r"(0)
                   : "memory");
    __syncwarp();
    const int begin = token + 16 * m;
    at = ForOutliers(page, at, begin + 16, [&](int t, int channel, uint16_t x) {
      const uint32_t range = tile + T::kRanges + 2 * (t - token);
      const float least = Least(SharedHalf(range), SharedHalf(range + 2 * T::kTokens), page.width);
      const float beyond = (__half2float(__ushort_as_half(x)) - least) / kOutlierUnit;
      const int column =
          kValues ? (channel & ~127) | (channel & 14) << 3 | (channel & 1) << 3 | (channel >> 4 & 7) : channel;
      asm volatile("st.shared.b16 [%0], %1;" ::"r"(rows + Cfg::Rows::Offset(t - begin, 2 * column)),
                   "h"(__half_as_ushort(__float2half_rn(beyond)))
                   : "memory");
    });
    __syncwarp();
    return at;
  }
  __device__ static __forceinline__ float SharedHalf(uint32_t address) {
    uint16_t x;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(x) : "r"(address) : "memory");
    return __half2float(__ushort_as_half(x));
  }
};

// The queries as rows of f16 want them, in shared memory: the planes' are in registers.
template <class Cfg>
struct RowQueries {
  using Rows = typename Cfg::Rows;
  uint32_t at;  // of this lane

  __device__ __forceinline__ explicit RowQueries(const char* memory)
      : at(SharedAddress(memory) + Cfg::kQueries + threadIdx.x % 32 * 16) {}
  __device__ __forceinline__ uint32_t Address(int n, int w) const { return at + (n * Rows::kWords + w) * 128; }
  __device__ __forceinline__ void Store(const DecodeArgs& a, const Item& item) const {
    uint32_t words[Cfg::kN][Rows::kWords];
    Queries<Cfg::kN> unused;
    LoadQueries<F16, Cfg::kDim>(words, unused, a, item, 0);
#pragma unroll
    for (int n = 0; n < Cfg::kN; ++n)
#pragma unroll
      for (int w = 0; w < Rows::kWords; w += 4)
        asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};" ::"r"(Address(n, w)), "r"(words[n][w]),
                     "r"(words[n][w + 1]), "r"(words[n][w + 2]), "r"(words[n][w + 3])
                     : "memory");
  }
  __device__ __forceinline__ void Load(uint32_t (&words)[Cfg::kN][Rows::kWords]) const {
#pragma unroll
    for (int n = 0; n < Cfg::kN; ++n)
#pragma unroll
      for (int w = 0; w < Rows::kWords; w += 4)
        SharedWords(reinterpret_cast<uint32_t(&)[4]>(words[n][w]), Address(n, w));
  }
};

template <class Cfg>
__device__ __forceinline__ void TileScores(float (&s)[Cfg::Tile::kM][Cfg::kN][4], PlanesFeed<Cfg>& feed, int i,
                                           const uint32_t (&q)[Cfg::kN][Cfg::kDim / 8],
                                           const Queries<Cfg::kN>& queries, const RowQueries<Cfg>& row_queries,
                                           float scale) {
  using T = typename Cfg::Tile;
  const PagePlanes& page = feed.PageOf(i, false);
  const Outliers<Cfg> outliers(page, feed.TokenOfPage(i));
#pragma unroll
  for (int k = 0; k < T::kM * Cfg::kN * 4; ++k) s[k / 4 / Cfg::kN][k / 4 % Cfg::kN][k % 4] = 0;
  uint32_t tile;
#pragma unroll 1
  for (bool low = page.width > kStepPlanes;; low = false) {
    tile = feed.Await();
    const int planes = low ? page.width - kStepPlanes : min(page.width, kStepPlanes);
    if (outliers.Any()) outliers.Clear(tile, planes);
    ForPlanes(planes, [&](auto count) { MultiplyPlaneKeys<count.kValue, T>(s, tile, q); });
    if (!low) break;
#pragma unroll
    for (int k = 0; k < T::kM * Cfg::kN * 4; ++k) s[k / 4 / Cfg::kN][k / 4 % Cfg::kN][k % 4] *= 1.0f / 16;
    feed.Release();
  }
  int at = outliers.first;
#pragma unroll
  for (int m = 0; m < T::kM; ++m) {
    const TokenPair pair = PairOf<T>(tile, m, page.width);
    float beyond[1][Cfg::kN][4] = {};
    if (outliers.Any()) {
      at = outliers.template Put<false>(at, m, tile, feed.Rows());
      uint32_t words[Cfg::kN][Cfg::kDim / 8];
      row_queries.Load(words);
      MultiplyKeys<F16, typename Cfg::Rows>(beyond, feed.Rows(), words);
    }
#pragma unroll
    for (int n = 0; n < Cfg::kN; ++n)
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float step = k < 2 ? pair.step.x : pair.step.y, least = k < 2 ? pair.least.x : pair.least.y;
        s[m][n][k] = fmaf(s[m][n][k], step * (scale * kCodeUnit),
                          fmaf(least, queries.sum[n][k % 2], beyond[0][n][k] * (scale * kOutlierUnit)));
      }
  }
  feed.Release();
}

// Folds ranges and minima of tokens into the weights. What was masked stays 0, whatever its range is.
template <class T, int kDim, int kN>
__device__ __forceinline__ void FoldRanges(float (&p)[T::kM][kN][4], uint32_t tile, int width,
                                           State<kDim, kN>& state) {
#pragma unroll
  for (int m = 0; m < T::kM; ++m) {
    const TokenPair pair = PairOf<T>(tile, m, width);
#pragma unroll
    for (int n = 0; n < kN; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (p[m][n][i] == 0) continue;
        state.least[n][i % 2] += p[m][n][i] * (i < 2 ? pair.least.x : pair.least.y);
        p[m][n][i] *= (i < 2 ? pair.step.x : pair.step.y) * kTokenBoost<Planes>;
      }
  }
}

template <int kM, int kN>
__device__ __forceinline__ void Pack(uint32_t (&packed)[kM][kN][2], const float (&p)[kM][kN][4], float unit) {
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int n = 0; n < kN; ++n)
#pragma unroll
      for (int h = 0; h < 2; ++h)
        packed[m][n][h] = PackWeights<Planes>(p[m][n][2 * h] * unit, p[m][n][2 * h + 1] * unit);
}

// o += the outliers of 16 tokens, which lie in `rows`.
template <class Cfg>
__device__ __forceinline__ void AddOutliers(State<Cfg::kDim, Cfg::kN>& state, uint32_t rows,
                                            const uint32_t (&p)[1][Cfg::kN][2]) {
#pragma unroll
  for (int c = 0; c < Cfg::Rows::kChunks; c += 2) {
    float sum[1][Cfg::kN][4] = {};
    MultiplyValues<F16, typename Cfg::Rows>(sum, 0, rows, c, p);
#pragma unroll
    for (int n = 0; n < Cfg::kN; ++n)
#pragma unroll
      for (int k = 0; k < 4; ++k)
        state.o[c / 2][n][k] = fmaf(sum[0][n][k], kOutlierUnit / ValueUnit<Planes>(c + k / 2), state.o[c / 2][n][k]);
  }
}

template <class Cfg>
__device__ __forceinline__ void TileValues(float (&p)[Cfg::Tile::kM][Cfg::kN][4], PlanesFeed<Cfg>& feed, int i,
                                           State<Cfg::kDim, Cfg::kN>& state) {
  using T = typename Cfg::Tile;
  const PagePlanes& page = feed.PageOf(i, true);
  const Outliers<Cfg> outliers(page, feed.TokenOfPage(i));
  uint32_t weights[T::kM][1][Cfg::kN][2];
  if (outliers.Any())
#pragma unroll
    for (int m = 0; m < T::kM; ++m)
      Pack(weights[m], reinterpret_cast<const float(&)[1][Cfg::kN][4]>(p[m]), 1);
  FoldRanges<T>(p, feed.Await(), page.width, state);
  uint32_t tile;
#pragma unroll 1
  for (bool low = page.width > kStepPlanes;; low = false) {
    tile = feed.Await();
    const int planes = low ? page.width - kStepPlanes : min(page.width, kStepPlanes);
    if (outliers.Any()) outliers.Clear(tile, planes);
    uint32_t packed[T::kM][Cfg::kN][2];
    Pack(packed, p, low ? 1.0f / 16 : 1.0f);
    ForPlanes(planes, [&](auto count) { MultiplyPlaneValues<count.kValue, T>(state, tile, packed); });
    if (!low) break;
    feed.Release();
  }
  if (outliers.Any()) {
    int at = outliers.first;
#pragma unroll
    for (int m = 0; m < T::kM; ++m) {
      at = outliers.template Put<true>(at, m, tile, feed.Rows());
      AddOutliers<Cfg>(state, feed.Rows(), weights[m]);
    }
  }
  feed.Release();
}

// Starts the copy of the warp's share of the open page, raw.
template <class Cfg>
__device__ __forceinline__ bool LoadOpenRows(const PlanesFeed<Cfg>& feed, int start) {
  const DecodeArgs& a = feed.a;
  const Item& item = feed.item;
  const int first = item.first_seen - start, last = item.length - start;
  const bool any = item.has_open && last > 0 && first < kOpenTokens;
  if (any) {
    const int64_t index = a.open_index != nullptr ? a.open_index[item.entry] : item.entry;
    const auto places = Cfg::Rows::PlacesOf(int(threadIdx.x % 32));
    for (const bool is_v : {false, true}) {
      const DecodeSide& side = is_v ? a.v : a.k;
      const uint32_t to = is_v ? feed.OpenValues() : feed.Rows();
      if (a.head_dim != Cfg::kDim)  // channels that no copy reaches
        for (int i = int(threadIdx.x % 32); i < Cfg::Rows::kBytes / 4; i += 32)
          asm volatile("st.shared.b32 [%0], %1;" ::"r"(to + i * 4), "r"(0) : "memory");
      __syncwarp();
      CopyTile<F16, typename Cfg::Rows>(to, side.open + index * side.open_stride + item.head * side.open_head_stride,
                                        feed.warp * kOpenTokens, a.head_dim, first, last, places);
    }
  }
  CopyCommit();
  return any;
}

template <class Cfg>
__device__ __forceinline__ void AttendOpenRows(State<Cfg::kDim, Cfg::kN>& state,
                                               const Queries<Cfg::kN>& queries,
                                               const RowQueries<Cfg>& row_queries, const PlanesFeed<Cfg>& feed,
                                               int start, float scale, char* shared) {
  using Rows = typename Cfg::Rows;
  KeyQueries<F16, Rows, Cfg::kN> q;
  row_queries.Load(q.words);
  float s[1][Cfg::kN][4], total[Cfg::kN][2];
  Scores<F16, Rows>(s, feed.Rows(), q, queries, scale);
  Mask(s, queries, start);
  Weigh(s, state, total);
  Values<F16, Rows>(s, total, feed.OpenValues(), state, true);
  Rearrange<Planes>(state, reinterpret_cast<float*>(shared + feed.warp * Cfg::kWarpBytes));
  __syncwarp();
}

// What all warps of the block read: headers of the chunk's pages, K by the first warp and V by the second, and
// queries.
template <class Cfg>
__device__ __forceinline__ void ShareHeaders(const DecodeArgs& a, const Item& item, char* shared) {
  const int warp = int(threadIdx.x / 32), page = item.chunk_page + int(threadIdx.x % 32);
  if (warp == 2) RowQueries<Cfg>(shared).Store(a, item);
  if (warp >= 2 || page < item.page_begin || page >= item.page_end) return;
  const int64_t index = a.page_table[int64_t{item.entry} * a.max_pages + page];
  const DecodeSide& side = warp == 0 ? a.k : a.v;
  reinterpret_cast<PagePlanes*>(shared + Cfg::kPages)[warp * Cfg::kMostPages + int(threadIdx.x % 32)] =
      ReadHeader(side.pool + index * side.page_stride + item.head * side.head_stride, {a.head_dim, kPage});
}

template <class Cfg>
__global__ void __launch_bounds__(32 * kWarps, Cfg::kBlocks)
    PlanesKernel(const __grid_constant__ DecodeArgs a, const __grid_constant__ Plan plan) {
  extern __shared__ __align__(128) char shared[];
  constexpr int kN = Cfg::kN, kDim = Cfg::kDim;
  ReleaseNext();
  const Item item(a, plan, 8 * kN);
  AwaitPrevious();
  if (!item.Present()) return;
  ShareHeaders<Cfg>(a, item, shared);
  PlanesFeed<Cfg> feed(a, item, shared);
  const int open = item.sealed * kPage + feed.warp * kOpenTokens;
  const bool has_open = LoadOpenRows(feed, open);
  State<kDim, kN> state;
  state.Clear();
  Queries<kN> queries;
  SetPositions(queries, a, item);
  uint32_t q[kN][kDim / 8];
  LoadQueries<Planes, kDim>(q, queries, a, item, plan.scale);
  const RowQueries<Cfg> row_queries(shared);
  __syncthreads();
  constexpr int kFirst = Cfg::kDepth - Cfg::kOpenSlots;
#pragma unroll 1
  for (int i = 0; i < kFirst; ++i) feed.Load();
  if (has_open) {
    CopyWait<kFirst>();
    __syncwarp();
    AttendOpenRows(state, queries, row_queries, feed, open, plan.scale, shared);
  }
#pragma unroll 1
  for (int i = 0; i < Cfg::kOpenSlots; ++i) feed.Load();
#pragma unroll 1
  for (int i = 0; i < feed.total; ++i) {
    float s[Cfg::Tile::kM][kN][4], total[kN][2];
    TileScores<Cfg>(s, feed, i, q, queries, row_queries, plan.scale);
    if (Masked(a, item, feed.Start(i), Cfg::Tile::kTokens)) Mask(s, queries, feed.Start(i));
    Weigh(s, state, total);
    TileValues<Cfg>(s, feed, i, state);
  }
  CopyWait<0>();
  __syncthreads();
  KeepState<Planes>(state, reinterpret_cast<float*>(shared));
  __syncthreads();
  Finish<kDim, kN>(a, plan, item, reinterpret_cast<float*>(shared));
}

template <class Cfg>
Launch LaunchPlanes(const DecodeArgs& a, const Plan& plan, Stream stream) {
  static const cudaError_t allowed = AllowShared(PlanesKernel<Cfg>, Cfg::kSharedBytes);
  if (allowed != cudaSuccess)
    return {int(allowed), "attention_decode: this GPU has too little shared memory"};
  const dim3 grid(unsigned(plan.groups * plan.chunks), unsigned(a.kv_heads), unsigned(a.batch));
  if (a.early_start)
    return LaunchEarly("attention_decode", PlanesKernel<Cfg>, grid, 32 * kWarps, 1, stream, Cfg::kSharedBytes,
                       a, plan);
  PlanesKernel<Cfg><<<grid, 32 * kWarps, Cfg::kSharedBytes, stream>>>(a, plan);
  return Launched("attention_decode");
}

}  // namespace

Launch LaunchQaq(const DecodeArgs& a, const Plan& plan, Stream stream) {
  if (a.head_dim > 128) return LaunchPlanes<PlanesConfig<256, 1>>(a, plan, stream);
  return plan.queries == 16 ? LaunchPlanes<PlanesConfig<128, 2>>(a, plan, stream)
                            : LaunchPlanes<PlanesConfig<128, 1>>(a, plan, stream);
}

}  // namespace nibble::cuda::decode
