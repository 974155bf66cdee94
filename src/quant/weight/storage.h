// SPDX-License-Identifier: Apache-2.0
// Floor 2. Storage formats by name, and the shapes they take. Apart from format.h, which kernels include.
#pragma once
#include <cstdint>
#include <optional>
#include <string_view>

#include "base/result.h"
#include "quant/weight/format.h"

namespace nibble::weight {

// The name in file headers and on the command line: "f32", "f16", "bf16", "w4a8-g128", "w4a8-chn", "w8a8".
const char* Name(Storage);
std::optional<Storage> FindStorage(std::string_view name);

constexpr bool IsQuantized(Storage s) { return s >= Storage::kW4A8Group; }

// An int32 sum of kMaxK products of at most 128 * 127 does not overflow.
inline constexpr int kMaxK = 132104;

// kUnsupported when no kernel takes [n, k] in this storage: k a multiple of 128 (group), 8 (channel) or 4
// (w8a8) and at most kMaxK; kInvalidArgument when n or k is not positive or beyond int32.
Status CheckShape(Storage, int64_t n, int64_t k);

}  // namespace nibble::weight
