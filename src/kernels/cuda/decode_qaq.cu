// SPDX-License-Identifier: Apache-2.0
// The decode kernel over pages of QAQ, whose widths differ. As in decode_kernel.cuh a warp has its own tiles,
// ring of copies and softmax. Planes become codes in registers (decode_planes.cuh). What outliers have beyond
// their codes goes, 16 tokens at a time and where a page has any, through rows of f16 that are otherwise
// zero.
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

__device__ __forceinline__ float SharedHalf(uint32_t address) {
  uint16_t x;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(x) : "r"(address) : "memory");
  return __half2float(__ushort_as_half(x));
}
__device__ __forceinline__ uint32_t SharedByte(uint32_t address) {
  uint32_t x;
  asm volatile("ld.shared.u8 %0, [%1];" : "=r"(x) : "r"(address) : "memory");
  return x;
}

// Of this lane's tokens g and g + 8 of block m.
struct TokenPair {
  float step[2], least[2];
};
template <class T>
__device__ __forceinline__ TokenPair PairOf(uint32_t tile, int lane, int m, int width) {
  TokenPair pair;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const uint32_t at = tile + T::kRanges + lane / 4 * 2 + 32 * m + 16 * h;
    const float half = SharedHalf(at + 2 * T::kTokens);
    pair.step[h] = NibbleStep(half), pair.least[h] = Least(SharedHalf(at), half, width);
  }
  return pair;
}

// One side of a tile whose page has outliers. `tile`: its last step.
template <class Cfg>
struct Outliers {
  using T = typename Cfg::Tile;
  const PagePlanes& page;
  const int lane, row_bytes, token;  // token: of the page, the tile's first
  const uint32_t tile, rows;

  // What a value decodes as.
  __device__ __forceinline__ float Decoded(int t, int channel) const {
    int code = 0;
#pragma unroll
    for (int b = 0; b < kStepPlanes; ++b)
      if (b < page.width)
        code =
            2 * code + int(SharedByte(tile + b * T::kPlaneBytes + (t - token) * T::kRowBytes + channel / 8) >>
                               channel % 8 &
                           1);
#pragma unroll 1
    for (int b = kStepPlanes; b < page.width; ++b)
      code = 2 * code + (int(page.planes[(b * kPage + t) * row_bytes + channel / 8]) >> channel % 8 & 1);
    const uint32_t range = tile + T::kRanges + 2 * (t - token);
    return kv::QaqDecode(code, SharedHalf(range), SharedHalf(range + 2 * T::kTokens), page.width);
  }
  // The token of a tile of f16 that stands where token t of planes does.
  __device__ static __forceinline__ int RowOf(int t) { return t % 8 * 2 + t / 8; }
  // Rows of tokens 16 m .. 16 m + 15: what outliers have beyond what the planes say, in units of
  // kOutlierUnit. V's columns stand as those of its planes do.
  template <bool kValues>
  __device__ __forceinline__ void Put(OutlierStream& stream, int m) const {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < Cfg::Rows::kBytes / 512; ++i)
      asm volatile("st.shared.v4.b32 [%0], {%1,%1,%1,%1};" ::"r"(rows + i * 512 + lane * 16), "r"(0)
                   : "memory");
    __syncwarp();
    const int begin = token + 16 * m;
    stream.Until(begin + 16, [&](int t, int channel, uint16_t x) {
      const float beyond = (__half2float(__ushort_as_half(x)) - Decoded(t, channel)) / kOutlierUnit;
      const int column = kValues ? (channel & ~127) | (channel & 15) << 3 | (channel >> 4 & 7) : channel;
      asm volatile("st.shared.b16 [%0], %1;" ::"r"(rows + Cfg::Rows::Offset(RowOf(t - begin), 2 * column)),
                   "h"(__half_as_ushort(__float2half_rn(beyond)))
                   : "memory");
    });
    __syncwarp();
  }
};

// The queries as rows of f16 want them, in shared memory: the planes' are in registers.
template <class Cfg>
struct RowQueries {
  using Rows = typename Cfg::Rows;
  uint32_t at;  // of this lane

