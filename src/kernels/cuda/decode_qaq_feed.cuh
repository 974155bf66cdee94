// SPDX-License-Identifier: Apache-2.0
// Pages of QAQ on their way to one warp. A tile is kTokens tokens of a page's K or V; a step is up to four of
// its planes, the low ones of a wide page first, and one group of copies into a ring of slots. The planes of
// a page are neighbours, and so are its outliers' cells (qaq.h). A block reads the headers of its pages once,
// so that no copy waits for one.
#pragma once
#include "kernels/cuda/decode_merge.cuh"
#include "kernels/cuda/decode_planes.cuh"
#include "quant/kv/qaq.h"

namespace nibble::cuda::decode {

// K or V of one page.
struct alignas(16) PagePlanes {
  const std::byte *record, *planes, *cells;
  int width, outliers;
};

template <int kDim_, int kN_>
struct PlanesConfig {
  static constexpr int kDim = kDim_, kN = kN_, kDepth = 2;  // steps under way: a third is slower
  using Tile = PlanesTile<8192 / kDim, kDim>;
  using Rows = decode::Tile<F16, kOpenTokens, kDim>;  // of the open page, or of outliers
  static constexpr int kTilesOfPage = kPage / Tile::kTokens;
  // Of a warp: rows, then the ring. V of the open page lies in the ring's last slots.
  static constexpr int kOpenSlots = (Rows::kBytes + Tile::kBytes - 1) / Tile::kBytes;
  static constexpr int kWarpBytes = Rows::kBytes + kDepth * Tile::kBytes;
  static constexpr int kPages = kWarps * kWarpBytes;  // PagePlanes [2][kMostPages]
  static constexpr int kMostPages = 32, kItem = kPages + 2 * kMostPages * int(sizeof(PagePlanes));
  static constexpr int kQueries = kItem + (int(sizeof(Item)) + 15) / 16 * 16;
  static constexpr int kSharedBytes = Max(kQueries + 32 * kN * Rows::kWords * 4, MergeBytes<kDim, kN>());
  // By registers, then by shared memory.
  static constexpr int kFit = kN == 2 || kDim == 256 ? 2 : 3;
  static constexpr int kBlocks = Max(1, Min(kFit, 227 * 1024 / (kSharedBytes + 1024)));
  static_assert(kOpenSlots <= kDepth);
};

__device__ __forceinline__ PagePlanes ReadHeader(const std::byte* page, kv::PageShape shape) {
  const auto* h = reinterpret_cast<const kv::QaqHeader*>(page);
  return {page, page + h->planes_at + int64_t{h->plane[0]} * kv::QaqPlaneBytes(shape),
          page + h->cells_at + int64_t{h->first_cell} * kv::kQaqCellBytes, h->width, h->outliers};
}

// Copies rows of head_dim < kDim channels by kGranule bytes, kPieces of them (0: any number); those of 2
// bytes at once.
template <class T, int kGranule, int kPieces = 0>
__device__ __noinline__ void CopyPlaneRows(uint32_t to, const std::byte* from, int row_bytes, int planes) {
  const int pieces = kPieces > 0 ? kPieces : row_bytes / kGranule;
  for (int i = int(threadIdx.x % 32); i < planes * T::kTokens * pieces; i += 32) {
    const int row = i / pieces, t = row % T::kTokens, b = row / T::kTokens, at = i % pieces * kGranule;
    const uint32_t place = to + b * T::kPlaneBytes + t * T::kRowBytes + at;
    const std::byte* piece = from + (b * kPage + t) * row_bytes + at;
    if constexpr (kGranule == 2)
      asm volatile("st.shared.u16 [%0], %1;" ::"r"(place), "h"(*reinterpret_cast<const uint16_t*>(piece))
                   : "memory");
    else
      CopyAsync<kGranule>(place, piece);
  }
}

// Of a warp that reads it once: the compiler would rather read it again and wait.
__device__ __forceinline__ int Lane() {
  int lane;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}

// Planes of a step.
__device__ __forceinline__ int StepPlanes(int width, bool low) {
  return low ? width - kStepPlanes : min(width, kStepPlanes);
}

template <class Cfg>
struct PlanesFeed {
  using T = typename Cfg::Tile;
  const DecodeArgs& a;
  const PagePlanes* pages;      // of the chunk, K then V
  uint32_t shared;              // of the warp
  int lane, first, end;         // tiles of the chunk: first, first + kWarps ..
  int seen_from, seen_to;       // positions in the chunk that all rows see
  int load_slot = 0, slot = 0;  // of the next copy, of the oldest step
  int next;                     // tile that the next copy is of
  bool next_v = false, low_done = false;

  __device__ __forceinline__ PlanesFeed(const DecodeArgs& args, const Item& item, char* memory)
      : a(args), pages(reinterpret_cast<const PagePlanes*>(memory + Cfg::kPages)), lane(Lane()) {
    const int warp = int(threadIdx.x / 32), begin = (item.page_begin - item.chunk_page) * Cfg::kTilesOfPage;
    shared = SharedAddress(memory) + uint32_t(warp * Cfg::kWarpBytes);
    next = first = begin + (warp - begin % kWarps + kWarps) % kWarps;
    end = (item.page_end - item.chunk_page) * Cfg::kTilesOfPage;
    const int start = item.chunk_page * kPage;
    seen_from = a.window > 0 ? item.length - a.window - start : 0;
    seen_to = item.length - item.rows + 1 - start;
  }
  __device__ __forceinline__ static int TokenOfPage(int tile) {
    return tile % Cfg::kTilesOfPage * T::kTokens;
  }
  // Whether some row does not see some of the tile's tokens.
  __device__ __forceinline__ bool Masked(int tile) const {
    return tile * T::kTokens < seen_from || (tile + 1) * T::kTokens > seen_to;
  }
  __device__ __forceinline__ const PagePlanes& PageOf(int tile, bool is_v) const {
    return pages[is_v * Cfg::kMostPages + tile / Cfg::kTilesOfPage];
  }
  __device__ __forceinline__ uint32_t Rows() const { return shared; }
  __device__ __forceinline__ uint32_t Slot(int i) const {
    return shared + uint32_t(Cfg::Rows::kBytes + i * T::kBytes);
  }
  __device__ __forceinline__ uint32_t OpenValues() const { return Slot(Cfg::kDepth - Cfg::kOpenSlots); }

