// SPDX-License-Identifier: Apache-2.0
// Floor 5. Addresses and ranges of a KvView.
#pragma once
#include <algorithm>
#include <string_view>

#include "backend/backend.h"
#include "quant/kv/int8_tail.h"
#include "quant/kv/registry.h"

namespace nibble {

inline kv::Tail TailOf(const KvView& kv) { return kv.recipe != nullptr ? kv.recipe->tail : kv::Tail::kFloat; }

inline size_t RawBytes(const KvView& kv, DType raw) {  // of one raw page of one KV head
  return size_t(kv::TailBytes(TailOf(kv), raw, kv.page));
}

// The raw page of a slot (>= 0: tail slot, < 0: scratch ~slot) and KV head.
inline std::byte* RawPage(const KvView& kv, bool is_v, int32_t slot, int head, size_t bytes) {
  std::byte* tail = is_v ? kv.v_tail : kv.k_tail;
  std::byte* scratch = is_v ? kv.v_scratch : kv.k_scratch;
  const int64_t index = slot >= 0 ? slot : ~slot;
  return (slot >= 0 ? tail : scratch) + size_t(index * kv.kv_heads + head) * bytes;
}

// The sealed pages of a KV head, K or V. `seq` matters where a sequence chooses the widths of its heads.
struct SealedPages {
  const kv::CodecInfo& codec;
  std::byte* first;
  int64_t stride;  // bytes from a page to the next one
  std::byte* At(int64_t page) const { return first + page * stride; }
};
inline SealedPages SealedPagesOf(const KvView& kv, bool is_v, int32_t seq, int head) {
  const kv::CodecInfo& codec = kv::Get(is_v ? kv.v_codec : kv.k_codec);
  const HeadMix& mix = is_v ? kv.v_mix : kv.k_mix;
  std::byte* pool = is_v ? kv.v_pool : kv.k_pool;
  const int64_t row = kv::RowBytes(codec, kv.page, kv.kv_heads, mix.two_bit);
  if (mix.places == nullptr) return {codec, pool + head * codec.pool_bytes(kv.page), row};
  const kv::HeadPlace& place = mix.places[int64_t{seq} * kv.kv_heads + head];
  return {place.two_bit != 0 ? kv::Get(codec.two_bit) : codec,
          pool + kv::RowBytes(codec, kv.page, head, place.two_bit_before), row};
}

// The side record of a sealed page, or of a sequence and its open page.
inline std::byte* PageRecord(const KvView& kv, int64_t page, int head) {
  return kv.side_pool + (page * kv.kv_heads + head) * kv.side.bytes;
}
inline std::byte* OpenRecord(const KvView& kv, int32_t seq, int head) {
  return kv.side_tail + (int64_t{seq} * kv.kv_heads + head) * kv.side.seq_bytes;
}

inline int64_t FirstSeen(int64_t position, int64_t window) {
  return window > 0 ? std::max<int64_t>(0, position - window + 1) : 0;
}

inline SelectKind SelectOf(const KvView& kv) {
  return kv.recipe != nullptr ? kv.recipe->select.kind : SelectKind::kAll;
}

// Calls f(first segment, one past the last) for the segments of the sequence that begins at `index`; nothing
// when that segment continues one.
template <class F>
void VisitSequence(const KvView& kv, size_t index, F&& f) {
  if (index > 0 && kv.segments[index - 1].seq == kv.segments[index].seq) return;
  size_t end = index + 1;
  while (end < kv.segments.size() && kv.segments[end].seq == kv.segments[index].seq) ++end;
  f(index, end);
}

// The rows of a segment that attend to all they see come first.
inline int DenseRows(const KvView& kv, const KvSegment& s) {
  return SelectOf(kv) == SelectKind::kAll ? s.rows : s.dense_rows;
}

// What --explain calls the kernel of selecting rows; empty where there are none.
std::string_view SelectKernelName(const Selection& select);

}  // namespace nibble
