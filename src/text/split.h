// SPDX-License-Identifier: Apache-2.0
// Floor 5. Cutting a text at matches: what becomes of the matches themselves.
#pragma once
#include <cstdint>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "text/regex.h"

namespace nibble {

enum class SplitBehavior : uint8_t { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

Result<SplitBehavior> LoadSplitBehavior(JsonRef section, std::string_view key);

// Cuts `piece` at `matches`, which lie in [0, piece.size()) relative to it, ordered and disjoint, and appends
// the cuts that are not empty. With `invert` the gaps are the matches.
void SplitPiece(Span piece, const std::vector<Span>& matches, bool invert, SplitBehavior behavior,
                std::vector<Span>* out);

}  // namespace nibble
