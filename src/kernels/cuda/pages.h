// SPDX-License-Identifier: Apache-2.0
// Floor 4. The KV cache as kernels see it: what KvView says, with every address on the device and no host
// type.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/args.h"
#include "quant/kv/head_place.h"

namespace nibble::cuda {

struct PagedSide {  // K or V
  kv::CodecId codec;
  DType raw;                         // of the codec
  std::byte *pool, *tail, *scratch;  // tail and scratch: [slots, kv_heads, raw_bytes]
  int64_t page_stride, head_stride;  // page p of KV head h: pool + p * page_stride + h * head_stride
  int64_t raw_bytes;                 // of an open page of one KV head
  // Where a sequence chooses the widths of its heads: [slots, kv_heads], or null. A head with 2 bits has
  // pages of `two_bit`, of two_bit_bytes.
  kv::HeadPlace* places;
  kv::CodecId two_bit;
  int64_t two_bit_bytes;
};

struct PagedKv {
  PagedSide k, v;
  std::byte *side_pool, *side_tail;  // [pages, kv_heads, side_bytes], [slots, kv_heads, side_seq_bytes]
  int64_t side_bytes, side_seq_bytes;
  const KvSegment* segments;  // [segment_count]; those of a sequence follow each other
  const int32_t* page_table;
  int segment_count, kv_heads;
  kv::PageShape page;
  kv::Tail open;  // how open pages keep their rows
};

}  // namespace nibble::cuda
