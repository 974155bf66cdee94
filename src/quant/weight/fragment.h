// SPDX-License-Identifier: Apache-2.0
// Floor 2. Where a value lies in the register fragments of the tensor core instructions m16n8k32 (s8): which
// lane of a warp holds it, and in which byte. QServe's "compute-aware reorder" (arXiv 2405.04532, section
// 5.2.1; its source, qgemm w4a8_per_group) stores 32 x 32 tiles of four-bit codes so that one 128-bit load
// of a lane is its B fragments of two steps. Docs: docs/formats/weights.md.
#pragma once
#include <cstdint>

#include "base/macros.h"

namespace nibble::weight {

inline constexpr int kTile = 32;  // outputs and inputs of a tile
inline constexpr int kLanes = 32, kLaneBytes = 16;

// Of output n and input k of a tile, both below 32.
struct TilePlace {
  int lane, byte;
  bool high;  // nibble
};
NIBBLE_HD TilePlace PlaceInTile(int n, int k) {
  return {4 * (n % 8) + k / 4 % 4, 8 * (k / 16) + 4 * (n / 8 % 2) + k % 4, n >= 16};
}

// codes[n][k], 0 to 15, to 512 bytes: 32 lanes of 16.
inline void PackTile(const uint8_t codes[kTile][kTile], uint8_t tile[kLanes][kLaneBytes]) {
  for (int i = 0; i < kLanes * kLaneBytes; ++i) tile[i / kLaneBytes][i % kLaneBytes] = 0;
  for (int n = 0; n < kTile; ++n)
    for (int k = 0; k < kTile; ++k) {
      const TilePlace p = PlaceInTile(n, k);
      tile[p.lane][p.byte] = uint8_t(tile[p.lane][p.byte] | codes[n][k] << (p.high ? 4 : 0));
    }
}

// The B fragments of a lane's 16 bytes as four words x, y, z, w: `half` of the inputs (0: k < 16) for output
// lane / 4 + 8 * j. Four codes, one a byte: inputs 16 * half + 4 * (lane % 4) + 0..3.
NIBBLE_HD uint32_t FragmentOfLane(const uint32_t words[4], int j, int half) {
  const uint32_t word = words[2 * half + j % 2];
  return (j < 2 ? word : word >> 4) & 0x0F0F0F0F;
}

// Group scales of 32 outputs, so that one 32-bit word at 4 * (lane / 4) serves a lane: position -> output.
NIBBLE_HD int OutputOfScale(int position) { return 8 * (position % 4) + position / 4; }

// Register i (0..3) of a lane's m16n8 accumulator. Every register of a lane lies in one of SageAttention's
// per-thread groups of rows (row % 8) and of columns (column % 8 / 2), which is what they are for.
struct TileCell {
  int row, column;
};
NIBBLE_HD TileCell AccumulatorCell(int lane, int i) {
  return {lane / 4 + 8 * (i / 2), 2 * (lane % 4) + i % 2};
}

}  // namespace nibble::weight
