// SPDX-License-Identifier: Apache-2.0
// Floor 2. What is known of one KV head of a sequence under a codec that mixes widths (head_mix.h). Apart,
// for kernels that need no registry.
#pragma once
#include <cstdint>

namespace nibble::kv {

// Once the sequence's first page is full.
struct HeadPlace {
  double priority = 0;         // of the first page; what a plan decides has none
  int32_t two_bit = 0;         // 1: its pages are those of CodecInfo::two_bit
  int32_t two_bit_before = 0;  // heads with 2 bits that come before it in a row
};

}  // namespace nibble::kv