  __device__ __forceinline__ explicit RowQueries(const char* memory)
      : at(SharedAddress(memory) + Cfg::kQueries + threadIdx.x % 32 * 16) {}
  __device__ __forceinline__ uint32_t Address(int n, int w) const {
    return at + (n * Rows::kWords + w) * 128;
  }
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

// s += what outliers have beyond their codes.
template <class Cfg>
__device__ __forceinline__ void AddKeyOutliers(float (&s)[Cfg::Tile::kM][Cfg::kN][4],
                                               const Outliers<Cfg>& outliers, OutlierStream& stream,
                                               const RowQueries<Cfg>& row_queries, float scale) {
  if (outliers.token > 0) stream.Until(outliers.token, [](int, int, uint16_t) {});  // of tiles before
#pragma unroll 1
  for (int m = 0; m < Cfg::Tile::kM; ++m) {
    outliers.template Put<false>(stream, m);
    uint32_t words[Cfg::kN][Cfg::kDim / 8];
    row_queries.Load(words);
    float beyond[1][Cfg::kN][4] = {};
    MultiplyKeys<F16, typename Cfg::Rows>(beyond, outliers.rows, words);
#pragma unroll
    for (int i = 0; i < Cfg::Tile::kM; ++i)
      if (i == m)
#pragma unroll
        for (int n = 0; n < Cfg::kN; ++n)
#pragma unroll
          for (int k = 0; k < 4; ++k) s[i][n][k] = fmaf(beyond[0][n][k], scale * kOutlierUnit, s[i][n][k]);
  }
}

template <class Cfg>
__device__ __forceinline__ void TileScores(float (&s)[Cfg::Tile::kM][Cfg::kN][4], PlanesFeed<Cfg>& feed,
                                           int i, const uint32_t (&q)[Cfg::kN][Cfg::kDim / 8],
                                           const Queries<Cfg::kN>& queries,
                                           const RowQueries<Cfg>& row_queries, float scale) {
  using T = typename Cfg::Tile;
  const PagePlanes& page = feed.PageOf(i, false);
  const int width = page.width;
  OutlierStream stream(page, feed.lane);
#pragma unroll
  for (int k = 0; k < T::kM * Cfg::kN * 4; ++k) s[k / 4 / Cfg::kN][k / 4 % Cfg::kN][k % 4] = 0;
  uint32_t tile;
#pragma unroll 1
  for (bool low = width > kStepPlanes;; low = false) {
    tile = feed.Await();
    ForPlanes(StepPlanes(width, low),
              [&](auto count) { MultiplyPlaneKeys<count.kValue, T>(s, tile, feed.lane, q); });
    if (!low) break;
#pragma unroll
    for (int k = 0; k < T::kM * Cfg::kN * 4; ++k) s[k / 4 / Cfg::kN][k / 4 % Cfg::kN][k % 4] *= 1.0f / 16;
    feed.Release();
  }
#pragma unroll
  for (int m = 0; m < T::kM; ++m) {
    const TokenPair pair = PairOf<T>(tile, feed.lane, m, width);
#pragma unroll
    for (int n = 0; n < Cfg::kN; ++n)
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        s[m][n][k] = fmaf(s[m][n][k], pair.step[k / 2] * (scale * kCodeUnit),
                          pair.least[k / 2] * queries.sum[n][k % 2]);
      }
  }
  if (page.outliers > 0)
    AddKeyOutliers<Cfg>(s, {page, feed.lane, feed.a.head_dim / 8, feed.TokenOfPage(i), tile, feed.Rows()},
                        stream, row_queries, scale);
  feed.Release();
}

// Folds ranges and minima of tokens into the weights. What was masked stays 0, whatever its range is.
template <bool kMasked, class T, int kDim, int kN>
__device__ __forceinline__ void FoldRanges(float (&p)[T::kM][kN][4], uint32_t tile, int lane, int width,
                                           State<kDim, kN>& state) {
#pragma unroll
  for (int m = 0; m < T::kM; ++m) {
    const TokenPair pair = PairOf<T>(tile, lane, m, width);
#pragma unroll
    for (int n = 0; n < kN; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (kMasked && p[m][n][i] == 0) continue;
        state.least[n][i % 2] += p[m][n][i] * pair.least[i / 2];
        p[m][n][i] *= pair.step[i / 2] * kTokenBoost<Planes>;
      }
  }
}

