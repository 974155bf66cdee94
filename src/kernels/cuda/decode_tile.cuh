// SPDX-License-Identifier: Apache-2.0
// One tile against up to 8 kN queries, by one warp. Everything is transposed: S^T = K Q^T, O^T = V^T P^T, so
// that queries fill the 8 columns of a matrix instruction and tokens or channels its 16 rows. A lane holds
// queries 8 n + 2 j + e (e = 0, 1) of scores and outputs; its rows are tokens 16 m + 2 g + h or channels
// ValueChannel(2 m + h, g) at index [m][n][2 h + e].
#pragma once
#include <cuda_bf16.h>

#include "kernels/cuda/decode_codec.cuh"

namespace nibble::cuda::decode {

inline constexpr uint32_t kAll = 0xffffffffu;
inline constexpr float kCodeUnit = 16777216.0f;  // 2^24: codes enter as multiples of 2^-24
inline constexpr float kNoScore = -1e30f;  // a maximum before any score; finite, so differences are defined

template <int kN>
struct Queries {                  // what a lane knows of its columns
  float sum[kN][2];               // sum of q times the scale of scores
  int first[kN][2], last[kN][2];  // positions it sees
};

template <int kDim, int kN>
struct State {
  float o[kDim / 16][kN][4];
  float max[kN][2], sum[kN][2],
      least[kN][2];  // sum, least (weights x minima of tokens): this lane's tokens only

  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (int n = 0; n < kN; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e) max[n][e] = kNoScore, sum[n][e] = least[n][e] = 0;
#pragma unroll
    for (int m = 0; m < kDim / 16; ++m)
#pragma unroll
      for (int n = 0; n < kN; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) o[m][n][i] = 0;
  }
};

__device__ __forceinline__ float SumGroups(float x) {
#pragma unroll
  for (int lanes = 4; lanes < 32; lanes *= 2) x += __shfl_xor_sync(kAll, x, lanes);
  return x;
}

// Bytes by the places that `pick` names; + 8: the sign of that byte, 0 for a step, which is below 128.
__device__ __forceinline__ uint32_t PickBytes(uint32_t x, uint32_t y, uint32_t pick) {
  uint32_t picked;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(picked) : "r"(x), "r"(y), "r"(pick));  // __byte_perm drops the + 8
  return picked;
}

// ---- scores

template <class C, int kN, int kWords>
__device__ __forceinline__ void KeyStep(float (&s)[kN][4], uint32_t low, uint32_t high,
                                        const uint32_t (&q)[kN][kWords], int chunk) {
#pragma unroll
  for (int i = 0; i < C::kHalves; i += 2)
#pragma unroll
    for (int n = 0; n < kN; ++n)
      Mma16816<C::kBf16>(s[n], C::Half2(low, i), C::Half2(high, i), C::Half2(low, i + 1),
                         C::Half2(high, i + 1), q[n][chunk * C::kHalves + i],
                         q[n][chunk * C::kHalves + i + 1]);
}

// s += K Q^T in units of codes.
template <class C, class T, int kN>
__device__ __forceinline__ void MultiplyKeys(float (&s)[T::kTokens / 16][kN][4], uint32_t tile,
                                             const uint32_t (&q)[kN][T::kWords]) {
  const auto at = T::LaneOf(int(threadIdx.x % 32));
  uint32_t x[4];
  if constexpr (T::kChunks == 1) {
#pragma unroll
    for (int m = 0; m < T::kTokens / 16; m += 2) {
      LoadMatrices<false>(x, tile + m * 256 + at.row);
      KeyStep<C>(s[m], x[0], x[1], q, 0);
      KeyStep<C>(s[m + 1], x[2], x[3], q, 0);
    }
  } else {
#pragma unroll
    for (int c = 0; c < T::kChunks; c += 2)
#pragma unroll
      for (int m = 0; m < T::kTokens / 16; ++m) {
        LoadMatrices<false>(x, tile + m * 16 * T::kRowBytes + at.row + (at.column ^ c << 4));
        if constexpr (C::kHalves == 1) {
#pragma unroll
          for (int n = 0; n < kN; ++n)
            Mma16816<C::kBf16>(s[m][n], x[0], x[1], x[2], x[3], q[n][c], q[n][c + 1]);
        } else {
          KeyStep<C>(s[m], x[0], x[1], q, c);
          KeyStep<C>(s[m], x[2], x[3], q, c + 1);
        }
      }
  }
}

