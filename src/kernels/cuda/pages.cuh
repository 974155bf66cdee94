// SPDX-License-Identifier: Apache-2.0
// Floor 4. Addresses in the KV cache, and pages decoded by a block of threads: every codec through its own
// Decode8 or DecodeRow, the definition of its bits.
#pragma once
#include "kernels/cuda/pages.h"
#include "quant/kv/all.h"
#include "quant/kv/int8_codes.h"
#include "quant/kv/int8_tail.h"

namespace nibble::cuda {

__device__ inline std::byte* OpenPage(const PagedKv& kv, const PagedSide& side, int slot, int head) {
  std::byte* base = slot >= 0 ? side.tail : side.scratch;
  return base + (int64_t{slot >= 0 ? slot : ~slot} * kv.kv_heads + head) * side.raw_bytes;
}

// The sealed pages of a KV head of a sequence.
struct SealedPages {
  kv::CodecId codec;
  std::byte* first;
  int64_t stride;
  __device__ std::byte* At(int64_t page) const { return first + page * stride; }
};
__device__ inline SealedPages SealedPagesOf(const PagedKv& kv, const PagedSide& side, int64_t seq, int head) {
  if (side.places == nullptr) return {side.codec, side.pool + head * side.head_stride, side.page_stride};
  const kv::HeadPlace place = side.places[seq * kv.kv_heads + head];
  return {place.two_bit != 0 ? side.two_bit : side.codec,
          side.pool + (head - place.two_bit_before) * side.head_stride +
              place.two_bit_before * side.two_bit_bytes,
          side.page_stride};
}
__device__ inline std::byte* PageRecord(const PagedKv& kv, int64_t page, int head) {
  return kv.side_pool + (page * kv.kv_heads + head) * kv.side_bytes;
}
__device__ inline std::byte* OpenRecord(const PagedKv& kv, int64_t seq, int head) {
  return kv.side_tail + (seq * kv.kv_heads + head) * kv.side_seq_bytes;
}
__device__ inline int PageAt(const PagedKv& kv, const KvSegment& s, int p) {
  return kv.page_table[s.table + p];
}

// One past the segments of the sequence that begins at `first`; `first` where that segment continues one.
__device__ inline int SequenceEnd(const PagedKv& kv, int first) {
  if (first > 0 && kv.segments[first - 1].seq == kv.segments[first].seq) return first;
  int end = first + 1;
  while (end < kv.segment_count && kv.segments[end].seq == kv.segments[first].seq) ++end;
  return end;
}

__device__ inline float RawElement(DType type, const std::byte* raw, int index) {
  if (type == DType::kF32) return reinterpret_cast<const float*>(raw)[index];
  const uint16_t bits = reinterpret_cast<const uint16_t*>(raw)[index];
  return type == DType::kF16 ? HalfToFloat(bits) : Bf16ToFloat(bits);
}

__device__ inline float OpenElement(const PagedKv& kv, DType type, const std::byte* raw, int token,
                                    int channel) {
  return kv.open == kv::Tail::kInt8 ? kv::Int8Tail::Value(kv.page, raw, token, channel)
                                    : RawElement(type, raw, token * kv.page.head_dim + channel);
}

// Rows [0, tokens) of an open page into `tile`, row stride `stride`; the rest of the page becomes zero.
__device__ inline void LoadOpen(const PagedKv& kv, DType type, const std::byte* raw, int tokens, float* tile,
                                int stride) {
  const int dim = kv.page.head_dim;
  for (int i = int(threadIdx.x); i < kv.page.tokens * dim; i += int(blockDim.x)) {
    const int t = i / dim, d = i % dim;
    tile[t * stride + d] = t < tokens ? OpenElement(kv, type, raw, t, d) : 0.0f;
  }
}

// QAQ: the planes, then the outliers over them. Called by all threads of the block.
__device__ inline void LoadPlanes(kv::PageShape s, const std::byte* page, float* tile, int stride) {
  const kv::QaqHeader h = kv::LoadQaqHeader(page);
  const int eights = s.head_dim / 8;
  for (int i = int(threadIdx.x); i < s.tokens * eights; i += int(blockDim.x)) {
    const kv::QaqRange r = kv::LoadQaqRange(s, page, i / eights);
    const float min = HalfToFloat(r.min), half = HalfToFloat(r.half);
    int planes[kv::kQaqPlanes];
    for (int b = 0; b < h.width; ++b) planes[b] = int(kv::QaqPlane(s, page, h, b)[i]);
    for (int j = 0; j < 8; ++j) {
      int code = 0;
      for (int b = 0; b < h.width; ++b) code = 2 * code + (planes[b] >> j & 1);
      tile[i / eights * stride + i % eights * 8 + j] = kv::QaqDecode(code, min, half, h.width);
    }
  }
  __syncthreads();
  const std::byte* cells = page + h.cells_at + int64_t{h.first_cell} * kv::kQaqCellBytes;
  for (int i = int(threadIdx.x); i < h.outliers;
       i += int(blockDim.x)) {  // the cells of a page are neighbours
    const std::byte* at = cells + i / kv::kQaqCellOutliers * kv::kQaqCellBytes + i % kv::kQaqCellOutliers * 4;
    const int where = kv::LoadU16(at);
    tile[(where >> 10) * stride + (where & 1023)] = HalfToFloat(kv::LoadU16(at + 2));
  }
}

template <class C>
__device__ __noinline__ void LoadPageOf(kv::PageShape s, const std::byte* page, float* tile, int stride) {
  if constexpr (C::kId == kv::CodecId::kQaq) {
    LoadPlanes(s, page, tile, stride);
  } else if constexpr (kv::HasDecodeRow<C>) {
    for (int t = int(threadIdx.x); t < s.tokens; t += int(blockDim.x))
      C::DecodeRow(s, page, t, tile + t * stride);
  } else {
    const int eights = s.head_dim / 8;
    for (int i = int(threadIdx.x); i < s.tokens * eights; i += int(blockDim.x)) {
      float x[8];
      C::Decode8(s, page, i / eights, i % eights * 8, x);
      for (int j = 0; j < 8; ++j) tile[i / eights * stride + i % eights * 8 + j] = x[j];
    }
  }
}

// A sealed page into `tile`, row stride `stride`.
__device__ inline void LoadSealed(kv::CodecId codec, kv::PageShape s, const std::byte* page, float* tile,
                                  int stride) {
  Visit(kv::Codecs{}, codec, [&]<class C>() { LoadPageOf<C>(s, page, tile, stride); });
}

// The f32 scale of a page that is INT8 codes (FlashQ): false for any other codec.
__device__ inline bool PageCodeScale(kv::CodecId codec, kv::PageShape s, const std::byte* page,
                                     float* scale) {
  bool has = false;
  Visit(kv::Codecs{}, codec, [&]<class C>() {
    if constexpr (kv::HasInt8Codes<C>) {
      *scale = kv::Int8Scale<C>(s, page);
      has = true;
    }
  });
  return has;
}

}  // namespace nibble::cuda
