// SPDX-License-Identifier: Apache-2.0
// Floor 2. Four-bit codes in 32-bit words, and the integer instructions that turn four or eight of them at a
// time into bytes or halves, bit for bit: QServe's multiplication and byte sum (arXiv 2405.04532, section
// 5.2.3), LiquidGEMM's multiplication and XOR (LiquidQuant), and the AND-OR of KV4. What GPU kernels do in
// registers; device code may replace a function here by the instruction it models, nothing else.
#pragma once
#include <cstdint>

#include "base/half.h"
#include "base/macros.h"

namespace nibble::weight {

inline constexpr uint32_t kEveryByte = 0x01010101;

// The PTX instruction lop3: a bit of the result is the entry of `table` at (a, b, c).
NIBBLE_HD uint32_t Lop3(uint32_t a, uint32_t b, uint32_t c, int table) {
  uint32_t out = 0;
  for (int i = 0; i < 8; ++i)
    if (table >> i & 1) out |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return out;
}
inline constexpr int kAndOr = (0xF0 & 0xCC) | 0xAA;  // (a & b) | c

// vadd4: byte by byte, modulo 256.
NIBBLE_HD uint32_t AddBytes(uint32_t a, uint32_t b) {
  return ((a & 0x7f7f7f7f) + (b & 0x7f7f7f7f)) ^ ((a ^ b) & 0x80808080);
}

// Codes u of four inputs, one a byte, to signed bytes (u - z) * s2. u * s2 <= 240 never carries into the next
// byte, which is why the zero point comes after the multiplication.
NIBBLE_HD uint32_t ProgressiveBytes(uint32_t codes, int s2, int z) {
  return AddBytes(codes * uint32_t(s2), uint32_t(uint8_t(-z * s2)) * kEveryByte);
}

// LiquidQuant: level 2 of a group of level-1 codes lo..hi within +-119. A code u stands for u * scale + lo;
// what is stored is offset = lo + 128, so that u * scale + offset is a byte, 9 to 254, and flipping its top
// bit takes the 128 off. The scale is rounded, as published: a range of 22 is cut by 7 at the top.
struct LiquidParams {
  int scale, offset;
};
NIBBLE_HD LiquidParams FitLiquid(int lo, int hi) {
  const int steps = RoundToInt(float(hi - lo) / 15.0f);
  return {steps > 0 ? steps : 1, lo + 128};
}
NIBBLE_HD int LiquidCode(int q, LiquidParams p) {
  const int u = RoundToInt(float(q + 128 - p.offset) / float(p.scale));
  return u < 15 ? u : 15;
}
NIBBLE_HD uint32_t LiquidSums(uint32_t codes, LiquidParams p) {  // one IMAD
  return codes * uint32_t(p.scale) + uint32_t(p.offset) * kEveryByte;
}
NIBBLE_HD uint32_t LiquidBytes(uint32_t codes, LiquidParams p) { return LiquidSums(codes, p) ^ 0x80808080; }

// Eight nibbles of a word, e0 lowest, as pairs of halves (low half first): 1024 + e0, 1024 + e4 | 1024 +
// 16 e1, 1024 + 16 e5 | 1024 + e2, 1024 + e6 | 1024 + 16 e3, 1024 + 16 e7. 0x6400 is the half 1024, whose
// last bit counts 1.
struct HalfPairs {
  uint32_t pair[4];
};
NIBBLE_HD HalfPairs NibblesToHalves(uint32_t word) {
  constexpr uint32_t kLow = 0x000F000F, kHigh = 0x00F000F0, k1024 = 0x64006400;
  return {{Lop3(word, kLow, k1024, kAndOr), Lop3(word, kHigh, k1024, kAndOr),
           Lop3(word >> 8, kLow, k1024, kAndOr), Lop3(word >> 8, kHigh, k1024, kAndOr)}};
}
// The code in half `side` (0: low) of pair `i`: HSUB2 by 1024, or HFMA2 by 1/16 and -64. Both are exact.
NIBBLE_HD float HalfPairValue(const HalfPairs& halves, int i, int side) {
  const float x = HalfToFloat(uint16_t(halves.pair[i] >> (16 * side)));
  return i % 2 == 0 ? x - 1024 : x / 16 - 64;
}

}  // namespace nibble::weight