// The queries as the B operand of K Q^T. For FlashQ, which folds the steps of each tile into them, they lie
// in shared memory, kHalves words of a chunk together.
template <class C, class T, int kN, bool = C::kAffine == Affine::kFlash>
struct KeyQueries {
  static constexpr int kSharedBytes = 0;
  uint32_t words[kN][T::kWords];
};
template <class C, class T, int kN>
struct KeyQueries<C, T, kN, true> {
  static constexpr int kWordsOfChunk = C::kHalves, kSharedBytes = 32 * kN * T::kWords * 4;
  uint32_t at;  // of this lane
  __device__ __forceinline__ uint32_t Address(int n, int c) const {
    return at + uint32_t((n * T::kChunks + c) * 32 * kWordsOfChunk * 4);
  }
  __device__ __forceinline__ void Load(uint32_t (&x)[kWordsOfChunk], int n, int c) const {
#pragma unroll
    for (int i = 0; i < kWordsOfChunk; i += 4)
      SharedWords(reinterpret_cast<uint32_t(&)[4]>(x[i]), Address(n, c) + 4 * i);
  }
};

// FlashQ: K = (code * step + base') * scale by channel. The steps go into the queries (x 2^-9: f16 holds the
// steps as multiples of 2^-24, and 2^15 is its greatest power of two), the bases give the same sum for every
// token, to start from.
template <class C, class T, int kN>
__device__ __forceinline__ void FoldSteps(uint32_t (&folded)[kN][T::kWords], float (&bias)[kN][4],
                                          uint32_t tile, const KeyQueries<C, T, kN>& queries) {
  constexpr int kH = C::kHalves;
  const int j = int(threadIdx.x % 4);
#pragma unroll
  for (int n = 0; n < kN; ++n) bias[n][0] = bias[n][1] = bias[n][2] = bias[n][3] = 0;
#pragma unroll
  for (int c = 0; c < T::kChunks; ++c) {
    uint32_t steps[kH / 2], bases[kH / 2], base[kH];
    const uint32_t at = tile + T::kCodeBytes + uint32_t(KeyChannel<C>(c, j, 0));
    SharedWords(steps, at);
    SharedWords(bases, at + T::kDim);
#pragma unroll
    for (int w = 0; w < kH / 2; ++w) bases[w] ^= 0x80808080u;
    uint32_t q[kN][kH];
#pragma unroll
    for (int n = 0; n < kN; ++n) queries.Load(q[n], n, c);
#pragma unroll
    for (int i = 0; i < kH; ++i) {
      const uint32_t pick =
          uint32_t(i % 4 | (i % 4 + 8) << 4 | (4 + (i + kH) % 4) << 8 | (12 + (i + kH) % 4) << 12);
      const __half2 step =
          __hmul2(AsHalf2(PickBytes(steps[i / 4], steps[(i + kH) / 4], pick)), __float2half2_rn(32768.0f));
#pragma unroll
      for (int n = 0; n < kN; ++n) folded[n][c * kH + i] = Bits(__hmul2(AsHalf2(q[n][i]), step));
      const uint32_t u8 = __byte_perm(bases[i / 4], bases[(i + kH) / 4], pick) & 0x00ff00ffu | 0x64006400u;
      const float unit = float(1 << C::Weight(i)) / kCodeUnit;
      base[i] = Bits(__hfma2(AsHalf2(u8), __float2half2_rn(unit), __float2half2_rn(-1152.0f * unit)));
    }
#pragma unroll
    for (int i = 0; i < kH; i += 2)
#pragma unroll
      for (int n = 0; n < kN; ++n) {
        const uint32_t* b = C::kOnGrid ? folded[n] + c * kH : q[n];
        Mma16816<false>(bias[n], base[i], base[i], base[i + 1], base[i + 1], b[i], b[i + 1]);
      }
  }
}

