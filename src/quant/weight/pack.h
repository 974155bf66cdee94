// SPDX-License-Identifier: Apache-2.0
// Floor 2. Storage formats (format.h, WeightView) -> compute layouts (PackedWeight), with the checks that a
// file must pass before a kernel may trust its codes.
#pragma once
#include <cstddef>
#include <string_view>

#include "base/result.h"
#include "quant/weight/format.h"
#include "quant/weight/storage.h"

namespace nibble::weight {

// Which layout a storage takes. Float weights keep their type under f32 arithmetic (the product converts each
// one exactly); under bf16 arithmetic all of them become bf16.
Layout LayoutFor(Storage, bool bf16_arithmetic);

// Shape, presence of the parts this storage uses, and values: scale finite and >= 0, 0 only for
// a row that is zero anyway, s2 in 1..16, z in 0..15, every (u - z) * s2 of kW4A8Group in -128..127, no -128
// in kW8A8. So no file can make an integer kernel leave its ranges. Float codes are not looked at. kCorrupt
// (kUnsupported for shapes) naming `name` and the row.
Status CheckRanges(const WeightView&, std::string_view name);

// Bytes Pack() needs of a weight [n, k]: every part rounded up to 64.
size_t PackedBytes(Layout, int n, int k);
inline size_t PackedBytes(const WeightView& w, Layout layout) { return PackedBytes(layout, w.n, w.k); }

// Where the parts of such a weight lie in memory that Pack() has filled. REQUIRES: `memory` 64-byte aligned.
PackedWeight PackedAt(Layout, int n, int k, const std::byte* memory);

// REQUIRES: CheckRanges(view) passed; float storage with a float layout, or LayoutFor's integer layout;
// `memory` 64-byte aligned with PackedBytes bytes, all of which are written. The result points into `memory`.
// The view's pointers may be unaligned.
PackedWeight Pack(const WeightView&, Layout, std::byte* memory);

// Row `row` of a packed weight as floats, the slow truth for tests and the oracle: out[k].
void DecodeRow(const PackedWeight&, int row, float* out);

}  // namespace nibble::weight
