// SPDX-License-Identifier: Apache-2.0
// Pages in shared memory and in registers. A tile is kTokens consecutive tokens of one page's K or V. In
// shared memory its rows have kDim channels (head_dim rounded up to 64, 128 or 256; what lies beyond is
// zero), tokens of a block of 16 are placed even ones first, and chunks of 16 bytes are swizzled so that the
// eight rows of a matrix lie in different banks.
//
// A code of b bits becomes f16 by a mask alone: the bits c << s, s + b <= 10, are the subnormal c 2^(s - 24),
// which tensor cores multiply exactly. Word w of a row (codes 0 .. 2 H - 1, H = 16 / b) gives with mask i of
// w (i < H / 2) or w >> 8 the codes i and i + H, times 2^Weight(i); what multiplies or adds up the product
// carries 2^(24 - Weight).
#pragma once
#include <cuda_fp16.h>

#include "kernels/cuda/attention_decode.h"
#include "kernels/cuda/mma.cuh"

namespace nibble::cuda::decode {

inline constexpr int kPage = kv::kPageTokens, kWarps = 4, kOpenTokens = kPage / kWarps;

enum class Affine { kRaw, kToken, kFlash };

template <kv::CodecId id, Affine affine, int bits, bool bf16 = false, bool on_grid = false>
struct Codec {
  static constexpr kv::CodecId kId = id;
  static constexpr Affine kAffine = affine;
  static constexpr int kBits = bits, kHalves = 16 / bits;
  static constexpr bool kBf16 = bf16, kOnGrid = on_grid;  // of FlashQ: base counts steps
  static constexpr int Weight(int i) { return bits == 16 ? 0 : bits * (i % (kHalves / 2)); }
  static constexpr uint32_t Mask(int i) { return ((1u << bits) - 1) * 0x10001u << Weight(i); }
  __device__ static __forceinline__ uint32_t Half2(uint32_t word, int i) {
    if constexpr (bits == 16)
      return word;
    else
      return (i < kHalves / 2 ? word : word >> 8) & Mask(i);
  }
};
using F16 = Codec<kv::CodecId::kF16, Affine::kRaw, 16>;
using BF16 = Codec<kv::CodecId::kBF16, Affine::kRaw, 16, true>;
using Int8Token = Codec<kv::CodecId::kInt8Token, Affine::kToken, 8>;
using Int4Token = Codec<kv::CodecId::kInt4Token, Affine::kToken, 4>;
using FlashQ4 = Codec<kv::CodecId::kFlashQ4, Affine::kFlash, 4, false, true>;
using FlashQ2 = Codec<kv::CodecId::kFlashQ2, Affine::kFlash, 2>;

constexpr int Min(int a, int b) { return a < b ? a : b; }
constexpr int Max(int a, int b) { return a > b ? a : b; }

// The layout of a tile. kChunks: chunks of 16 bytes in a row.
template <class C, int kTokens_, int kDim_>
struct Tile {
  static constexpr int kTokens = kTokens_, kDim = kDim_;
  static constexpr int kRowBytes = kDim * C::kBits / 8, kChunks = kRowBytes / 16;
  static constexpr int kCodeBytes = kTokens * kRowBytes;
  static constexpr int kParamBytes =
      C::kAffine == Affine::kRaw ? 0 : (C::kAffine == Affine::kToken ? 4 * kTokens : 2 * kDim + 16);
  static constexpr int kBytes = kCodeBytes + kParamBytes;
  static constexpr int kWords = kDim / 8;  // half2 of a lane's share of a row, or of a column of V