// Scores of a tile in units of log2, `scale` included; unseen ones are kNoScore or less once masked.
template <class C, class T, int kN>
__device__ __forceinline__ void Scores(float (&s)[T::kTokens / 16][kN][4], uint32_t tile,
                                       const KeyQueries<C, T, kN>& q, const Queries<kN>& queries,
                                       float scale) {
  constexpr int kM = T::kTokens / 16;
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int n = 0; n < kN; ++n) s[m][n][0] = s[m][n][1] = s[m][n][2] = s[m][n][3] = 0;
  if constexpr (C::kAffine == Affine::kFlash) {
    uint32_t folded[kN][T::kWords];
    float bias[kN][4];
    FoldSteps<C, T>(folded, bias, tile, q);
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int n = 0; n < kN; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) s[m][n][i] = C::kOnGrid ? bias[n][i] : bias[n][i] * (1.0f / 512);
    MultiplyKeys<C, T>(s, tile, folded);
    scale *= SharedFloat(tile + T::kCodeBytes + 2 * T::kDim) * (kCodeUnit * 512);
  } else {
    MultiplyKeys<C, T>(s, tile, q.words);
  }
  const uint32_t params = tile + T::kCodeBytes + threadIdx.x % 32 / 4 * 4;
#pragma unroll
  for (int m = 0; m < kM; ++m) {
    float2 by = {scale, scale}, least = {0, 0};
    if constexpr (C::kAffine == Affine::kToken) {
      by = __half22float2(AsHalf2(SharedWord(params + 32 * m)));
      by = {by.x * (scale * kCodeUnit), by.y * (scale * kCodeUnit)};
      least = __half22float2(AsHalf2(SharedWord(params + 2 * T::kTokens + 32 * m)));
    }
#pragma unroll
    for (int n = 0; n < kN; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        s[m][n][e] *= by.x;
        s[m][n][2 + e] *= by.y;
        if constexpr (C::kAffine == Affine::kToken) {
          s[m][n][e] += least.x * queries.sum[n][e];
          s[m][n][2 + e] += least.y * queries.sum[n][e];
        }
      }
  }
}

// kNext: from the token of h = 0 to that of h = 1.
template <int kNext = 1, int kM, int kN>
__device__ __forceinline__ void Mask(float (&s)[kM][kN][4], const Queries<kN>& queries, int start) {
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int n = 0; n < kN; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = start + 16 * m + int(threadIdx.x % 32 / 4) * (kNext == 1 ? 2 : 1) + i / 2 * kNext;
        if (at < queries.first[n][i % 2] || at > queries.last[n][i % 2]) s[m][n][i] = -INFINITY;
      }
}

// Scores become weights relative to the maximum so far, which may move. total: the sums of this lane's.
template <int kDim, int kM, int kN>
__device__ __forceinline__ void Weigh(float (&s)[kM][kN][4], State<kDim, kN>& state, float (&total)[kN][2]) {
  float next[kN][2];
  bool moved = false;
#pragma unroll
  for (int n = 0; n < kN; ++n)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float top = state.max[n][e];
#pragma unroll
      for (int m = 0; m < kM; ++m) top = fmaxf(top, fmaxf(s[m][n][e], s[m][n][2 + e]));
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2) top = fmaxf(top, __shfl_xor_sync(kAll, top, lanes));
      next[n][e] = top;
      moved |= top > state.max[n][e];
    }
  if (__any_sync(kAll, moved)) {
#pragma unroll
    for (int n = 0; n < kN; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float fix = Exp2(state.max[n][e] - next[n][e]);
        state.max[n][e] = next[n][e];
        state.sum[n][e] *= fix;
        state.least[n][e] *= fix;
#pragma unroll
        for (int m = 0; m < kDim / 16; ++m) state.o[m][n][e] *= fix, state.o[m][n][2 + e] *= fix;
      }
  }
#pragma unroll
  for (int n = 0; n < kN; ++n)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      total[n][e] = 0;
#pragma unroll
      for (int m = 0; m < kM; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h)
          total[n][e] += s[m][n][2 * h + e] = Exp2(s[m][n][2 * h + e] - state.max[n][e]);
      state.sum[n][e] += total[n][e];
    }
}

// ---- values

// Weights of a token times its scale stay below 2^15 for every scale that rows of f16 can have.
template <class C>
constexpr float kTokenBoost = C::kBits == 8 ? 64 : 4;

