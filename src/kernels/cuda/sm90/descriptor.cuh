// SPDX-License-Identifier: Apache-2.0
// Shared-memory matrix descriptors for wgmma: 128-byte swizzle, and the 64-byte one of
// k_major_line.
//
// Bits  0..13  start address / 16
//      16..29  leading byte offset (LBO) / 16
//      32..45  stride byte offset (SBO) / 16
//      49..51  base offset: 0 when every 1024-byte atom is 1024-aligned
//      62..63  swizzle: 1 = 128 bytes
// The swizzle XORs address bits 4..6 with bits 7..9: inside an atom of 8 lines of 128 bytes, the 16-byte
// chunk c of line r lies at chunk c ^ r. TMA with SWIZZLE_128B writes this, so neither side computes it.
#pragma once
#include <cstdint>

#include "kernels/cuda/sm90/ptx.cuh"

namespace nibble::hopper {

inline constexpr int kSwizzleBytes = 128;             // length of a swizzled line
inline constexpr int kAtomBytes = 8 * kSwizzleBytes;  // 8 lines; tiles must start at multiples of this
inline constexpr uint64_t kStepK = 32 / 16;  // one wgmma step along K (32 bytes) inside a K-major line

NIBBLE_DEVICE uint64_t make_descriptor(const void* tile, uint32_t leading_bytes, uint32_t stride_bytes) {
  return static_cast<uint64_t>((shared_address(tile) & 0x3FFFF) >> 4) |
         static_cast<uint64_t>(leading_bytes >> 4) << 16 | static_cast<uint64_t>(stride_bytes >> 4) << 32 |
         uint64_t{1} << 62;
}

// K-major: a tile of R rows (rows of A, or of B = its N) whose line is 128 bytes of K (128 8-bit or 64 16-bit
// values). SBO = 1024: from one group of 8 rows to the next. LBO is not used: a step never leaves the line.
// Step s along K: descriptor + s * kStepK, s = 0..3. Row 64 of the tile: descriptor + 64 * 128 / 16.
NIBBLE_DEVICE uint64_t k_major(const void* tile) { return make_descriptor(tile, 16, kAtomBytes); }

// Its two halves: the low one moves with the tile (in units of 16 bytes), the high one never changes.
NIBBLE_DEVICE uint32_t k_major_low(const void* tile) { return static_cast<uint32_t>(k_major(tile)); }
NIBBLE_DEVICE uint64_t k_major_of(uint32_t low) { return low | uint64_t{kAtomBytes >> 4 | 1u << 30} << 32; }

// The same with lines of kLine bytes, 64 or 128, in the swizzle of that length: with 64, SBO = 512, and bits
// 62
// .. 63 are 2.
template <int kLine>
NIBBLE_DEVICE uint64_t k_major_line(const void* tile) {
  if constexpr (kLine == 128) return k_major(tile);
  static_assert(kLine == 64 || kLine == 128);
  return static_cast<uint64_t>((shared_address(tile) & 0x3FFFF) >> 4) | uint64_t{1} << 16 |
         uint64_t{512 >> 4} << 32 | uint64_t{2} << 62;
}

// MN-major (16-bit B only, with the transposing wgmma): lines are 64 consecutive n of one k. A panel is 64 n
// wide and `k_rows` lines tall; panels for n = 64.. follow each other. SBO = 1024: from one group of 8 k to
// the next. LBO = k_rows * 128: from one panel to the next. Step s along K (16 lines): + s * kStepMn.
NIBBLE_DEVICE uint64_t mn_major(const void* tile, int k_rows) {
  return make_descriptor(tile, k_rows * kSwizzleBytes, kAtomBytes);
}
inline constexpr uint64_t kStepMn = 16 * kSwizzleBytes / 16;

}  // namespace nibble::hopper
