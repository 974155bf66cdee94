// SPDX-License-Identifier: Apache-2.0
// The decode kernel over pages of QAQ, whose widths differ. A warp copies the planes of 16 tokens, as many as
// the page's width says, makes f16 rows of them in shared memory, puts the outliers over these and then does
// what the kernel of f16 pages does. The planes of a page are neighbours, and so are its outliers' cells
// (qaq.h); lane l knows those of page l of the chunk, so that no copy waits for a header.
#include "kernels/cuda/decode_kernel.cuh"
#include "kernels/cuda/decode_qaq.cuh"
#include "quant/kv/qaq.h"

namespace nibble::cuda::decode {
namespace {

constexpr int kTileTokens = kOpenTokens, kTilesOfPage = kPage / kTileTokens, kDepth = 2;
// Groups of copies behind the oldest tile of K, or of V.
constexpr int kPending = 2 * kDepth - 1;

template <int kDim_, int kN_>
struct PlanesConfig {
  static constexpr int kDim = kDim_, kN = kN_;
  using Rows = Tile<F16, kTileTokens, kDim>;
  static constexpr int kPlaneBytes = kTileTokens * kDim / 8;    // of a tile
  static constexpr int kRanges = kv::kQaqPlanes * kPlaneBytes;  // minima, then half ranges: f16
  static constexpr int kSlotBytes = kRanges + 4 * kTileTokens;
  static constexpr int kValueRows = Rows::kBytes, kRing = 2 * Rows::kBytes;
  static constexpr int kWarpBytes = kRing + 2 * kDepth * kSlotBytes;
  static constexpr int kSharedBytes = Max(kWarps * kWarpBytes, MergeBytes<kDim, kN>());
  static constexpr int kBlocks = Max(1, Min(kN == 2 ? 2 : 4, 227 * 1024 / (kSharedBytes + 1024)));
};

// K or V of one page, as a lane keeps it.
struct PagePlanes {
  const std::byte *record, *planes, *cells;
  int width, outliers;

  __device__ __forceinline__ void Read(const std::byte* page) {
    const auto* h = reinterpret_cast<const kv::QaqHeader*>(page);
    record = page, width = h->width, outliers = h->outliers;
    planes = page + h->planes_at, cells = page + h->cells_at + int64_t{h->first_cell} * kv::kQaqCellBytes;
  }
  __device__ __forceinline__ void Find(kv::PageShape s) {
    planes += int64_t{reinterpret_cast<const kv::QaqHeader*>(record)->plane[0]} * kv::QaqPlaneBytes(s);
  }
  __device__ __forceinline__ PagePlanes Of(int lane) const {
    const auto pointer = [lane](const std::byte* p) {
      return reinterpret_cast<const std::byte*>(
          __shfl_sync(kAll, reinterpret_cast<unsigned long long>(p), lane));
    };
    return {pointer(record), pointer(planes), pointer(cells), __shfl_sync(kAll, width, lane),
            __shfl_sync(kAll, outliers, lane)};
  }
};

template <class Cfg>
struct PlanesFeed {
  const DecodeArgs& a;
  const Item& item;
  uint32_t shared;  // of the warp
  int warp, first, total;
  PagePlanes k, v;  // of lane l: page l of the chunk

  __device__ __forceinline__ PlanesFeed(const DecodeArgs& args, const Item& of, uint32_t at)
      : a(args), item(of), warp(int(threadIdx.x / 32)), k{}, v{} {
    shared = at + uint32_t(warp * Cfg::kWarpBytes);
    const int begin = (item.page_begin - item.chunk_page) * kTilesOfPage;
    const int end = (item.page_end - item.chunk_page) * kTilesOfPage;
    first = begin + (warp - begin % kWarps + kWarps) % kWarps;
    total = first < end ? (end - first + kWarps - 1) / kWarps : 0;
    const int page = item.chunk_page + int(threadIdx.x % 32);
    if (page < item.page_begin || page >= item.page_end) return;
    const int64_t index = a.page_table[int64_t{item.entry} * a.max_pages + page];
    const kv::PageShape shape{a.head_dim, kPage};
    k.Read(a.k.pool + index * a.k.page_stride + item.head * a.k.head_stride);
    v.Read(a.v.pool + index * a.v.page_stride + item.head * a.v.head_stride);
    if (k.width > 0) k.Find(shape);
    if (v.width > 0) v.Find(shape);
  }
  __device__ __forceinline__ int Tile(int i) const { return first + i * kWarps; }
  __device__ __forceinline__ int Start(int i) const {
    return item.chunk_page * kPage + Tile(i) * kTileTokens;
  }
  __device__ __forceinline__ uint32_t Slot(int i, bool is_v) const {
    return shared + uint32_t(Cfg::kRing + (i % kDepth * 2 + is_v) * Cfg::kSlotBytes);
  }
  __device__ __forceinline__ uint32_t Rows(bool is_v) const { return shared + (is_v ? Cfg::kValueRows : 0); }