template <int kM, int kN>
__device__ __forceinline__ void Pack(uint32_t (&packed)[kM][kN][2], const float (&p)[kM][kN][4]) {
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int n = 0; n < kN; ++n)
#pragma unroll
      for (int h = 0; h < 2; ++h) packed[m][n][h] = PackWeights<Planes>(p[m][n][2 * h], p[m][n][2 * h + 1]);
}

// o += p times what outliers have beyond their codes.
template <class Cfg>
__device__ __forceinline__ void AddValueOutliers(State<Cfg::kDim, Cfg::kN>& state,
                                                 const Outliers<Cfg>& outliers, OutlierStream& stream,
                                                 const uint32_t (&p)[Cfg::Tile::kM][Cfg::kN][2]) {
  if (outliers.token > 0) stream.Until(outliers.token, [](int, int, uint16_t) {});  // of tiles before
#pragma unroll 1
  for (int m = 0; m < Cfg::Tile::kM; ++m) {
    outliers.template Put<true>(stream, m);
    uint32_t mine[1][Cfg::kN][2];
#pragma unroll
    for (int i = 0; i < Cfg::Tile::kM; ++i)
      if (i == m)
#pragma unroll
        for (int n = 0; n < Cfg::kN; ++n) mine[0][n][0] = p[i][n][0], mine[0][n][1] = p[i][n][1];
#pragma unroll
    for (int c = 0; c < Cfg::Rows::kChunks; c += 2) {
      float sum[1][Cfg::kN][4] = {};
      MultiplyValues<F16, typename Cfg::Rows>(sum, 0, outliers.rows, c, mine);
#pragma unroll
      for (int n = 0; n < Cfg::kN; ++n)
#pragma unroll
        for (int k = 0; k < 4; ++k)
          state.o[c / 2][n][k] += sum[0][n][k] * (kOutlierUnit / ValueUnit<Planes>(c + k / 2));
    }
  }
}

template <class Cfg>
__device__ __forceinline__ void TileValues(float (&p)[Cfg::Tile::kM][Cfg::kN][4], PlanesFeed<Cfg>& feed,
                                           int i, State<Cfg::kDim, Cfg::kN>& state, bool masked) {
  using T = typename Cfg::Tile;
  const PagePlanes& page = feed.PageOf(i, true);
  const int width = page.width;
  uint32_t weights[T::kM][Cfg::kN][2], packed[T::kM][Cfg::kN][2];
  OutlierStream stream(page, feed.lane);
  if (page.outliers > 0) Pack(weights, p);
  uint32_t tile = feed.Await();
  if (masked)
    FoldRanges<true, T>(p, tile, feed.lane, width, state);
  else
    FoldRanges<false, T>(p, tile, feed.lane, width, state);
  Pack(packed, p);
#pragma unroll 1
  for (bool low = width > kStepPlanes;; low = false) {
    if (low)
#pragma unroll
      for (int k = 0; k < T::kM * Cfg::kN * 2; ++k) {
        uint32_t& x = packed[k / 2 / Cfg::kN][k / 2 % Cfg::kN][k % 2];
        x = Bits(__hmul2(AsHalf2(x), __float2half2_rn(1.0f / 16)));
      }
    ForPlanes(StepPlanes(width, low),
              [&](auto count) { MultiplyPlaneValues<count.kValue, T>(state, tile, feed.lane, packed); });
    if (!low) break;
    feed.Release();
    tile = feed.Await();
    Pack(packed, p);
  }
  if (page.outliers > 0)
    AddValueOutliers<Cfg>(state,
                          {page, feed.lane, feed.a.head_dim / 8, feed.TokenOfPage(i), tile, feed.Rows()},
                          stream, weights);
  feed.Release();
}

// Starts the copy of the warp's share of the open page, raw.
template <class Cfg>
__device__ __forceinline__ bool LoadOpenRows(const PlanesFeed<Cfg>& feed, const Item& item, int start) {
  const DecodeArgs& a = feed.a;
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
      CopyTile<F16, typename Cfg::Rows>(
          to, side.open + index * side.open_stride + item.head * side.open_head_stride,
          int(threadIdx.x / 32) * kOpenTokens, a.head_dim, first, last, places);
    }
  }
  CopyCommit();
  return any;
}

