// SPDX-License-Identifier: Apache-2.0
// Which matrix element sits in which register of which thread, as functions (host and device).
#pragma once
#include <cstdint>
#include <vector>

namespace nibble::hopper {

struct Element {
  int row, column;
};

// Register `r` (0..N/2-1) of thread `t` (0..127) of a 64xN accumulator, f32 or s32.
__host__ __device__ constexpr Element accumulator_element(int t, int r) {
  return {16 * (t / 32) + t % 32 / 4 + 8 * (r / 2 % 2), 8 * (r / 4) + 2 * (t % 4) + r % 2};
}
// Byte `b` of register `r` (0..3) of the 64x32 8-bit A fragment; column is k.
__host__ __device__ constexpr Element a8_element(int t, int r, int b) {
  return {16 * (t / 32) + t % 32 / 4 + 8 * (r % 2), 16 * (r / 2) + 4 * (t % 4) + b};
}
// Half `h` of register `r` (0..3) of the 64x16 16-bit A fragment.
__host__ __device__ constexpr Element a16_element(int t, int r, int h) {
  return {16 * (t / 32) + t % 32 / 4 + 8 * (r % 2), 8 * (r / 2) + 2 * (t % 4) + h};
}

// Packing accumulator registers 16c+{0,1,4,5}, {2,3,6,7}, {8,9,12,13}, {10,11,14,15} as the bytes of A
// registers 0..3 puts accumulator column token_of(k) at position k of the next product's K. It permutes
// within 32 columns only.
__host__ __device__ constexpr int token_of(int k) {
  return (k & ~31) + 16 * (k % 32 / 16) + 8 * (k % 4 / 2) + 2 * (k % 16 / 4) + k % 2;
}

// Packs 4-bit weights (values 0..15, one per byte, row-major rows x k; both multiples of 64) for u4_to_s8:
// each 64x64 block is 2048 contiguous bytes, 16 for each of 128 threads, blocks of one row group follow each
// other along k. Word i, byte b holds a8_element(t, i, b) of k 0..31 in its low nibble and of k 32..63 in its
// high nibble.
inline std::vector<uint32_t> pack_u4(const uint8_t* weights, int rows, int k) {
  std::vector<uint32_t> packed;
  packed.reserve(size_t(rows) * k / 8);
  for (int r0 = 0; r0 < rows; r0 += 64)
    for (int k0 = 0; k0 < k; k0 += 64)
      for (int t = 0; t < 128; ++t)
        for (int i = 0; i < 4; ++i) {
          uint32_t word = 0;
          for (int b = 0; b < 4; ++b) {
            const Element e = a8_element(t, i, b);
            const uint8_t* at = weights + size_t(r0 + e.row) * k + k0 + e.column;
            word |= uint32_t(at[0] | at[32] << 4) << (8 * b);
          }
          packed.push_back(word);
        }
  return packed;
}

// Four packed u4 -> four packed s8: u * scale + offset - 128. Needs scale * 15 + offset <= 255, so no byte
// carries into the next; offset4 is the offset in all four bytes. One multiply-add and one XOR.
__host__ __device__ constexpr uint32_t u4_to_s8(uint32_t nibbles, uint32_t scale, uint32_t offset4) {
  return (nibbles * scale + offset4) ^ 0x80808080u;
}

}  // namespace nibble::hopper
