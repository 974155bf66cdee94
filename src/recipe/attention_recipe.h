// SPDX-License-Identifier: Apache-2.0
// Floor 3. How attention is computed, as one value that prints, parses and compares. The command line, tests,
// benchmarks, server and bindings all use the same string, e.g. "k=int4-token v=int4-token".
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/dtype.h"
#include "base/result.h"
#include "quant/kv/codec.h"

namespace nibble {

enum class QkArith : uint8_t { kF32, kBF16 };
enum class Smooth : uint8_t { kNone };
enum class SoftmaxKind : uint8_t { kExact };
enum class PvArith : uint8_t { kF32, kBF16 };
enum class SelectKind : uint8_t { kAll };

struct AttentionRecipe {
  kv::CodecId k = kv::CodecId::kF32, v = kv::CodecId::kF32;
  QkArith qk = QkArith::kF32;
  Smooth smooth = Smooth::kNone;
  SoftmaxKind softmax = SoftmaxKind::kExact;
  PvArith pv = PvArith::kF32;
  SelectKind select = SelectKind::kAll;
  bool operator==(const AttentionRecipe&) const = default;
};

// Parses a preset name (PresetNames), key=value items, or a preset followed by items that
// override it. `arithmetic` (kF32 or kBF16) is what "exact" means. Unknown keys, values and impossible
// combinations are kInvalidArgument / kUnsupported with the reason and the values that exist.
Result<AttentionRecipe> ParseRecipe(std::string_view text, DType arithmetic);

// Every preset of this build, "exact" first.
std::span<const std::string_view> PresetNames();

// The canonical form; ParseRecipe(ToString(r)) == r.
std::string ToString(const AttentionRecipe&);

}  // namespace nibble
