// SPDX-License-Identifier: Apache-2.0
// Floor 5. int(), float() and round().
#include "text/jinja/numbers.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "text/jinja/pystr.h"

namespace nibble::jinja {
namespace {

// The text without its underscores; false where one does not stand between two digits.
bool WithoutUnderscores(Text text, std::string* out) {
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '_') {
      *out += text[i];
    } else if (i == 0 || i + 1 == text.size() || !std::isalnum(static_cast<unsigned char>(text[i - 1])) ||
               !std::isalnum(static_cast<unsigned char>(text[i + 1]))) {
      return false;
    }
  }
  return !out->empty();
}

}  // namespace

Parsed ParseInteger(std::string_view text, int64_t base, int64_t* out) {
  text = Strip(text);
  const bool negative = text.starts_with('-');
  if (negative || text.starts_with('+')) text.remove_prefix(1);
  const char letter = text.size() > 2 && text[0] == '0' ? static_cast<char>(text[1] | 0x20) : '\0';
  const int prefixed = letter == 'x' ? 16 : letter == 'o' ? 8 : letter == 'b' ? 2 : 0;
  if (prefixed != 0 && (base == 0 || base == prefixed)) {
    base = prefixed;
    text.remove_prefix(2);
    if (text.starts_with('_')) text.remove_prefix(1);
  } else if (base == 0) {
    base = 10;
    if (text.starts_with('0') && text.find_first_not_of("0_") != Text::npos) return Parsed::kNone;
  }
  std::string digits;
  if (base < 2 || base > 36 || !WithoutUnderscores(text, &digits)) return Parsed::kNone;
  uint64_t size = 0;
  const auto [stop, error] =
      std::from_chars(digits.data(), digits.data() + digits.size(), size, static_cast<int>(base));
  if (error == std::errc::invalid_argument || stop != digits.data() + digits.size()) return Parsed::kNone;
  const uint64_t most = negative ? uint64_t{1} << 63 : (uint64_t{1} << 63) - 1;
  if (error != std::errc() || size > most) return Parsed::kTooLarge;
  *out = static_cast<int64_t>(negative ? uint64_t{0} - size : size);
  return Parsed::kNumber;
}

std::optional<double> ParseReal(std::string_view text) {
  std::string digits;
  if (!WithoutUnderscores(Strip(text), &digits)) return std::nullopt;
  // strtod would also take hexadecimal digits and "nan(...)".
  if (digits.find_first_of("xXpP(") != std::string::npos) return std::nullopt;
  char* end = nullptr;
  const double value = std::strtod(digits.c_str(), &end);
  if (end != digits.c_str() + digits.size()) return std::nullopt;
  return value;
}

double RoundReal(double value, int64_t digits) {
  constexpr int64_t kAllDigits = 323;  // of the smallest double
  if (!std::isfinite(value) || digits > kAllDigits) return value;
  if (digits < -308) return std::copysign(0.0, value);
  if (digits < 0) {
    const double unit = std::pow(10.0, static_cast<double>(-digits));
    return std::nearbyint(value / unit) * unit;
  }
  char text[700];  // 309 digits, a point, 323 more
  const int n = std::snprintf(text, sizeof text, "%.*f", static_cast<int>(digits), value);
  return n > 0 ? std::strtod(text, nullptr) : value;
}

}  // namespace nibble::jinja