// What brings o of column word u to the units of V.
template <class C>
constexpr float ValueUnit(int u) {
  return C::kAffine == Affine::kToken ? kCodeUnit / float(1 << C::Weight(u % C::kHalves)) / kTokenBoost<C>
                                      : 1.0f;
}

// P as the B operand, tokens by queries. kLow: what bf16 left of it.
template <class C, bool kLow = false>
__device__ __forceinline__ uint32_t PackWeights(float x, float y) {
  if constexpr (C::kBf16) {
    __nv_bfloat162 high = __floats2bfloat162_rn(x, y);
    if (kLow) high = __floats2bfloat162_rn(x - __bfloat162float(high.x), y - __bfloat162float(high.y));
    return Transpose8x8(*reinterpret_cast<uint32_t*>(&high));
  } else {
    return Transpose8x8(Bits(__floats2half2_rn(x, y)));
  }
}

// Folds scales and minima of tokens into the weights. What was masked stays 0, whatever its parameters are.
template <bool kMasked, class T, class C, int kDim, int kN>
__device__ __forceinline__ void FoldTokens(float (&p)[T::kTokens / 16][kN][4], uint32_t tile,
                                           State<kDim, kN>& state) {
  const uint32_t params = tile + T::kCodeBytes + threadIdx.x % 32 / 4 * 4;
#pragma unroll
  for (int m = 0; m < T::kTokens / 16; ++m) {
    const float2 scale = __half22float2(AsHalf2(SharedWord(params + 32 * m)));
    const float2 least = __half22float2(AsHalf2(SharedWord(params + 2 * T::kTokens + 32 * m)));
#pragma unroll
    for (int n = 0; n < kN; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (kMasked && p[m][n][i] == 0) continue;
        state.least[n][i % 2] += p[m][n][i] * (i < 2 ? least.x : least.y);
        p[m][n][i] *= (i < 2 ? scale.x : scale.y) * kTokenBoost<C>;
      }
  }
}

template <class C, int kTiles, int kN>
__device__ __forceinline__ void ValueStep(float (&o)[kTiles][kN][4], int first, uint32_t low, uint32_t high,
                                          const uint32_t (&p)[kN][2]) {
#pragma unroll
  for (int i = 0; i < C::kHalves; i += 2)
#pragma unroll
    for (int n = 0; n < kN; ++n)
      Mma16816<C::kBf16>(o[first + i / 2][n], C::Half2(low, i), C::Half2(low, i + 1), C::Half2(high, i),
                         C::Half2(high, i + 1), p[n][0], p[n][1]);
}

// o[first ..] += V^T P^T over the channels of chunks c and c + 1 (or the only one).
template <class C, class T, int kTiles, int kN>
__device__ __forceinline__ void MultiplyValues(float (&o)[kTiles][kN][4], int first, uint32_t tile, int c,
                                               const uint32_t (&p)[T::kTokens / 16][kN][2]) {
  const auto at = T::LaneOf(int(threadIdx.x % 32));
  uint32_t x[4];
#pragma unroll
  for (int m = 0; m < T::kTokens / 16; ++m) {
    if constexpr (T::kChunks == 1) {
      if (m % 2 != 0) continue;
      LoadMatrices<true>(x, tile + m * 256 + at.row);
      ValueStep<C>(o, first, x[0], x[1], p[m]);
      ValueStep<C>(o, first, x[2], x[3], p[m + 1]);
    } else {
      LoadMatrices<true>(x, tile + m * 16 * T::kRowBytes + at.row + (at.column ^ c << 4));
      if constexpr (C::kHalves == 1) {
#pragma unroll
        for (int n = 0; n < kN; ++n)
          Mma16816<C::kBf16>(o[first][n], x[0], x[2], x[1], x[3], p[m][n][0], p[m][n][1]);
      } else {
        ValueStep<C>(o, first, x[0], x[1], p[m]);
        ValueStep<C>(o, first + C::kHalves / 2, x[2], x[3], p[m]);
      }
    }
  }
}

