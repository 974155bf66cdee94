// SPDX-License-Identifier: Apache-2.0
// Floor 2. Codecs turboquant4, turboquant3, turboquant2: TurboQuant (arXiv 2504.19874) in the form that
// engines run. A row is rotated, so that its channels look like samples of one normal distribution whatever
// they were, and each is rounded to the nearest level of the Lloyd-Max quantizer of that distribution. The
// rotation is a Walsh-Hadamard transform with fixed signs; no second stage (QJL): its noise costs more than
// its bias saves once a softmax follows. Decoded rows keep the norm of the row. Page: codes [token][head_dim
// * bits / 8], low bits first, then f16 scale [token]. docs/formats/kv_pages.md.
#pragma once
#include "quant/kv/codec.h"
#include "quant/kv/low_bits.h"

namespace nibble::kv {

// The Lloyd-Max quantizer of the normal distribution of deviation 1: levels of its positive half, ascending.
template <int kBits>
struct LloydMax {
  static constexpr int kHalf = 1 << (kBits - 1);

  NIBBLE_HD static float PositiveLevel(int i) {
    constexpr float kTwo[] = {.4527800f, 1.5104176f};
    constexpr float kThree[] = {.2450942f, .7560053f, 1.3439093f, 2.1519457f};
    constexpr float kFour[] = {.1283950f,  .3880483f,  .6567591f,  .9423405f,
                               1.2562312f, 1.6180464f, 2.0690172f, 2.7325896f};
    return kBits == 2 ? kTwo[i] : (kBits == 3 ? kThree[i] : kFour[i]);
  }
  // Codes ascend with the level.
  NIBBLE_HD static float Level(int code) {
    return code >= kHalf ? PositiveLevel(code - kHalf) : -PositiveLevel(kHalf - 1 - code);
  }
  // Of the nearest level; half way between two, the upper one.
  NIBBLE_HD static int Code(float y) {
    int code = 0;
    for (int i = 1; i < 2 * kHalf; ++i) code += y >= 0.5f * (Level(i - 1) + Level(i));
    return code;
  }
};

// In place and not normalised: x becomes H x, where H is the Hadamard matrix in its natural order. n a power
// of two. Sums and differences only, in this order, so that every vectorization gives the same bits.
NIBBLE_HD void WalshHadamard(float* x, int n) {
  for (int stride = 1; stride < n; stride *= 2)
    for (int begin = 0; begin < n; begin += 2 * stride)
      for (int i = begin; i < begin + stride; ++i) {
        const float a = x[i], b = x[i + stride];
        x[i] = a + b;
        x[i + stride] = a - b;
      }
}

// Heads that are no power of two are rotated in blocks, the largest power of two first: 80 = 64 + 16.
NIBBLE_HD int RotationBlock(int head_dim, int begin) {
  int n = 8;
  while (2 * n <= head_dim - begin) n *= 2;
  return n;
}

// +1 or -1 by a fixed hash of the channel. Without signs a constant row would fall on one channel.
NIBBLE_HD float RotationSign(int channel) {
  uint32_t h = (uint32_t(channel) + 1) * 0x85ebca6bu;
  h = (h ^ h >> 13) * 0xc2b2ae35u;
  return h >> 31 != 0 ? -1.0f : 1.0f;
}

template <int kCodeBits>
struct TurboQuant {
  static constexpr DType kRaw = DType::kF16;
  static constexpr int kBits = kCodeBits;
  using Quantizer = LloydMax<kBits>;
  // The stored scale is (norm of the row) / (norm of its levels) / 8. The eighth keeps it within f16 for
  // every row f16 can hold: the quotient of norms is at most 6.5 times the row's root mean square.
  static constexpr float kScaleUnit = 8.0f;

  NIBBLE_HD static int ScaleOffset(PageShape s) { return CodeBytes<kBits>(s.tokens * s.head_dim); }
  NIBBLE_HD static int PageBytes(PageShape s) { return (ScaleOffset(s) + 2 * s.tokens + 3) / 4 * 4; }

