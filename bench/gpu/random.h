// SPDX-License-Identifier: Apache-2.0
// Random data, the same on host and device.
#pragma once
#include <cstddef>
#include <cstdint>

#include "base/macros.h"

namespace nibble::gpu {

// A well-mixed 32-bit value of an index: no period that a layout mistake could hide behind.
NIBBLE_HD uint32_t Mix(uint32_t i, uint32_t seed) {
  uint32_t x = i * 0x9E3779B9u + seed * 0x85EBCA6Bu + 0x27D4EB2Fu;
  x = (x ^ x >> 16) * 0x7FEB352Du;
  x = (x ^ x >> 15) * 0x846CA68Bu;
  return x ^ x >> 16;
}
// Roughly normal, of variance 1.
NIBBLE_HD float Normal(uint32_t i, uint32_t seed) {
  float sum = 0;
  for (uint32_t part = 0; part < 4; ++part) sum += float(Mix(i, seed * 4 + part) >> 8) * (1.0f / 16777216.0f);
  return (sum - 2.0f) * 1.7320508f;
}
// Fills device memory with pseudo-random bytes.
void FillRandom(void* data, size_t bytes, uint32_t seed);
// Fills device memory with normal numbers in bf16 or f16, which are also finite as f32. Uses seed and seed
// + 1.
void FillNormal(void* data, size_t bytes, bool bf16, uint32_t seed);

}  // namespace nibble::gpu
