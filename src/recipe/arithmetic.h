// SPDX-License-Identifier: Apache-2.0
// Floor 3. How scores, weights and outputs of attention are computed. The page rule holds for all of it: the
// tile of a query's own page is computed on its raw rows in f32 (16 bits on a GPU), INT8, INT4 and FP8
// arithmetic begins with the sealed pages. One page of 64 tokens is one K block of SageAttention and one
// block of FlashQ, and every query row is quantized by itself: a scale shared by rows would depend on how the
// prompt was cut.
#pragma once
#include <cstdint>

#include "base/macros.h"

namespace nibble {

// Q K^T. K of a sealed page is quantized symmetrically to INT8 (+-127) or INT4 (+-7) with one scale a page
// (block) or four (thread: token t belongs to group t % 8 / 2; SageAttention 2, section 3.2).
// Pages of a FlashQ codec give their INT8 codes as they are.
enum class QkArith : uint8_t { kF32, kBF16, kInt8Block, kInt8Thread, kInt4Thread };

// What is taken off before Q and K are quantized; exact in real arithmetic (SageAttention 2, section 3.1).
// kK: the mean of K; kQK: also a mean of Q, whose product with K is added back.
enum class Smooth : uint8_t { kNone, kK, kQK };

// kSas: TurboAttention's approximation exp(x) ~ LUT[int] * cubic(fraction), 0 below the threshold. kSas2: the
// same with a threshold from `eps` and the length, and a cubic that meets exp at both ends. Both apply to
// every tile, the raw one included; what a new maximum scales the past by is exp itself (SAS would erase it).
// kAuto: the paper's cubic under kSas, kEndpoint under kSas2. Weights below e^-16 count as no mass.
enum class SoftmaxKind : uint8_t { kExact, kSas, kSas2 };
enum class SasCubic : uint8_t { kAuto, kPaper, kMinimax, kEndpoint, kBase2 };
struct SasParams {
  float threshold = -6;  // kSas
  float eps = 1e-3f;     // kSas2: the mass that may be dropped: threshold = max(-16, ln(eps / length))
  SasCubic cubic = SasCubic::kAuto;
  bool operator==(const SasParams&) const = default;
};

// P V. kFp8: P and V in E4M3, V by channel and page, products summed in the tensor core's FP22 over a tile,
// tiles in f32. kFp8F16: V to +-2.25, sums of a tile in f16 (SageAttention 2++). kF16: P and V in f16, sums
// of a tile in f16 (SageAttention 1). kInt8: P to +-119 by row and page, V to INT8 by page, or the codes of a
// FlashQ page as they are (TurboAttention).
enum class PvArith : uint8_t { kF32, kBF16, kFp8, kFp8F16, kF16, kInt8 };

struct Arithmetic {
  QkArith qk = QkArith::kF32;
  Smooth smooth = Smooth::kNone;
  SoftmaxKind softmax = SoftmaxKind::kExact;
  SasParams sas{};
  PvArith pv = PvArith::kF32;
  bool operator==(const Arithmetic&) const = default;
};

// SAS's polynomial c0 + c1 t + c2 t^2 + c3 t^3 of the fraction t: e^-t, or 2^-t for kBase2.
struct SasPolynomial {
  float c0, c1, c2, c3;
  bool base2;
};
constexpr SasPolynomial PolynomialOf(const Arithmetic& a) {
  switch (a.sas.cubic) {
    case SasCubic::kMinimax:
      return {.99979958f, -.99325162f, .46412865f, -.10299759f, false};
    case SasCubic::kBase2:
      return {.99992522f, -.69102071f, .23007036f, -.03901226f, true};
    case SasCubic::kAuto:
      if (a.softmax == SoftmaxKind::kSas2) break;
      [[fallthrough]];
    case SasCubic::kPaper:
      return {.9996f, -.9922f, .4626f, -.1025f, false};
    case SasCubic::kEndpoint:
      break;
  }
  return {1, -.99368469f, .46282269f, -.10125856f, false};
}

// max(-16, ln(eps / length)): were all other tokens just below it, they would hold a share of eps.
NIBBLE_HD float Sas2Threshold(float eps, int64_t length) {
  const double t = __builtin_log(double(eps) / double(length));
  return t > -16 ? float(t) : -16.0f;
}

constexpr bool IsInteger(QkArith qk) { return qk >= QkArith::kInt8Block; }
constexpr bool IsFloat(PvArith pv) { return pv <= PvArith::kBF16; }

}  // namespace nibble
