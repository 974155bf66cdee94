// SPDX-License-Identifier: Apache-2.0
// Floor 4. Every rounding that the papers' arithmetics contain, on doubles: to integers, to 16- and 8-bit
// floats, and the truncating FP22 accumulator of the FP8 tensor cores.
#pragma once
#include <cstdint>

namespace nibble::ref {

enum class Rounding {
  kEven,  // nearest, ties to even: cvt.rni, torch.round, and this engine's formats
  kAway,  // nearest, ties away from zero: std::round, the released Triton quantizers
};
double Round(double x, Rounding rounding);
int RoundToCode(double x, Rounding rounding, int lo, int hi);  // clamped; NaN gives the code nearest 0

// What a scale becomes when it is stored. Codes are always made with the stored scale.
enum class Storage { kExact, kF32, kF16 };
double Store(double x, Storage storage);

double RoundToF32(double x);
double RoundToF16(double x);  // 65520 and above become infinity

// FP8 of the OCP standard. Encoding saturates to the largest finite value (satfinite), keeps subnormals and
// rounds ties to even. NaN becomes 0x7f.
enum class Fp8 { kE4M3, kE5M2 };
double MaxFp8(Fp8 format);  // 448, 57344
uint8_t EncodeFp8(Fp8 format, double x);
double DecodeFp8(Fp8 format, uint8_t code);
double RoundToFp8(Fp8 format, double x);  // DecodeFp8(EncodeFp8(x)); a NaN stays

// The accumulator of the FP8 tensor cores before Blackwell: 1 + 8 + 13 bits, toward zero
// (SageAttention2, arXiv 2411.10958).
double TruncateToFp22(double x);

}  // namespace nibble::ref
