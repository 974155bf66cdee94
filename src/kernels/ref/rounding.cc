// SPDX-License-Identifier: Apache-2.0
#include "kernels/ref/rounding.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace nibble::ref {
namespace {

// Nearest even with `bits` bits after the leading one; below 2^min_exponent the spacing stays.
double RoundMantissa(double x, int bits, int min_exponent) {
  if (x == 0 || !std::isfinite(x)) return x;
  const int exponent = std::max(std::ilogb(x), min_exponent);
  const double unit = std::ldexp(1.0, exponent - bits);
  return std::nearbyint(x / unit) * unit;
}

struct Fp8Shape {
  int mantissa_bits, bias;
};
Fp8Shape ShapeOf(Fp8 format) { return format == Fp8::kE4M3 ? Fp8Shape{3, 7} : Fp8Shape{2, 15}; }

}  // namespace

double Round(double x, Rounding rounding) {
  return rounding == Rounding::kEven ? std::nearbyint(x) : std::round(x);
}

int RoundToCode(double x, Rounding rounding, int lo, int hi) {
  if (std::isnan(x)) return std::clamp(0, lo, hi);
  return int(std::clamp(Round(x, rounding), double(lo), double(hi)));
}

double RoundToF32(double x) { return double(float(x)); }

double RoundToF16(double x) {
  const double y = RoundMantissa(x, 10, -14);
  return std::abs(y) > 65504.0 ? std::copysign(INFINITY, x) : y;
}

double Store(double x, Storage storage) {
  switch (storage) {
    case Storage::kExact:
      return x;
    case Storage::kF32:
      return RoundToF32(x);
    case Storage::kF16:
      return RoundToF16(x);
  }
  return x;
}

double MaxFp8(Fp8 format) { return format == Fp8::kE4M3 ? 448.0 : 57344.0; }

double RoundToFp8(Fp8 format, double x) {
  if (std::isnan(x)) return x;
  const Fp8Shape shape = ShapeOf(format);
  const double max = MaxFp8(format), y = std::clamp(x, -max, max);
  return RoundMantissa(y, shape.mantissa_bits, 1 - shape.bias);
}

uint8_t EncodeFp8(Fp8 format, double x) {
  if (std::isnan(x)) return 0x7f;
  const Fp8Shape shape = ShapeOf(format);
  const double y = std::abs(RoundToFp8(format, x));
  const int sign = std::signbit(x) ? 0x80 : 0;
  const double least_normal = std::ldexp(1.0, 1 - shape.bias);
  if (y < least_normal) return uint8_t(sign | int(std::ldexp(y, shape.mantissa_bits + shape.bias - 1)));
  const int exponent = std::ilogb(y);
  const int mantissa = int(std::ldexp(y, shape.mantissa_bits - exponent)) - (1 << shape.mantissa_bits);
  return uint8_t(sign | (exponent + shape.bias) << shape.mantissa_bits | mantissa);
}

double DecodeFp8(Fp8 format, uint8_t code) {
  const Fp8Shape shape = ShapeOf(format);
  const int magnitude = code & 0x7f, mantissa = magnitude & ((1 << shape.mantissa_bits) - 1);
  const int field = magnitude >> shape.mantissa_bits;
  if (format == Fp8::kE4M3 && magnitude == 0x7f) return std::numeric_limits<double>::quiet_NaN();
  if (format == Fp8::kE5M2 && field == 31)
    return mantissa != 0 ? std::numeric_limits<double>::quiet_NaN() : (code & 0x80 ? -INFINITY : INFINITY);
  const int whole = field == 0 ? mantissa : mantissa + (1 << shape.mantissa_bits);
  const double y = std::ldexp(double(whole), std::max(field, 1) - shape.bias - shape.mantissa_bits);
  return code & 0x80 ? -y : y;
}

double TruncateToFp22(double x) {
  if (x == 0 || !std::isfinite(x)) return x;
  const double unit = std::ldexp(1.0, std::max(std::ilogb(x), -126) - 13);
  return std::trunc(x / unit) * unit;
}

}  // namespace nibble::ref
