// SPDX-License-Identifier: Apache-2.0
// Floor 2. Float weights -> kW4A8Group, kW4A8Channel (QoQ, arXiv 2405.04532 section 4.1) and kW8A8, round to
// nearest. The exact rules, with their reasons: docs/formats/weights.md.
#pragma once
#include <cstdint>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "quant/weight/format.h"

namespace nibble::weight {

// Level-1 codes of kW4A8Group lie in [-119, 119], so that every level-2 value (u - z) * s2 fits in 8 bits.
inline constexpr int kProtectiveRange = 119;

// Quantized weights in the bytes of the file format. Which parts a storage uses: WeightView.
struct QuantizedWeight {
  Storage storage = Storage::kW8A8;
  int n = 0, k = 0;
  std::vector<uint8_t> codes;
  std::vector<uint16_t> scale;
  std::vector<uint8_t> group_scale, zero;
  WeightView View() const;  // borrows from this object
};

// The name in file headers and on the command line: "f32", "w4a8-g128", "w4a8-chn", "w8a8", ...
const char* Name(Storage);

// kInvalidArgument / kUnsupported when no kernel takes [n, k] in this storage: k a multiple of 128 (group),
// 8 (channel) or 4 (w8a8), and at most kMaxK for sums in int32.
inline constexpr int kMaxK = 132104;
Status CheckShape(Storage, int64_t n, int64_t k);

// Room for [n, k], all zero. Fails as CheckShape, and for storages that are not quantized.
Result<QuantizedWeight> AllocateQuantized(int n, int k, Storage);

// Quantizes rows [row_begin, row_end) of `out`; w holds these rows only: [row_end - row_begin, k]. Rows are
// independent, so calls on disjoint ranges may run at the same time. A weight that is not finite, or too
// large for an f16 scale, is kInvalidArgument naming its row and column.
Status QuantizeRows(const float* w, int row_begin, int row_end, QuantizedWeight* out);

// All of w [n, k] at once.
Result<QuantizedWeight> Quantize(const float* w, int n, int k, Storage);

}  // namespace nibble::weight
