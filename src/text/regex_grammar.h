// SPDX-License-Identifier: Apache-2.0
// Floor 5. Regular expressions as grammars: the part of ECMA-262 that describes a regular language, listed in
// docs/formats/grammar.md. What is outside is refused by name.
#pragma once
#include <functional>
#include <string_view>

#include "base/result.h"
#include "text/grammar.h"

namespace nibble {

// The texts that the whole pattern matches; ^ at its beginning and $ at its end change nothing.
Result<Grammar> RegexGrammar(std::string_view pattern, const GrammarLimits& limits = {});

// Adds the texts in which the pattern is found, so without ^ and $ anything may stand around it. `spell`
// makes the node for one character of a set.
using SpellChars = std::function<Grammar::NodeId(const CharSet&)>;
Result<Grammar::NodeId> AddRegexSearch(std::string_view pattern, const SpellChars& spell, Grammar* grammar);

}  // namespace nibble
