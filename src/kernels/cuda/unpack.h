// SPDX-License-Identifier: Apache-2.0
// Floor 4. Pages as rows of bf16, as kernels for prompts read them (attention_prefill.h): sealed pages
// through their codec's own Decode8 or DecodeRow, open pages as they are; each value rounded to bf16 once.
#pragma once
#include <cstdint>

#include "kernels/cuda/pages.h"
#include "kernels/cuda/stream.h"

namespace nibble::cuda {

struct UnpackedPage {
  int32_t seq;   // KvSegment::seq
  int32_t page;  // of the pool, or of an open page its raw slot: >= 0 of the tail, < 0 of the scratch
  int32_t rows;  // of an open page those that hold something, the others become 0; -1: a sealed page
};

struct UnpackArgs {
  PagedKv kv;
  const UnpackedPage* pages;  // [count]
  int count;
  uint16_t *k, *v;         // bf16 [count, kv_heads, 64, head_dim], 16-byte aligned
  bool open_only = false;  // sealed pages are passed over
};
// REQUIRES head_dim to be a multiple of 8 and no codec that requantizes.
Launch UnpackPages(const UnpackArgs&, Stream);

}  // namespace nibble::cuda
