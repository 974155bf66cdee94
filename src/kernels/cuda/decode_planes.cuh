// SPDX-License-Identifier: Apache-2.0
// Bit planes as operands of the tensor cores. A row of 128 channels of a plane is 16 bytes, so that eight
// tokens of it are one 8x8 matrix of 16-bit elements: ldmatrix gives a lane word j of token g for K, and
// transposed the channels 16 g .. 16 g + 15 of tokens 2 j and 2 j + 1 for V. Either way bit i and bit i + 16
// of the word are one half2. Up to four planes become four words of nibbles, the codes at their upper ends,
// whatever the width: n[r] has in its nibbles bits 4 k + r of each plane. Masked, nibble k is a subnormal
// c 2^(s - 24) with s = 0 or 4 (decode_codec.cuh).
#pragma once
#include "kernels/cuda/decode_tile.cuh"

namespace nibble::cuda::decode {

inline constexpr int kStepPlanes = 4;  // that make nibbles together

// As a codec: code and scale by token, half2 i of a word is channels i and i + 16 of 32, or i of 16.
struct Planes {
  static constexpr Affine kAffine = Affine::kToken;
  static constexpr int kHalves = 16;
  static constexpr bool kBf16 = false;
  static constexpr int Weight(int i) { return i & 4; }
};
// Nibbles count eighths of half a range, up to 65504: weights times it stay in the range of f16.
template <>
constexpr float kTokenBoost<Planes> = 8;

// Bits of a where `mask` has them, of b elsewhere.
__device__ __forceinline__ uint32_t Select(uint32_t mask, uint32_t a, uint32_t b) {
  return (a & mask) | (b & ~mask);
}

// x: planes, the most significant first. Bits of n below the codes are anything.
template <int kPlanes>
__device__ __forceinline__ void Nibbles(uint32_t (&n)[4], const uint32_t (&x)[kStepPlanes]) {
  if constexpr (kPlanes == 1) {
    n[3] = x[0], n[2] = x[0] << 1, n[1] = x[0] << 2, n[0] = x[0] << 3;
  } else {
    const uint32_t odd = Select(0xaaaaaaaau, x[0], x[1] >> 1), even = Select(0xaaaaaaaau, x[0] << 1, x[1]);
    if constexpr (kPlanes == 2) {
      n[3] = odd, n[2] = even, n[1] = odd << 2, n[0] = even << 2;
    } else {
      const uint32_t low_odd = kPlanes == 3 ? x[2] : Select(0xaaaaaaaau, x[2], x[3] >> 1);
      const uint32_t low_even = kPlanes == 3 ? x[2] << 1 : Select(0xaaaaaaaau, x[2] << 1, x[3]);
      n[3] = Select(0xccccccccu, odd, low_odd >> 2), n[1] = Select(0xccccccccu, odd << 2, low_odd);
      n[2] = Select(0xccccccccu, even, low_even >> 2), n[0] = Select(0xccccccccu, even << 2, low_even);
    }
  }
}
// Channel 4 k + r's half2.
template <int kPlanes>
__device__ __forceinline__ uint32_t NibbleHalf2(const uint32_t (&n)[4], int k, int r) {
  constexpr uint32_t kMask = (0xf << (kStepPlanes - kPlanes) & 0xf) * 0x10001u;
  return (k < 2 ? n[r] : n[r] >> 8) & kMask << k % 2 * 4;
}

// Nibbles of 16 tokens, the first and the last eight. at: of this lane, of the first plane.
template <int kPlanes, int kPlaneBytes, bool kTransposed>
__device__ __forceinline__ void LoadNibbles(uint32_t (&upper)[4], uint32_t (&lower)[4], uint32_t at) {
  uint32_t x[kStepPlanes], y[kStepPlanes];
#pragma unroll
  for (int b = 0; b < kPlanes; b += 2) {  // of an odd number the one too many is not used
    uint32_t pair[4];
    LoadMatrices<kTransposed>(pair, at + b * kPlaneBytes);
    x[b] = pair[0], y[b] = pair[1], x[b + 1] = pair[2], y[b + 1] = pair[3];
  }
  Nibbles<kPlanes>(upper, x);
  Nibbles<kPlanes>(lower, y);
}

// A step's planes in shared memory, as they lie in a page: copies of 16 bytes to places that are not
// neighbours are requests of their own to the L2.
template <int kTokens_, int kDim_>
struct PlanesTile {
  static constexpr int kTokens = kTokens_, kDim = kDim_, kM = kTokens / 16, kParts = kDim / 128;
  static constexpr int kRowBytes = kDim / 8, kPlaneBytes = kTokens * kRowBytes, kBlockBytes = 16 * kRowBytes;
  static constexpr int kRanges = kStepPlanes * kPlaneBytes;  // minima, then half ranges: f16
  static constexpr int kBytes = kRanges + 4 * kTokens;
  // What LoadMatrices wants of a lane: 16 tokens of two planes.
  __device__ static __forceinline__ uint32_t LaneOf(int lane) {
    return uint32_t(lane / 16 * kPlaneBytes + lane % 16 * kRowBytes);
  }
};

// Blocks of 16 tokens that are unrolled together: one's matrix instructions for K wait for each other, and
// the code of four does not fit where instructions are at hand.
inline constexpr int kTogether = 2;

// The next blocks to the front.
template <class X, int kM, int kN, int kEach>
__device__ __forceinline__ void Rotate(X (&x)[kM][kN][kEach]) {
  static_assert(kM == kTogether || kM == 2 * kTogether);
  if constexpr (kM > kTogether)
#pragma unroll
    for (int i = 0; i < kTogether * kN * kEach; ++i) {
      X& a = x[i / kEach / kN][i / kEach % kN][i % kEach];
      X& b = x[i / kEach / kN + kTogether][i / kEach % kN][i % kEach];
      const X kept = a;
      a = b, b = kept;
    }
}

// s += K Q^T in units of nibbles.
template <int kPlanes, class T, int kN>
__device__ __forceinline__ void MultiplyPlaneKeys(float (&s)[T::kM][kN][4], uint32_t tile, int lane,
                                                  const uint32_t (&q)[kN][T::kDim / 8]) {
  uint32_t at = tile + T::LaneOf(lane);
#pragma unroll 1
  for (int m = 0; m < T::kM; m += kTogether, at += kTogether * T::kBlockBytes) {
#pragma unroll
    for (int part = 0; part < T::kParts; ++part) {
      uint32_t upper[kTogether][4], lower[kTogether][4];
#pragma unroll
      for (int h = 0; h < kTogether; ++h)
        LoadNibbles<kPlanes, T::kPlaneBytes, false>(upper[h], lower[h], at + part * 16 + h * T::kBlockBytes);
#pragma unroll
      for (int i = 0; i < 16; i += 2)
#pragma unroll
        for (int h = 0; h < kTogether; ++h) {
          const auto half2 = [i](const uint32_t(&x)[4], int next) {
            return NibbleHalf2<kPlanes>(x, i / 4, i % 4 + next);
          };
#pragma unroll
          for (int n = 0; n < kN; ++n)
            Mma16816<false>(s[h][n], half2(upper[h], 0), half2(lower[h], 0), half2(upper[h], 1),
                            half2(lower[h], 1), q[n][16 * part + i], q[n][16 * part + i + 1]);
        }
    }
    Rotate(s);
  }
}

// o += V^T P^T. p: as it was at the end.
template <int kPlanes, class T, int kN>
__device__ __forceinline__ void MultiplyPlaneValues(State<T::kDim, kN>& state, uint32_t tile, int lane,
                                                    uint32_t (&p)[T::kM][kN][2]) {
  uint32_t at = tile + T::LaneOf(lane);
#pragma unroll 1
  for (int m = 0; m < T::kM; m += kTogether, at += kTogether * T::kBlockBytes) {
#pragma unroll
    for (int h = 0; h < kTogether; ++h)
#pragma unroll
      for (int part = 0; part < T::kParts; ++part) {
        uint32_t upper[4], lower[4];
        LoadNibbles<kPlanes, T::kPlaneBytes, true>(upper, lower, at + part * 16 + h * T::kBlockBytes);
#pragma unroll
        for (int i = 0; i < 16; i += 2) {
          const auto half2 = [i](const uint32_t(&x)[4], int next) {
            return NibbleHalf2<kPlanes>(x, i / 4, i % 4 + next);
          };
#pragma unroll
          for (int n = 0; n < kN; ++n)
            Mma16816<false>(state.o[8 * part + i / 2][n], half2(upper, 0), half2(upper, 1), half2(lower, 0),
                            half2(lower, 1), p[h][n][0], p[h][n][1]);
        }
      }
    Rotate(p);
  }
}

// f of the number of planes as a constant.
template <int kPlanes>
struct PlanesCount {
  static constexpr int kValue = kPlanes;
};
template <class F>
__device__ __forceinline__ void ForPlanes(int planes, F f) {
  switch (planes) {
    case 1:
      return f(PlanesCount<1>{});
    case 2:
      return f(PlanesCount<2>{});
    case 3:
      return f(PlanesCount<3>{});
    case 4:
      return f(PlanesCount<4>{});
    default:
      return;  // a page of no planes: every code is 0
  }
}

}  // namespace nibble::cuda::decode
