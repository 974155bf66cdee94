// SPDX-License-Identifier: Apache-2.0
// Floor 5. The pages of QAQ in memory of their own: sealing one, dropping planes and bringing them back. One
// object stands for K or V of one KV head of a layer, and only one thread at a time may use it.
#pragma once
#include <cstdint>

#include "backend/backend.h"
#include "quant/kv/plane_arena.h"
#include "quant/kv/qaq.h"
#include "quant/kv/qaq_rules.h"

namespace nibble {

class QaqPages {
 public:
  QaqPages(kv::PageShape shape, const kv::QaqParams& params, kv::PlaneArena planes, kv::PlaneArena cells)
      : shape_(shape), params_(params), planes_(planes), cells_(cells) {}

  // Writes the record `page` from rows [tokens, head_dim], with all planes up to params.max. What the record
  // held before is released: pages of a closed sequence keep their planes until they are taken again. `sigma`
  // is the deviation allowed to a value, for outliers by cost.
  void Seal(const float* rows, double sigma, std::byte* page);
  void Release(std::byte* page);
  // Frees the planes from `keep` on. REQUIRES keep >= width.
  void Drop(std::byte* page, int keep);
  // Makes `planes` planes resident again, from the rows that were sealed.
  void Restore(std::byte* page, const float* rows, int planes);

  // Bytes that a page occupies: record, resident planes, outlier cells.
  int64_t Bytes(const std::byte* page) const;
  // Writes these bytes one behind the other, and makes another page of them, whose former planes are
  // released. Both give the end of what they wrote or read.
  std::byte* Save(const std::byte* page, std::byte* to) const;
  const std::byte* Load(const std::byte* from, std::byte* page);

 private:
  kv::PageShape shape_;
  const kv::QaqParams& params_;
  kv::PlaneArena planes_, cells_;
};

// K or V of one KV head of the layer. REQUIRES that it is QAQ's.
QaqPages QaqPagesOf(const KvView& kv, KvSide side, int head);

}  // namespace nibble
