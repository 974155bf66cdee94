// SPDX-License-Identifier: Apache-2.0
// Pages of QAQ on their way to one warp. A tile is kTokens tokens of a page's K or V; a step is up to four of
// its planes, the low ones of a wide page first, and one group of copies into a ring of slots. The planes of a
// page are neighbours, and so are its outliers' cells (qaq.h). A block reads the headers of its pages once, so
// that no copy waits for one.
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
  static constexpr int kDim = kDim_, kN = kN_, kDepth = 3;  // steps under way
  using Tile = PlanesTile<8192 / kDim, kDim>;
  using Rows = decode::Tile<F16, kOpenTokens, kDim>;  // of the open page, or of outliers
  static constexpr int kTilesOfPage = kPage / Tile::kTokens;
  // Of a warp: rows, then the ring. V of the open page lies in the ring's last slots.
  static constexpr int kOpenSlots = (Rows::kBytes + Tile::kBytes - 1) / Tile::kBytes;
  static constexpr int kWarpBytes = Rows::kBytes + kDepth * Tile::kBytes;
  static constexpr int kPages = kWarps * kWarpBytes;  // PagePlanes [2][kMostPages]
  static constexpr int kMostPages = 32, kQueries = kPages + 2 * kMostPages * int(sizeof(PagePlanes));
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

// Copies rows of head_dim < kDim channels by kGranule bytes; those of 2 bytes at once.
template <class T, int kGranule>
__device__ __noinline__ void CopyPlaneRows(uint32_t to, const std::byte* from, int row_bytes, int planes) {
  const int pieces = row_bytes / kGranule;
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

template <class Cfg>
struct PlanesFeed {
  using T = typename Cfg::Tile;
  const DecodeArgs& a;
  const Item& item;
  const PagePlanes* pages;  // of the chunk, K then V
  uint32_t shared;          // of the warp
  int lane, warp, first, total;        // tiles
  int load_slot = 0, slot = 0;         // of the next copy, of the oldest step
  int next = 0;                        // tile that the next copy is of
  bool next_v = false, low_done = false;
  PagePlanes coming;                   // its page

  __device__ __forceinline__ PlanesFeed(const DecodeArgs& args, const Item& of, char* memory)
      : a(args),
        item(of),
        pages(reinterpret_cast<const PagePlanes*>(memory + Cfg::kPages)),
        lane(Lane()),
        warp(int(threadIdx.x / 32)) {
    shared = SharedAddress(memory) + uint32_t(warp * Cfg::kWarpBytes);
    const int begin = (item.page_begin - item.chunk_page) * Cfg::kTilesOfPage;
    const int end = (item.page_end - item.chunk_page) * Cfg::kTilesOfPage;
    first = begin + (warp - begin % kWarps + kWarps) % kWarps;
    total = first < end ? (end - first + kWarps - 1) / kWarps : 0;
  }
  __device__ __forceinline__ int TileOf(int i) const { return first + i * kWarps; }
  __device__ __forceinline__ int TokenOfPage(int i) const {
    return TileOf(i) % Cfg::kTilesOfPage * T::kTokens;
  }
  __device__ __forceinline__ int Start(int i) const {
    return item.chunk_page * kPage + TileOf(i) * T::kTokens;
  }
  __device__ __forceinline__ const PagePlanes& PageOf(int i, bool is_v) const {
    return pages[is_v * Cfg::kMostPages + TileOf(i) / Cfg::kTilesOfPage];
  }
  __device__ __forceinline__ uint32_t Rows() const { return shared; }
  __device__ __forceinline__ uint32_t Slot(int i) const {
    return shared + uint32_t(Cfg::Rows::kBytes + i * T::kBytes);
  }
  __device__ __forceinline__ uint32_t OpenValues() const { return Slot(Cfg::kDepth - Cfg::kOpenSlots); }

  __device__ __forceinline__ void Copy(int token, int plane, int planes, uint32_t to) const {
    const int row_bytes = a.head_dim / 8;
    const std::byte* from = coming.planes + (plane * kPage + token) * row_bytes;
    if (a.head_dim == T::kDim) {
#pragma unroll
      for (int b = 0; b < kStepPlanes; ++b)
        if (b < planes)
#pragma unroll
          for (int i = 0; i < T::kPlaneBytes; i += 512)
            CopyAsync<16>(to + b * T::kPlaneBytes + i + lane * 16,
                          from + b * (kPage * T::kRowBytes) + i + lane * 16);
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
                    coming.record + kv::QaqMinOffset(lane / kPieces * kPage + token) + lane % kPieces * 16);
    if (lane * 2 * kv::kQaqCellOutliers < coming.outliers)
      asm volatile("prefetch.global.L2 [%0];" ::"l"(coming.cells + lane * 2 * kv::kQaqCellBytes));
  }
  // Once the headers are there.
  __device__ __forceinline__ void Begin() {
    if (total > 0) coming = PageOf(0, false);
  }
  // Starts the copies of the next step.
  __device__ __forceinline__ void Load() {
    if (next < total) {
      const bool low = coming.width > kStepPlanes && !low_done;
      Copy(TokenOfPage(next), low ? kStepPlanes : 0,
           low ? coming.width - kStepPlanes : min(coming.width, kStepPlanes), Slot(load_slot));
      low_done = low;
      if (!low) {
        next += next_v, next_v = !next_v;
        if (next < total) coming = PageOf(next, next_v);
      }
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

// f(token, channel, f16) of the outliers from `at` on of tokens below `last`, each by one lane. Returns where
// those end: tokens ascend.
template <class F>
__device__ __forceinline__ int ForOutliers(const PagePlanes& page, int lane, int at, int last, F f) {
  while (true) {
    const int i = at + lane;
    uint32_t x = 0;
    if (i < page.outliers)
      x = *reinterpret_cast<const uint32_t*>(page.cells + i / kv::kQaqCellOutliers * kv::kQaqCellBytes +
                                             i % kv::kQaqCellOutliers * 4);
    const int token = int(x >> 10 & 63);
    const bool mine = i < page.outliers && token < last;
    if (mine) f(token, int(x & 1023), uint16_t(x >> 16));
    const int count = __popc(__ballot_sync(kAll, mine));
    at += count;
    if (count < 32) return at;
  }
}

}  // namespace nibble::cuda::decode
