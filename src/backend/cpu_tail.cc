// SPDX-License-Identifier: Apache-2.0
// Floor 5. CPU backend: new tokens into open pages of INT8 codes (tail=int8, TurboAttention).
#include "backend/cpu_backend.h"
#include "backend/kv_view.h"
#include "quant/kv/registry.h"

namespace nibble {

// Items [begin, end) of segments x KV heads x {K, V}. A page's scale comes from the page before, so the item
// of a sequence's first segment does all its segments in order, and those of the others nothing.
void CpuBackend::AppendInt8(const KvAppendArgs& a, int begin, int end, AttentionCounters& counters) {
  const KvView& kv = a.kv;
  for (int item = begin; item < end; ++item) {
    const int head = item / 2 % kv.kv_heads;
    const bool is_v = item % 2 == 1;
    const kv::CodecInfo& codec = kv::Get(is_v ? kv.v_codec : kv.k_codec);
    const Tensor& x = is_v ? a.v : a.k;
    const auto append = [&](const KvSegment& s, const std::byte* before) {
      std::byte* tail = RawPage(kv, is_v, s.raw_slot, head, RawBytes(kv, codec.raw));
      kernels_.tail_append({.x = x.as<const float>() + s.row * x.stride[0] + head * x.stride[1],
                            .tail = tail,
                            .before = s.position > 0 ? before : nullptr,
                            .x_stride = x.stride[0],
                            .rows = s.rows,
                            .first_token = s.position % kv.page.tokens,
                            .shape = kv.page,
                            .counters = &counters});
      return tail;
    };
    VisitSequence(kv, size_t(item / (2 * kv.kv_heads)), [&](size_t first, size_t last) {
      // What the last step left in the sequence's slot: the page before, where this step begins one.
      const std::byte* before = RawPage(kv, is_v, kv.segments[first].seq, head, RawBytes(kv, codec.raw));
      for (size_t i = first; i < last; ++i) before = append(kv.segments[i], before);
    });
  }
}

}  // namespace nibble