  // What a transformed level of a block of n channels is multiplied with, the sign apart.
  NIBBLE_HD static float BlockFactor(PageShape s, const std::byte* page, int token, int n) {
    return HalfToFloat(LoadU16(page + ScaleOffset(s) + 2 * token)) * (kScaleUnit / __builtin_sqrtf(float(n)));
  }

  // A row with a NaN, an infinity or a value beyond f16 gets a NaN scale and codes 0, and decodes as NaN.
  NIBBLE_HD static void EncodeRow(PageShape s, const float* x, int token, std::byte* page) {
    double squares = 0, level_squares = 0;
    bool fits = true;
    for (int i = 0; i < s.head_dim; ++i) {
      fits &= (x[i] >= -kHalfMax) & (x[i] <= kHalfMax);
      squares += double(x[i]) * double(x[i]);
    }
    uint16_t scale = 0x7e00;
    if (fits) {
      const float norm = float(__builtin_sqrt(squares));
      float y[kMaxHeadDim] = {};
      for (int i = 0; i < s.head_dim; ++i) y[i] = RotationSign(i) * x[i];
      for (int begin = 0, n; begin < s.head_dim; begin += n) {
        n = RotationBlock(s.head_dim, begin);
        WalshHadamard(y + begin, n);
        // To a row of norm sqrt(head_dim): the deviation of a channel is 1.
        const float to_unit = norm > 0 ? __builtin_sqrtf(float(s.head_dim) / float(n)) / norm : 0.0f;
        for (int i = begin; i < begin + n; ++i) {
          const int code = Quantizer::Code(y[i] * to_unit);
          StoreCode<kBits>(page, token * s.head_dim + i, code);
          level_squares += double(Quantizer::Level(code)) * double(Quantizer::Level(code));
        }
      }
      scale = FloatToHalf(norm / float(__builtin_sqrt(level_squares)) / kScaleUnit);
    }
    StoreU16(page + ScaleOffset(s) + 2 * token, scale);
  }
  NIBBLE_HD static int Parts(PageShape s) { return s.tokens; }
  NIBBLE_HD static Nothing Prepare(PageShape, const float*) { return {}; }
  NIBBLE_HD static void EncodePart(PageShape s, Nothing, const float* rows, int token, std::byte* page) {
    const int row_bytes = CodeBytes<kBits>(s.head_dim), end = ScaleOffset(s) + 2 * s.tokens;
    memset(page + token * row_bytes, 0, size_t(row_bytes));
    if (token == 0) memset(page + end, 0, size_t(PageBytes(s) - end));
    EncodeRow(s, rows + token * s.head_dim, token, page);
  }
  NIBBLE_HD static void EncodePage(PageShape s, const float* rows, std::byte* page) {
    EncodeParts<TurboQuant>(s, rows, page);
  }

  NIBBLE_HD static void DecodeRow(PageShape s, const std::byte* page, int token, float* out) {
    for (int begin = 0, n; begin < s.head_dim; begin += n) {
      n = RotationBlock(s.head_dim, begin);
      for (int i = begin; i < begin + n; ++i)
        out[i] = Quantizer::Level(LoadCode<kBits>(page, token * s.head_dim + i));
      WalshHadamard(out + begin, n);
      const float factor = BlockFactor(s, page, token, n);
      for (int i = begin; i < begin + n; ++i) out[i] *= RotationSign(i) * factor;
    }
  }
  NIBBLE_HD static void Decode8(PageShape s, const std::byte* page, int token, int channel, float* out8) {
    float row[kMaxHeadDim];
    DecodeRow(s, page, token, row);
    memcpy(out8, row + channel, 32);
  }
};

struct TurboQuant4 : TurboQuant<4> {
  static constexpr CodecId kId = CodecId::kTurboQuant4;
  static constexpr const char* kName = "turboquant4";
};
struct TurboQuant3 : TurboQuant<3> {
  static constexpr CodecId kId = CodecId::kTurboQuant3;
  static constexpr const char* kName = "turboquant3";
};
struct TurboQuant2 : TurboQuant<2> {
  static constexpr CodecId kId = CodecId::kTurboQuant2;
  static constexpr const char* kName = "turboquant2";
};

}  // namespace nibble::kv