  __device__ __forceinline__ void Load(int i, bool is_v) {
    if (i < total) {
      const int tile = Tile(i), sub = tile % kTilesOfPage, lane = int(threadIdx.x % 32);
      const PagePlanes page = (is_v ? v : k).Of(tile / kTilesOfPage);
      const uint32_t to = Slot(i, is_v);
      const int pieces = a.head_dim / 8, plane_bytes = kPage * a.head_dim / 8;
      const std::byte* from = page.planes + sub * pieces * 16;
      for (int p = lane; p < page.width * pieces; p += 32) {
        const int b = a.head_dim == Cfg::kDim ? p / (Cfg::kDim / 8) : p / pieces, piece = p - b * pieces;
        CopyAsync<16>(to + b * Cfg::kPlaneBytes + piece * 16, from + b * plane_bytes + piece * 16);
      }
      if (lane < 4)
        CopyAsync<16>(to + Cfg::kRanges + lane * 16,
                      page.record + kv::QaqMinOffset(lane / 2 * kPage + sub * kTileTokens) + lane % 2 * 16);
    }
    CopyCommit();
  }
  // Rows of f16 of the planes that lie in a slot.
  __device__ __forceinline__ void Expand(int i, bool is_v);
  __device__ __forceinline__ void PutOutliers(const PagePlanes& page, int sub, uint32_t rows);
};

__device__ __forceinline__ uint32_t SharedHalf(uint32_t address) {
  uint16_t x;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(x) : "r"(address) : "memory");
  return x;
}
__device__ __forceinline__ float HalfAt(uint32_t address) {
  return __half2float(__ushort_as_half(uint16_t(SharedHalf(address))));
}

// Sixteen channels of a token at a time: bit i + 16 h of a word is that of channel i + 8 h.
template <class Cfg>
__device__ __forceinline__ void PlanesFeed<Cfg>::Expand(int i, bool is_v) {
  const int tile = Tile(i), lane = int(threadIdx.x % 32);
  const PagePlanes page = (is_v ? v : k).Of(tile / kTilesOfPage);
  const uint32_t slot = Slot(i, is_v), rows = Rows(is_v);
  const int of_token = a.head_dim / 16;
#pragma unroll 2
  for (int u = lane; u < a.head_dim; u += 32) {
    const int token = a.head_dim == Cfg::kDim ? u / (Cfg::kDim / 16) : u / of_token;
    uint32_t code[8] = {};
#pragma unroll 1
    for (int b = 0; b < page.width; ++b) {
      const uint32_t x = SharedHalf(slot + b * Cfg::kPlaneBytes + 2 * u), word = __byte_perm(x, 0, 0x4140);
#pragma unroll
      for (int c = 0; c < 8; ++c) code[c] = 2 * code[c] + (word & 0x00010001u << c);
    }
    const float min = HalfAt(slot + Cfg::kRanges + 2 * token),
                step = kv::QaqStep(HalfAt(slot + Cfg::kRanges + 2 * (kTileTokens + token)), page.width);
    // As the fraction of a float: 256 + code.
    const float base = fmaf(step, -255.5f, min);
    float x[16];
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      x[c] = fmaf(__uint_as_float((code[c] << (15 - c) & 0x7f8000u) | 0x43800000u), step, base);
      x[c + 8] = fmaf(__uint_as_float((code[c] >> (1 + c) & 0x7f8000u) | 0x43800000u), step, base);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      uint32_t words[4];
#pragma unroll
      for (int w = 0; w < 4; ++w) words[w] = Bits(__floats2half2_rn(x[8 * h + 2 * w], x[8 * h + 2 * w + 1]));
      asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};" ::"r"(
                       rows + Cfg::Rows::Offset(token, (u - token * of_token) * 32 + 16 * h)),
                   "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
                   : "memory");
    }
  }
  __syncwarp();
  if (page.outliers > 0) PutOutliers(page, tile % kTilesOfPage, rows);
}

