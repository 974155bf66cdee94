// SPDX-License-Identifier: Apache-2.0
// Floor 0. UTF-8: checking bytes we did not write, and walking text that has been checked.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace nibble {

// What stands at one place of a byte string.
struct Utf8Step {
  enum Kind : uint8_t {
    kValid,      // a whole character of `bytes` bytes
    kInvalid,    // `bytes` bytes that no continuation can repair (a maximal subpart, Unicode 3.9, D93b)
    kTruncated,  // the end of the input cuts a character that is well-formed so far
  };
  Kind kind;
  int bytes;  // 1 to 4; for kTruncated all that is left
};

// REQUIRES: pos < bytes.size(). Surrogates, overlong forms and values above U+10FFFF are invalid.
Utf8Step ScanUtf8(std::string_view bytes, size_t pos);

// Offset of the first byte that is not part of a well-formed character; npos when all of it is UTF-8.
size_t FindInvalidUtf8(std::string_view bytes);

// Appends `bytes` with every maximal invalid subpart, and a truncated end, replaced by U+FFFD.
void AppendLossyUtf8(std::string_view bytes, std::string* out);

// Code point at *pos, which moves behind it. REQUIRES: text is UTF-8 and *pos is a character boundary.
char32_t NextChar(std::string_view text, size_t* pos);

// Code point that ends at *pos, which moves before it. REQUIRES: as above, and *pos > 0.
char32_t PreviousChar(std::string_view text, size_t* pos);

void AppendUtf8(char32_t c, std::string* out);

inline constexpr std::string_view kReplacementChar = "\xEF\xBF\xBD";  // U+FFFD

}  // namespace nibble
