// SPDX-License-Identifier: Apache-2.0
// SAS (arXiv 2412.08585, section 3.3) in f16, two values a register, as functions of z, which is (max - score
// + 1/2) / 8 cut to 0 .. 1: a power of e from a table of bytes times a cubic of the fraction, 0 from the
// threshold on. The table is eight f16 in four registers, of which PRMT picks four bytes at once.
#pragma once
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>

#include "kernels/cuda/sm90/ptx.cuh"
#include "recipe/arithmetic.h"

namespace nibble::hopper {

inline constexpr float kSasStep = 1.0f / 8,
                       kSasStart = 1.0f / 16;  // z of a distance: distance * step + start

NIBBLE_DEVICE uint32_t half2_fma(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
NIBBLE_DEVICE uint32_t half2_add(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("add.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
NIBBLE_DEVICE uint32_t half2_sub(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
NIBBLE_DEVICE uint32_t half2_mul(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
NIBBLE_DEVICE uint32_t to_half2(float low, float high) {
  uint32_t d;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  return d;
}
NIBBLE_DEVICE float2 from_half2(uint32_t x) { return __half22float2(reinterpret_cast<const __half2&>(x)); }

// Bytes of (a, b) by nibbles of `select`; 8 and more: the sign of byte nibble - 8, eight times. (__byte_perm
// passes over that bit.)
NIBBLE_DEVICE uint32_t pick_bytes(uint32_t a, uint32_t b, uint32_t select) {
  uint32_t d;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(select));
  return d;
}

// What a kernel is given of SAS: e^(1 - i) for i = 0 .. 7 by bytes, 0 from the threshold on, and the
// polynomial of fraction - 1/2, each coefficient twice. (i = 0 is there for a distance just below 0.) Made by
// the host.
struct SasTable {
  uint32_t low[2], high[2], c[4];
};

inline SasTable MakeSasTable(const SasPolynomial& p, int threshold) {
  SasTable t{};
  const auto bits = [](float x) { return uint32_t(__half_as_ushort(__float2half_rn(x))); };
  for (int i = 0; i <= -threshold; ++i) {
    const uint32_t power = bits(std::exp(float(1 - i)));
    t.low[i / 4] |= (power & 255) << 8 * (i % 4);
    t.high[i / 4] |= (power >> 8) << 8 * (i % 4);
  }
  const float c[4] = {p.c0 + .5f * p.c1 + .25f * p.c2 + .125f * p.c3, p.c1 + p.c2 + .75f * p.c3,
                      p.c2 + 1.5f * p.c3, p.c3};
  for (int i = 0; i < 4; ++i) t.c[i] = bits(c[i]) * 0x10001u;
  return t;
}

// SAS of pairs, four at a time.
NIBBLE_DEVICE void SasOfPairs(const SasTable& t, const uint32_t (&z)[4], uint32_t (&p)[4]) {
  constexpr uint32_t kEight = 0x48004800, kWhole = 0x66006600;  // 1536, where f16 are whole numbers
  uint32_t whole[4], cubic[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    whole[i] = half2_fma(z[i], kEight, kWhole);
    const uint32_t u = half2_fma(z[i], kEight, half2_sub(kWhole, whole[i]));
    cubic[i] = half2_fma(half2_fma(half2_fma(t.c[3], u, t.c[2]), u, t.c[1]), u, t.c[0]);
  }
  // Low bytes of `whole` are 0 .. 8, nibbles that select; 8 picks the sign of entry 0, which is 0.
  const uint32_t select =
      pick_bytes(whole[0], whole[1], 0x6420) + (pick_bytes(whole[2], whole[3], 0x6420) << 4);
#pragma unroll
  for (int i = 0; i < 2; ++i) {  // halves 0 of pairs i and i + 2, then halves 1
    const uint32_t low = pick_bytes(t.low[0], t.low[1], select >> 16 * i),
                   high = pick_bytes(t.high[0], t.high[1], select >> 16 * i);
    p[i] = half2_mul(cubic[i], pick_bytes(low, high, 0x6240));
    p[i + 2] = half2_mul(cubic[i + 2], pick_bytes(low, high, 0x7351));
  }
}

}  // namespace nibble::hopper