template <class Cfg>
__device__ __forceinline__ void AttendOpenRows(State<Cfg::kDim, Cfg::kN>& state,
                                               const Queries<Cfg::kN>& queries,
                                               const RowQueries<Cfg>& row_queries,
                                               const PlanesFeed<Cfg>& feed, int start, float scale,
                                               char* shared) {
  using Rows = typename Cfg::Rows;
  KeyQueries<F16, Rows, Cfg::kN> q;
  row_queries.Load(q.words);
  float s[1][Cfg::kN][4], total[Cfg::kN][2];
  Scores<F16, Rows>(s, feed.Rows(), q, queries, scale);
  Mask(s, queries, start);
  Weigh(s, state, total);
  Values<F16, Rows>(s, total, feed.OpenValues(), state, true);
  Rearrange<Planes>(state, reinterpret_cast<float*>(shared + threadIdx.x / 32 * Cfg::kWarpBytes));
  __syncwarp();
}

// What all warps of the block read: the item, headers of the chunk's pages, K by the first warp and V by the
// second, and queries.
template <class Cfg>
__device__ __forceinline__ void ShareHeaders(const DecodeArgs& a, const Item& item, int64_t index,
                                             char* shared) {
  const int warp = int(threadIdx.x / 32), page = item.chunk_page + int(threadIdx.x % 32);
  if (warp == 2) RowQueries<Cfg>(shared).Store(a, item);
  if (threadIdx.x == 32 * kWarps - 1) *reinterpret_cast<Item*>(shared + Cfg::kItem) = item;
  if (warp >= 2 || page < item.page_begin || page >= item.page_end) return;
  const DecodeSide& side = warp == 0 ? a.k : a.v;
  reinterpret_cast<PagePlanes*>(shared + Cfg::kPages)[warp * Cfg::kMostPages + int(threadIdx.x % 32)] =
      ReadHeader(side.pool + index * side.page_stride + item.head * side.head_stride, {a.head_dim, kPage});
}

// The block's item, out of registers while tiles are read.
template <class Cfg>
__device__ __forceinline__ const Item& KeptItem(const char* shared) {
  return *reinterpret_cast<const Item*>(shared + Cfg::kItem);
}

template <class Cfg>
__global__ void __launch_bounds__(32 * kWarps, Cfg::kBlocks)
    PlanesKernel(const __grid_constant__ DecodeArgs a, const __grid_constant__ Plan plan) {
  extern __shared__ __align__(128) char shared[];
  constexpr int kN = Cfg::kN, kDim = Cfg::kDim;
  ReleaseNext();
  const Item item(a, plan, 8 * kN);
  // Read before the length is known, and used if the page is in the range.
  const int page = item.chunk_page + int(threadIdx.x % 32);
  const int64_t index = page < a.max_pages ? a.page_table[int64_t{item.entry} * a.max_pages + page] : 0;
  AwaitPrevious();
  if (!item.Present()) return;
  ShareHeaders<Cfg>(a, item, index, shared);
  PlanesFeed<Cfg> feed(a, item, shared);
  const int open = item.sealed * kPage + int(threadIdx.x / 32) * kOpenTokens;
  const bool has_open = LoadOpenRows(feed, item, open);
  State<kDim, kN> state;
  state.Clear();
  Queries<kN> queries;
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
    SetPositions(queries, a, item);
    AttendOpenRows(state, queries, row_queries, feed, open, plan.scale, shared);
  }
#pragma unroll 1
  for (int i = 0; i < Cfg::kOpenSlots; ++i) feed.Load();
#pragma unroll 1
  for (int i = feed.first; i < feed.end; i += kWarps) {
    float s[Cfg::Tile::kM][kN][4], total[kN][2];
    TileScores<Cfg>(s, feed, i, q, queries, row_queries, plan.scale);
    const bool masked = feed.Masked(i);
    if (masked) {
      const Item& kept = KeptItem<Cfg>(shared);
      SetPositions(queries, a, kept);
      Mask<8>(s, queries, kept.chunk_page * kPage + i * Cfg::Tile::kTokens);
    }
    Weigh(s, state, total);
    TileValues<Cfg>(s, feed, i, state, masked);
  }
  CopyWait<0>();
  const Item kept = KeptItem<Cfg>(shared);
  __syncthreads();
  KeepState<Planes>(state, reinterpret_cast<float*>(shared));
  __syncthreads();
  Finish<kDim, kN>(a, plan, kept, reinterpret_cast<float*>(shared));
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
