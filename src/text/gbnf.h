// SPDX-License-Identifier: Apache-2.0
// Floor 5. GBNF, the grammar notation of llama.cpp: docs/formats/grammar.md.
#pragma once
#include <string_view>

#include "base/result.h"
#include "text/grammar.h"

namespace nibble {

// The texts of the rule "root". kInvalidArgument names line, column and reason.
Result<Grammar> ParseGbnf(std::string_view text, const GrammarLimits& limits = {});

}  // namespace nibble
