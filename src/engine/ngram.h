// SPDX-License-Identifier: Apache-2.0
// Floor 8. Prompt lookup: guesses the next tokens of a text from what followed its newest tokens before.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "engine/serving.h"

namespace nibble {

// Sets `guess` to at most `most` tokens that followed the latest earlier occurrence of the newest `longest`
// tokens, or of one fewer, and so on down to `shortest`. Nothing where none occurred. Allocates nothing when
// `guess` has room.
void GuessByLookup(std::span<const int32_t> tokens, const NgramOptions& options, int most,
                   std::vector<int32_t>* guess);

}  // namespace nibble
