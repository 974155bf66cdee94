// SPDX-License-Identifier: Apache-2.0
// Floor 5. Translates the split patterns of tokenizer.json (Oniguruma syntax) into PCRE2's, and refuses what
// could take more than linear time or means something else in the two. See docs/formats/tokenizer.md.
#pragma once
#include <string>
#include <string_view>

#include "base/result.h"

namespace nibble {

// Callout number placed behind every choice that can be taken back; the matcher counts the visits.
inline constexpr int kChoiceCallout = 1;

// kUnsupported names the construct and where it stands in the pattern. The result has no capture groups.
Result<std::string> TranslatePattern(std::string_view pattern);

// Matches `text` as it is.
std::string QuotePattern(std::string_view text);

}  // namespace nibble