  // This lane's share of the planes from kPlane on.
  template <int kPlane>
  __device__ __forceinline__ static void CopyPlane(uint32_t to, const std::byte* from, int planes) {
    if (kPlane < planes) CopyPieces<kPlane, 0>(to, from);
    if constexpr (kPlane + 1 < kStepPlanes)
      CopyPlane<kPlane + 1>(to, from + kPage * T::kRowBytes - T::kPlaneBytes, planes);
  }
  template <int kPlane, int kPiece>
  __device__ __forceinline__ static void CopyPieces(uint32_t to, const std::byte* from) {
    CopyAsyncAt<kPlane * T::kPlaneBytes + kPiece>(to, from);
    if constexpr (kPiece + 512 < T::kPlaneBytes) CopyPieces<kPlane, kPiece + 512>(to, from);
  }
  __device__ __forceinline__ void Copy(const PagePlanes& page, int token, int plane, int planes,
                                       uint32_t to) const {
    const int row_bytes = a.head_dim / 8;
    const std::byte* from = page.planes + (plane * kPage + token) * row_bytes;
    if (a.head_dim == T::kDim) {
      CopyPlane<0>(to + lane * 16, from + lane * 16, planes);
    } else if (row_bytes == 8) {
      CopyPlaneRows<T, 8, 1>(to, from, row_bytes, planes);
    } else if (row_bytes % 8 == 0) {
      CopyPlaneRows<T, 8>(to, from, row_bytes, planes);
    } else if (row_bytes % 4 == 0) {
      CopyPlaneRows<T, 4>(to, from, row_bytes, planes);
    } else {
      CopyPlaneRows<T, 2>(to, from, row_bytes, planes);
    }
    constexpr int kPieces = T::kTokens / 8;
    if (lane < 2 * kPieces)
      CopyAsync<16>(to + T::kRanges + lane * 16,
                    page.record + kv::QaqMinOffset(lane / kPieces * kPage + token) + lane % kPieces * 16);
    if (lane * 2 * kv::kQaqCellOutliers < page.outliers)
      asm volatile("prefetch.global.L2 [%0];" ::"l"(page.cells + lane * 2 * kv::kQaqCellBytes));
  }
  // Starts the copies of the next step.
  __device__ __forceinline__ void Load() {
    if (next < end) {
      const PagePlanes& page = PageOf(next, next_v);
      const int width = page.width;
      const bool low = width > kStepPlanes && !low_done;
      Copy(page, TokenOfPage(next), low ? kStepPlanes : 0, StepPlanes(width, low), Slot(load_slot));
      low_done = low;
      if (!low) next += next_v * kWarps, next_v = !next_v;
    }
    CopyCommit();
    load_slot = load_slot + 1 == Cfg::kDepth ? 0 : load_slot + 1;
  }
  // Where the oldest step lies, when it has come.
  __device__ __forceinline__ uint32_t Await() const {
    CopyWait<Cfg::kDepth - 1>();
    __syncwarp();
    return Slot(slot);
  }
  // The oldest step is done with.
  __device__ __forceinline__ void Release() {
    __syncwarp();
    slot = slot + 1 == Cfg::kDepth ? 0 : slot + 1;
    Load();
  }
};

// The outliers of a page in order, tokens ascending, as far as one asks; two groups of 32 ahead in registers.
struct OutlierStream {
  const PagePlanes& page;
  const int lane;
  int at = 0;
  uint32_t now = 0, then = 0;

  __device__ __forceinline__ OutlierStream(const PagePlanes& of, int lane_of_warp)
      : page(of), lane(lane_of_warp) {
    if (page.outliers > 0) now = Word(0), then = Word(32);
  }
  __device__ __forceinline__ uint32_t Word(int group) const {
    const int i = group + lane;
    return i < page.outliers
               ? *reinterpret_cast<const uint32_t*>(
                     page.cells + i / kv::kQaqCellOutliers * kv::kQaqCellBytes + i % kv::kQaqCellOutliers * 4)
               : 0;
  }
  __device__ __forceinline__ static int TokenOf(uint32_t word) { return int(word >> 10 & 63); }
  // f(token, channel, f16) of those of tokens below `last`, each by one lane.
  template <class F>
  __device__ __forceinline__ void Until(int last, F f) {
    while (at < page.outliers && TokenOf(__shfl_sync(kAll, now, at % 32)) < last) {
      const int place = at % 32 + lane;
      const uint32_t x = __shfl_sync(kAll, now, place % 32), y = __shfl_sync(kAll, then, place % 32);
      const uint32_t word = place < 32 ? x : y;
      const bool mine = at + lane < page.outliers && TokenOf(word) < last;
      const int group = at / 32;
      at += __popc(__ballot_sync(kAll, mine));
      if (at / 32 != group) now = then, then = Word((group + 2) * 32);
      if (mine) f(TokenOf(word), int(word & 1023), uint16_t(word >> 16));
    }
  }
};

}  // namespace nibble::cuda::decode