template <class Cfg>
__device__ __forceinline__ void PlanesFeed<Cfg>::PutOutliers(const PagePlanes& page, int sub, uint32_t rows) {
  for (int i = int(threadIdx.x % 32); i < page.outliers; i += 32) {
    const auto at = *reinterpret_cast<const uint32_t*>(
        page.cells + i / kv::kQaqCellOutliers * kv::kQaqCellBytes + i % kv::kQaqCellOutliers * 4);
    const int token = int(at >> 10 & 63) - sub * kTileTokens, channel = int(at & 1023);
    if (token < 0 || token >= kTileTokens) continue;
    asm volatile("st.shared.b16 [%0], %1;" ::"r"(rows + Cfg::Rows::Offset(token, 2 * channel)),
                 "h"(uint16_t(at >> 16))
                 : "memory");
  }
  __syncwarp();
}

// The warp's share of the open page, raw; its copies are under way.
template <class Cfg>
__device__ __forceinline__ void AttendOpenRows(State<Cfg::kDim, Cfg::kN>& state,
                                               const Queries<Cfg::kN>& queries,
                                               const KeyQueries<F16, typename Cfg::Rows, Cfg::kN>& q,
                                               const PlanesFeed<Cfg>& feed, int start, float scale) {
  float s[1][Cfg::kN][4], total[Cfg::kN][2];
  Scores<F16, typename Cfg::Rows>(s, feed.Rows(false), q, queries, scale);
  Mask(s, queries, start);
  Weigh(s, state, total);
  Values<F16, typename Cfg::Rows>(s, total, feed.Rows(true), state, true);
  __syncwarp();
}

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
      const std::byte* page = side.open + index * side.open_stride + item.head * side.open_head_stride;
      CopyTile<F16, typename Cfg::Rows>(feed.Rows(is_v), page, feed.warp * kOpenTokens, a.head_dim, first,
                                        last, places);
    }
  }
  CopyCommit();
  return any;
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
  PlanesFeed<Cfg> feed(a, item, SharedAddress(shared));
  if (a.head_dim != kDim) {  // channels that no copy reaches
    uint4* rows = reinterpret_cast<uint4*>(shared + feed.warp * Cfg::kWarpBytes);
    for (int i = int(threadIdx.x % 32); i < Cfg::kRing / 16; i += 32) rows[i] = uint4{0, 0, 0, 0};
    __syncwarp();
  }
  const int open = item.sealed * kPage + feed.warp * kOpenTokens;
  const bool has_open = LoadOpenRows(feed, open);
#pragma unroll 1
  for (int i = 0; i < kDepth; ++i) feed.Load(i, false), feed.Load(i, true);
  State<kDim, kN> state;
  state.Clear();
  Queries<kN> queries;
  SetPositions(queries, a, item);
  KeyQueries<F16, typename Cfg::Rows, kN> q;
  LoadQueries<F16, kDim>(q.words, queries, a, item, plan.scale);
  CopyWait<2 * kDepth>();
  __syncwarp();
  if (has_open) AttendOpenRows(state, queries, q, feed, open, plan.scale);
#pragma unroll 1
  for (int i = 0; i < feed.total; ++i) {
    const bool masked = Masked(a, item, feed.Start(i), kTileTokens);
    float s[1][kN][4], total[kN][2];
    CopyWait<kPending>();
    __syncwarp();
    feed.Expand(i, false);
    feed.Load(i + kDepth, false);
    Scores<F16, typename Cfg::Rows>(s, feed.Rows(false), q, queries, plan.scale);
    if (masked) Mask(s, queries, feed.Start(i));
    Weigh(s, state, total);
    CopyWait<kPending>();
    __syncwarp();
    feed.Expand(i, true);
    feed.Load(i + kDepth, true);
    Values<F16, typename Cfg::Rows>(s, total, feed.Rows(true), state, masked);
    __syncwarp();
  }
  CopyWait<0>();
  __syncthreads();
  KeepState<F16>(state, reinterpret_cast<float*>(shared));
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
  const bool wide = plan.queries == 16;
  if (a.head_dim > 128) return LaunchPlanes<PlanesConfig<256, 1>>(a, plan, stream);
  if (a.head_dim > 64)
    return wide ? LaunchPlanes<PlanesConfig<128, 2>>(a, plan, stream)
                : LaunchPlanes<PlanesConfig<128, 1>>(a, plan, stream);
  return wide ? LaunchPlanes<PlanesConfig<64, 2>>(a, plan, stream)
              : LaunchPlanes<PlanesConfig<64, 1>>(a, plan, stream);
}

}  // namespace nibble::cuda::decode
