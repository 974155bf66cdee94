// SPDX-License-Identifier: Apache-2.0
// Floor 4. A packed block of weights as the A operand of wgmma, half a block (64 inputs) at a time.
//
// 4-bit weights become unsigned bytes, and what was added to them is taken off again in exact integers at the
// end: per group u * s2 + (128 - z * s2), per channel u. So four weights cost a mask, for every other four a
// shift, and per group one multiply-add. A byte never carries into the next: CheckRanges has seen that
// (u - z) * s2 lies in -128..127, and arithmetic modulo 2^32 does not mind that 128 - z * s2 may be negative.
#pragma once
#include "kernels/cuda/linear_layout.h"
#include "kernels/cuda/sm90/descriptor.cuh"
#include "kernels/cuda/sm90/ptx.cuh"

namespace nibble::cuda::sm90 {

using weight::Storage;

struct GroupInfo {
  uint32_t scale[2], offset4[2];  // of the two outputs of a lane
};

// word: s2 and z * s2 of either output.
template <Storage kStorage>
NIBBLE_DEVICE GroupInfo group_of(uint32_t word) {
  GroupInfo g{};
  if constexpr (kStorage == Storage::kW4A8Group) {
    g.scale[0] = word & 0xFF;
    g.scale[1] = word >> 16 & 0xFF;
    g.offset4[0] = 0x80808080u - __byte_perm(word, 0, 0x1111);
    g.offset4[1] = 0x80808080u - __byte_perm(word, 0, 0x3333);
  }
  return g;
}

// What a thread has of half a block, as two fragments.
template <Storage kStorage>
NIBBLE_DEVICE void dequantize_words(uint4 w, const GroupInfo& g, uint32_t (&a)[2][4]) {
  const uint32_t word[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    a[0][i] = word[i] & 0x0F0F0F0Fu;
    a[1][i] = word[i] >> 4 & 0x0F0F0F0Fu;
    if constexpr (kStorage == Storage::kW4A8Group) {
      a[0][i] = a[0][i] * g.scale[i % 2] + g.offset4[i % 2];
      a[1][i] = a[1][i] * g.scale[i % 2] + g.offset4[i % 2];
    }
  }
}

}  // namespace nibble::cuda::sm90
