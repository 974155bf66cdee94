// SPDX-License-Identifier: Apache-2.0
// Floor 4. QAQ while decoding (docs/decisions/0012-qaq-changes-widths-at-pages.md): after attention over a
// wave of segments, what their queries say of older pages; then new widths for the pages of sequences that
// completed one, which is sealed. Definition: backend/cpu_qaq.cc with quant/kv/qaq_update.h.
//
// Records lie in the pool as on the CPU. Planes and outliers have places of their own: page p those from p *
// most_planes and p * most_cells on, in order, so that no page waits for another one. A plane that is
// dropped is no longer read and does not come back, as if it were gone.
#pragma once
#include "kernels/cuda/pages.h"
#include "kernels/cuda/stream.h"
#include "quant/kv/qaq_rules.h"

namespace nibble::cuda {

struct QaqSide {              // K or V of a layer
  std::byte *planes, *cells;  // [kv_heads, capacity, bytes of a plane or cell]
  int64_t plane_capacity, cell_capacity;
  int most_planes, most_cells;  // of a page
  const kv::QaqParams* params;  // [kv_heads], or null: another codec
};

// nibble::KvUsage, added to on the device.
struct QaqUsage {
  unsigned long long values, bits, paper_bits, narrowings, widenings, starved;
};

struct QaqArgs {
  PagedKv kv;  // its segments: of a wave, one a sequence
  QaqSide k, v;
  kv::NormHistogram* norms;  // [slots, kv_heads], by KvSegment::seq
  const float* q;            // [rows, heads, head_dim], row stride q_stride
  int64_t q_stride;
  int heads;
  float scale;
  int64_t window;                  // 0: none
  int most_rows;                   // of a segment that are weighed: at most the greatest window of V's heads
  int max_pages;                   // before a segment, at most
  void* workspace;                 // QaqWorkspaceBytes
  QaqUsage* usage;                 // [2]: K, V
  unsigned long long* bytes_read;  // of K and V pages of QAQ by rows from KvSegment::dense_rows on
};
int64_t QaqWorkspaceBytes(const QaqArgs&);

// `weighs`: some segment has rows among the last of their page that a window of V looks at.
Launch QaqGather(const QaqArgs&, bool weighs, Stream);
// Of the segments that complete a page.
Launch QaqRequantize(const QaqArgs&, Stream);

}  // namespace nibble::cuda
