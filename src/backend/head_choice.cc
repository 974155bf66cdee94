// SPDX-License-Identifier: Apache-2.0
#include "backend/head_choice.h"

#include <algorithm>

#include "backend/kv_view.h"
#include "base/check.h"

namespace nibble {
namespace {

// The raw page of a head as f32 [page_tokens, head_dim].
const float* RawRows(const KvView& kv, const KvSegment& s, bool is_v, int head, float* rows) {
  const DType type = kv::Get(is_v ? kv.v_codec : kv.k_codec).raw;
  NIBBLE_CHECK(type == DType::kF16, "a codec that mixes widths has a raw type of f16");
  const std::byte* raw = RawPage(kv, is_v, s.raw_slot, head, RawBytes(kv, type));
  const int dim = kv.page.head_dim;
  for (int i = 0; i < kv.page.tokens * dim; ++i)
    rows[i] = TailOf(kv) == kv::Tail::kInt8 ? kv::Int8Tail::Value(kv.page, raw, i / dim, i % dim)
                                            : HalfToFloat(kv::LoadU16(raw + 2 * i));
  return rows;
}

}  // namespace

void ChooseHeads(const KvView& kv, const KvSegment& s, bool is_v, float* scratch) {
  const HeadMix& mix = is_v ? kv.v_mix : kv.k_mix;
  if (mix.places == nullptr || s.seal_page < 0 || s.pages > 0) return;
  const std::span places(mix.places + int64_t{s.seq} * kv.kv_heads, size_t(kv.kv_heads));
  if (kv.plan != nullptr) {
    const std::vector<bool>& planned = is_v ? kv.plan->v_two_bit : kv.plan->k_two_bit;
    if (!planned.empty()) {
      NIBBLE_CHECK(std::count(planned.begin(), planned.end(), true) == mix.two_bit,
                   "a plan with another number of 2-bit heads");
      for (size_t h = 0; h < places.size(); ++h) places[h] = {.two_bit = planned[h] ? 1 : 0};
      return kv::Place(places);
    }
  }
  for (int h = 0; h < kv.kv_heads; ++h)
    places[size_t(h)] = {.priority = kv::HeadPriority(kv.page, RawRows(kv, s, is_v, h, scratch))};
  kv::PlaceByPriority(places, mix.two_bit);
}

}  // namespace nibble