  __device__ static __forceinline__ int Swizzle(int row) {
    return kChunks >= 8 ? row & 7 : row / (8 / kChunks) & (kChunks - 1);
  }
  // Of token t of the tile, byte b of its row.
  __device__ static __forceinline__ int Offset(int t, int b) {
    const int row = (t & ~15) | (t & 1) << 3 | (t >> 1 & 7);
    return row * kRowBytes + ((b / 16 ^ Swizzle(row)) << 4) + b % 16;
  }
  // Where a lane puts the chunks that it copies: those of step i, 32 at a time in the order of the page, at
  // at[i % kPeriod] + i / kPeriod * kPeriodBytes.
  static constexpr int kStepRows = 32 / kChunks, kPeriod = Max(1, 16 / kStepRows);
  static constexpr int kPeriodBytes = kPeriod * kStepRows * kRowBytes;
  struct Places {
    uint32_t at[kPeriod];
  };
  __device__ static __forceinline__ Places PlacesOf(int lane) {
    Places places;
#pragma unroll
    for (int i = 0; i < kPeriod; ++i) {
      const int piece = 32 * i + lane;
      places.at[i] = uint32_t(Offset(piece / kChunks, piece % kChunks * 16));
    }
    return places;
  }
  // What LoadMatrices wants of a lane: rows 0..7 and 8..15 of two chunks, or where a row is one chunk, of two
  // blocks of 16 rows. Chunk c (even) and block m of 16 rows: tile + m * 16 * kRowBytes + row + (column ^ c
  // << 4).
  struct Lane {
    uint32_t row, column;
  };
  __device__ static __forceinline__ Lane LaneOf(int lane) {
    const int row = lane & 15, next = lane / 16;
    if constexpr (kChunks == 1) return {uint32_t(row + 16 * next) * 16, 0};
    return {uint32_t(row * kRowBytes), uint32_t((next ^ Swizzle(row)) << 4)};
  }
};

// About 4 KB of codes, in blocks of 16 tokens.
template <class C>
constexpr int TokensOf(int dim) {
  return Max(16, Min(kPage, 4096 * 8 / (dim * C::kBits)));
}

// Copies `rows` rows of head_dim < kDim channels, or of any that are not whole chunks, by kGranule bytes.
template <class T, int kGranule>
__device__ __noinline__ void CopyRows(uint32_t to, const std::byte* from, int row_bytes, int first,
                                      int last) {
  const int pieces = row_bytes / kGranule;
  for (int i = threadIdx.x % 32; i < pieces * T::kTokens; i += 32) {
    const int t = i / pieces, b = i % pieces * kGranule;
    const bool seen = t >= first && t < last;
    CopyAsync<kGranule>(to + T::Offset(t, b), from + t * row_bytes + b, seen ? kGranule : 0);
  }
}

// Starts the copy of tokens token .. token + kTokens - 1 of a page by one warp. Raw rows outside first ..
// last - 1 of the tile become zero: they may hold anything.
template <class C, class T>
__device__ __forceinline__ void CopyTile(uint32_t to, const std::byte* page, int token, int head_dim,
                                         int first, int last, const typename T::Places& places) {
  const int lane = threadIdx.x % 32, row_bytes = head_dim * C::kBits / 8;
  const std::byte* from = page + token * row_bytes;
  if (C::kAffine != Affine::kRaw) first = 0, last = T::kTokens;
  if (head_dim == T::kDim) {
#pragma unroll
    for (int i = 0; i < T::kTokens * T::kChunks / 32; ++i) {
      const int t = i * T::kStepRows + lane / T::kChunks;
      const int valid = C::kAffine == Affine::kRaw && (t < first || t >= last) ? 0 : 16;
      CopyAsync<16>(to + places.at[i % T::kPeriod] + i / T::kPeriod * T::kPeriodBytes,
                    from + lane * 16 + i * 512, valid);
    }
  } else if (row_bytes % 16 == 0) {
    CopyRows<T, 16>(to, from, row_bytes, first, last);
  } else if (row_bytes % 8 == 0) {
    CopyRows<T, 8>(to, from, row_bytes, first, last);
  } else {
    CopyRows<T, 4>(to, from, row_bytes, first, last);
  }
  const std::byte* params = page + kPage * row_bytes;
  const uint32_t at = to + T::kCodeBytes;
  if constexpr (C::kAffine == Affine::kToken) {  // scales, then minima
    constexpr int kPieces = T::kTokens / 8;
    if (lane < 2 * kPieces)
      CopyAsync<16>(at + lane * 16, params + lane / kPieces * 2 * kPage + 2 * token + lane % kPieces * 16);
  }
  if constexpr (C::kAffine == Affine::kFlash) {  // steps, bases, the scale of the block
    const int pieces = head_dim / 16;
    if (lane < 2 * pieces)
      CopyAsync<16>(at + lane / pieces * T::kDim + lane % pieces * 16, params + lane * 16);
    if (lane == 31) CopyAsync<4>(at + 2 * T::kDim, params + 2 * head_dim);
  }
}

// The channel of the lower code of half2 (chunk, i) in the K share of place j; the upper is kHalves further.
template <class C>
__device__ __forceinline__ int KeyChannel(int chunk, int j, int i) {
  return chunk * 8 * C::kHalves + j * 2 * C::kHalves + i;
}
// The channel of column word u = chunk * kHalves + i of V for group g.
template <class C>
__device__ __forceinline__ int ValueChannel(int u, int g) {
  return u / C::kHalves * 8 * C::kHalves + g * C::kHalves + u % C::kHalves;
}

__device__ __forceinline__ uint32_t Bits(__half2 x) { return *reinterpret_cast<uint32_t*>(&x); }
__device__ __forceinline__ __half2 AsHalf2(uint32_t x) { return *reinterpret_cast<__half2*>(&x); }
__device__ __forceinline__ uint32_t SharedWord(uint32_t address) {
  uint32_t x;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(x) : "r"(address) : "memory");
  return x;
}
__device__ __forceinline__ void SharedWords(uint32_t (&x)[2], uint32_t address) {
  asm volatile("ld.shared.v2.b32 {%0,%1}, [%2];" : "=r"(x[0]), "=r"(x[1]) : "r"(address) : "memory");
}
__device__ __forceinline__ void SharedWords(uint32_t (&x)[4], uint32_t address) {
  asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ float SharedFloat(uint32_t address) {
  return __uint_as_float(SharedWord(address));
}

}  // namespace nibble::cuda::decode
