// SPDX-License-Identifier: Apache-2.0
// Floor 5. Character classes, case mapping and normalization forms as the reference tokenizer library sees
// them (its Unicode versions differ from our libraries': unicode_tables.h).
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace nibble::unicode {

bool IsWhitespace(char32_t c);   // White_Space
bool IsNumeric(char32_t c);      // general category N*
bool IsPunctuation(char32_t c);  // general category P*, and the ASCII symbols
bool IsWord(char32_t c);         // \w of the reference's second regex library: Alphabetic, M, Nd, Pc, joiners

void AppendLowercase(char32_t c, std::string* out);

enum class NormalForm : uint8_t { kNfc, kNfd, kNfkc, kNfkd };

// The normalization form of `text`, which is UTF-8. O(n) also for long runs of combining marks.
std::string Normalize(std::string_view text, NormalForm form);

// Replaces, in place and without changing any length, characters that PCRE2's tables do not know yet by older
// ones of the same kind. False when there was none: then *copy was not touched and `text` serves as it is.
bool AliasForPatterns(std::string_view text, std::string* copy);

}  // namespace nibble::unicode