// Byte i of a word as a float, by the bits of 2^23 + byte.
__device__ __forceinline__ float ByteToFloat(uint32_t word, int i, float offset) {
  return __uint_as_float(__byte_perm(word, 0x4b000000u, uint32_t(0x7540 + i))) - offset;
}

// FlashQ: o += (acc * step + base' * total) * scale for the channels of chunk c. `total`: sum of the weights.
template <class C, class T, int kTiles, int kDim, int kN>
__device__ __forceinline__ void FoldChannels(State<kDim, kN>& state, const float (&acc)[kTiles][kN][4],
                                             int first, uint32_t tile, int c, const float (&total)[kN][2],
                                             float scale) {
  constexpr int kH = C::kHalves;
  const uint32_t at = tile + T::kCodeBytes + uint32_t(ValueChannel<C>(c * kH, int(threadIdx.x % 32 / 4)));
#pragma unroll
  for (int w = 0; w < kH / 4; ++w) {
    const uint32_t steps = SharedWord(at + 4 * w), bases = SharedWord(at + T::kDim + 4 * w) ^ 0x80808080u;
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      const int i = 4 * w + b, u = c * kH + i;
      const float unit = kCodeUnit / float(1 << C::Weight(i));  // acc counts 1 / unit
      const float step = ByteToFloat(steps, b, 8388608.0f) * (scale * unit);
      const float base = ByteToFloat(bases, b, 8388736.0f);
#pragma unroll
      for (int n = 0; n < kN; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& o = state.o[u / 2][n][u % 2 * 2 + e];
          const float sum = acc[first + i / 2][n][u % 2 * 2 + e];
          if constexpr (C::kOnGrid)
            o = fmaf(fmaf(base, total[n][e] / unit, sum), step, o);
          else
            o = fmaf(sum, step, fmaf(base, total[n][e] * scale, o));
        }
    }
  }
}

// o += P V of a tile. p: weights, overwritten; total: as Weigh gave it, overwritten.
template <class C, class T, int kDim, int kN>
__device__ __forceinline__ void Values(float (&p)[T::kTokens / 16][kN][4], float (&total)[kN][2],
                                       uint32_t tile, State<kDim, kN>& state, bool masked) {
  constexpr int kM = T::kTokens / 16, kStep = T::kChunks == 1 ? 1 : 2;
  if constexpr (C::kAffine == Affine::kToken) {
    if (masked)
      FoldTokens<true, T, C>(p, tile, state);
    else
      FoldTokens<false, T, C>(p, tile, state);
  }
  uint32_t packed[kM][kN][2];
#pragma unroll
  for (int n = 0; n < kN; ++n) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      packed[m][n][0] = PackWeights<C>(p[m][n][0], p[m][n][1]);
      packed[m][n][1] = PackWeights<C>(p[m][n][2], p[m][n][3]);
    }
    if constexpr (C::kAffine == Affine::kFlash) {
#pragma unroll
      for (int e = 0; e < 2; ++e) total[n][e] = SumGroups(total[n][e]);
    }
  }
  if constexpr (C::kAffine == Affine::kFlash) {
    const float scale = SharedFloat(tile + T::kCodeBytes + 2 * T::kDim);
#pragma unroll
    for (int c = 0; c < T::kChunks; c += kStep) {
      float acc[kStep * C::kHalves / 2][kN][4] = {};
      MultiplyValues<C, T>(acc, 0, tile, c, packed);
#pragma unroll
      for (int next = 0; next < kStep; ++next)
        FoldChannels<C, T>(state, acc, next * C::kHalves / 2, tile, c + next, total, scale);
    }
  } else {
#pragma unroll
    for (int c = 0; c < T::kChunks; c += kStep)
      MultiplyValues<C, T>(state.o, c * C::kHalves / 2, tile, c, packed);
  }
  if constexpr (C::kBf16) {
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int n = 0; n < kN; ++n) {
        packed[m][n][0] = PackWeights<C, true>(p[m][n][0], p[m][n][1]);
        packed[m][n][1] = PackWeights<C, true>(p[m][n][2], p[m][n][3]);
      }
#pragma unroll
    for (int c = 0; c < T::kChunks; c += kStep)
      MultiplyValues<C, T>(state.o, c * C::kHalves / 2, tile, c, packed);
  }
}

}  // namespace nibble::cuda::decode
