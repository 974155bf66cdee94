// SPDX-License-Identifier: Apache-2.0
// Floor 4. The compute layout of integer weights on Hopper, to the byte: docs/formats/weights_hopper.md. The
// same functions pack on the host and on the device.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/half.h"
#include "quant/weight/format.h"

namespace nibble::cuda {

inline constexpr int kBlockRows = 64, kBlockK = 128;  // a block of weights: one warpgroup, one group

// A packed matrix. Outputs are padded to 64 and inputs to 128 with zeros.
struct LinearWeight {
  weight::Storage storage;
  int n, k;
  const std::byte* blocks;  // [n / 64][k / 128] blocks
  const float* scale;       // [n padded to 64]
  const uint8_t* zero;      // [n padded to 64] for kW4A8Channel, else null
};

NIBBLE_HD constexpr int BlockBytes(weight::Storage s) {
  return s == weight::Storage::kW4A8Group ? 4096 + 128 : s == weight::Storage::kW4A8Channel ? 4096 : 8192;
}
NIBBLE_HD int RowBlocks(int n) { return (n + kBlockRows - 1) / kBlockRows; }
NIBBLE_HD int KBlocks(int k) { return (k + kBlockK - 1) / kBlockK; }
NIBBLE_HD size_t LinearScaleOffset(weight::Storage s, int n, int k) {
  return size_t(RowBlocks(n)) * KBlocks(k) * BlockBytes(s);
}
NIBBLE_HD size_t LinearZeroOffset(weight::Storage s, int n, int k) {
  return LinearScaleOffset(s, n, k) + size_t(RowBlocks(n)) * kBlockRows * 4;
}
NIBBLE_HD size_t LinearBytes(weight::Storage s, int n, int k) {
  return LinearZeroOffset(s, n, k) +
         (s == weight::Storage::kW4A8Channel ? size_t(RowBlocks(n)) * kBlockRows : 0);
}
inline LinearWeight LinearWeightAt(weight::Storage s, int n, int k, const std::byte* memory) {
  return {s,
          n,
          k,
          memory,
          reinterpret_cast<const float*>(memory + LinearScaleOffset(s, n, k)),
          s == weight::Storage::kW4A8Channel
              ? reinterpret_cast<const uint8_t*>(memory + LinearZeroOffset(s, n, k))
              : nullptr};
}

// Four neighbouring u4 codes of a row from input k on (a multiple of 4), one a byte; 0 outside the matrix.
NIBBLE_HD uint32_t FourCodes(const weight::WeightView& w, int row, int k) {
  if (row >= w.n || k >= w.k) return 0;
  const auto* at = reinterpret_cast<const uint8_t*>(w.codes) + (int64_t{row} * w.k + k) / 2;
  const uint32_t two = at[0] | uint32_t{at[1]} << 8;
  return (two & 15) | (two >> 4 & 15) << 8 | (two >> 8 & 15) << 16 | (two >> 12) << 24;
}

// What thread t of 128 writes of block (row_block, k_block): 32 bytes of codes, for kW8A8 64.
NIBBLE_HD void PackBlockThread(const weight::WeightView& w, int row_block, int k_block, int t,
                               std::byte* block) {
  const int row0 = row_block * kBlockRows, k0 = k_block * kBlockK;
  if (w.storage == weight::Storage::kW8A8) {
    for (int i = 0; i < 4; ++i) {  // 16-byte chunk c of line r lies at c ^ r % 8: the 128-byte swizzle
      const int r = t / 2, chunk = t % 2 * 4 + i;
      for (int b = 0; b < 16; ++b) {
        const int k = k0 + chunk * 16 + b;
        block[r * 128 + (chunk ^ r % 8) * 16 + b] =
            row0 + r < w.n && k < w.k ? w.codes[int64_t{row0 + r} * w.k + k] : std::byte{0};
      }
    }
    return;
  }
  for (int half = 0; half < 2; ++half)
    for (int i = 0; i < 4; ++i) {
      const int row = row0 + 16 * (t / 32) + t % 32 / 4 + 8 * (i % 2),
                k = k0 + 64 * half + 16 * (i / 2) + 4 * (t % 4);
      const uint32_t word = FourCodes(w, row, k) | FourCodes(w, row, k + 32) << 4;
      memcpy(block + half * 2048 + t * 16 + i * 4, &word, 4);
    }
  if (w.storage != weight::Storage::kW4A8Group || t >= kBlockRows) return;
  // Row r of a warp's 16: s2 and z * s2 of rows r and r + 8 are neighbours, one 32-bit load.
  const int row = row0 + t, r = t % 16;
  const int64_t at = int64_t{row} * (w.k / weight::kGroup) + k_block;
  const uint8_t s2 = row < w.n ? w.group_scale[at] : uint8_t{0}, z = row < w.n ? w.zero[at] : uint8_t{0};
  std::byte* to = block + 4096 + (t / 16 * 8 + r % 8) * 4 + r / 8 * 2;
  to[0] = std::byte(s2);
  to[1] = std::byte(z * s2);
}

// Scale and zero point of one padded row.
NIBBLE_HD void PackRow(const weight::WeightView& w, int row, std::byte* memory) {
  uint16_t half = 0;
  if (row < w.n) memcpy(&half, reinterpret_cast<const std::byte*>(w.scale) + int64_t{row} * 2, 2);
  const float scale = HalfToFloat(half);
  memcpy(memory + LinearScaleOffset(w.storage, w.n, w.k) + size_t(row) * 4, &scale, 4);
  if (w.storage == weight::Storage::kW4A8Channel)
    memory[LinearZeroOffset(w.storage, w.n, w.k) + size_t(row)] =
        row < w.n ? std::byte(w.zero[row]) : std::byte{0};
}

// Code of a kW8A8 matrix.
NIBBLE_HD int CodeS8(const std::byte* blocks, int k, int row, int i) {
  const int r = row % kBlockRows, chunk = i % kBlockK / 16;
  const std::byte* block =
      blocks + (int64_t{row / kBlockRows} * KBlocks(k) + i / kBlockK) * BlockBytes(weight::Storage::kW8A8);
  return int(int8_t(block[r * 128 + (chunk ^ r % 8) * 16 + i % 16]));
}

// The whole matrix on the host.
inline void PackLinearHost(const weight::WeightView& w, std::byte* memory) {
  for (int row_block = 0; row_block < RowBlocks(w.n); ++row_block)
    for (int k_block = 0; k_block < KBlocks(w.k); ++k_block)
      for (int t = 0; t < 128; ++t)
        PackBlockThread(w, row_block, k_block, t,
                        memory + (size_t(row_block) * size_t(KBlocks(w.k)) + size_t(k_block)) *
                                     size_t(BlockBytes(w.storage)));
  for (int row = 0; row < RowBlocks(w.n) * kBlockRows; ++row) PackRow(w, row, memory);
}

}  // namespace nibble::cuda
