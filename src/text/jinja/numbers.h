// SPDX-License-Identifier: Apache-2.0
// Floor 5. Numbers in texts, as Python's int() and float() read them.
#pragma once
#include <cstdint>
#include <optional>
#include <string_view>

namespace nibble::jinja {

enum class Parsed : uint8_t { kNumber, kNone, kTooLarge };

// Blanks around it, a sign, underscores between digits; base 0 takes it from a prefix.
Parsed ParseInteger(std::string_view text, int64_t base, int64_t* out);
std::optional<double> ParseReal(std::string_view text);

// round(): halves to the even neighbour. digits may be negative.
double RoundReal(double value, int64_t digits);

}  // namespace nibble::jinja
