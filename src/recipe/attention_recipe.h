// SPDX-License-Identifier: Apache-2.0
// Floor 3. How attention is computed, as one value that prints, parses and compares. The command line, tests,
// benchmarks, server and bindings all use the same string, e.g. "k=int4-token v=int4-token" or
// "qserve+sparq:r=16,k=128".
#pragma once
#include <span>
#include <string>
#include <string_view>

#include "base/dtype.h"
#include "base/result.h"
#include "quant/kv/codec.h"
#include "quant/kv/qaq_params.h"
#include "recipe/arithmetic.h"
#include "recipe/selection.h"

namespace nibble {

struct AttentionRecipe {
  kv::CodecId k = kv::CodecId::kF32, v = kv::CodecId::kF32;
  kv::QaqParams k_qaq = kv::kQaqKeys, v_qaq = kv::kQaqValues;  // of k=qaq and v=qaq
  float k_two_bit = 0.5f, v_two_bit = 0.5f;  // of flashq-mixed: share of a layer's KV heads with 2 bits
  kv::Tail tail = kv::Tail::kFloat;          // the open page of a sequence
  Arithmetic arithmetic{};
  Selection select{};
  bool operator==(const AttentionRecipe&) const = default;
};

// Parses presets (PresetNames) joined by '+', then key=value items that override them. A preset or a value
// may have parameters: "sparq:r=16,k=128", "softmax=sas:threshold=-8". `arithmetic` (kF32 or kBF16) is what
// "exact" means. Unknown names, contradictions and impossible combinations are kInvalidArgument /
// kUnsupported with the reason and the values that exist.
Result<AttentionRecipe> ParseRecipe(std::string_view text, DType arithmetic);

// kInvalidArgument when a model's heads are too small for the recipe, kUnsupported when they are no multiple
// of the eight channels that codecs and kernels take at a time.
Status CheckHeadSize(const AttentionRecipe&, int head_dim);

// Every preset of this build, "exact" first.
std::span<const std::string_view> PresetNames();

// The canonical form; ParseRecipe(ToString(r)) == r. Parameters at their default are not written.
std::string ToString(const AttentionRecipe&);

}  // namespace nibble
