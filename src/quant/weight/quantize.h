// SPDX-License-Identifier: Apache-2.0
// Floor 2. Float weights -> kW4A8Group, kW4A8Channel (QoQ, arXiv 2405.04532 section 4.1) and kW8A8, round to
// nearest. The exact rules, with their reasons: docs/formats/weights.md.
#pragma once
#include <cstdint>
#include <vector>

#include "base/half.h"
#include "base/result.h"
#include "quant/weight/format.h"
#include "quant/weight/storage.h"

namespace nibble::weight {

// Level-1 codes of kW4A8Group lie in [-119, 119], so that every level-2 value (u - z) * s2 fits in 8 bits.
inline constexpr int kProtectiveRange = 119;

// Level 2 of kW4A8Group: integer scale s2 and zero point z of a group whose level-1 codes lie in lo..hi; a
// code q becomes u and decodes as (u - z) * s2. 0 counts as a member: a group of one sign would otherwise
// need a z outside 0..15 and be cut off (docs/decisions/0008-group-range-includes-zero.md).
struct GroupParams {
  int scale, zero;
};
inline GroupParams FitGroup(int lo, int hi) {
  lo = lo < 0 ? lo : 0;
  hi = hi > 0 ? hi : 0;
  const int steps = RoundToInt(float(hi - lo) / 15.0f), scale = steps > 0 ? steps : 1;
  const int zero = RoundToInt(float(-lo) / float(scale));
  return {scale, zero < 15 ? zero : 15};
}
inline int GroupCode(int q, GroupParams p) {
  const int u = RoundToInt(float(q) / float(p.scale)) + p.zero;
  return u < 0 ? 0 : (u > 15 ? 15 : u);
}

// Quantized weights in the bytes of the file format. Which parts a storage uses: WeightView.
struct QuantizedWeight {
  Storage storage = Storage::kW8A8;
  int n = 0, k = 0;
  std::vector<uint8_t> codes;
  std::vector<uint16_t> scale;
  std::vector<uint8_t> group_scale, zero;
  WeightView View() const;  // borrows from this object
};

// Room for [n, k], all zero. Fails as CheckShape, and for storages that are not quantized.
Result<QuantizedWeight> AllocateQuantized(int n, int k, Storage);

// Quantizes rows [row_begin, row_end) of `out`; w holds these rows only: [row_end - row_begin, k]. Rows are
// independent, so calls on disjoint ranges may run at the same time. A weight that is not finite, or too
// large for an f16 scale, is kInvalidArgument naming its row and column.
Status QuantizeRows(const float* w, int row_begin, int row_end, QuantizedWeight* out);

// All of w [n, k] at once.
Result<QuantizedWeight> Quantize(const float* w, int n, int k, Storage);

}  // namespace nibble::weight
