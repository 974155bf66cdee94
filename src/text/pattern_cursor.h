// SPDX-License-Identifier: Apache-2.0
// Floor 5. Reading a notation character by character: what GBNF and regular expressions share.
#pragma once
#include <algorithm>
#include <optional>
#include <string_view>

#include "base/utf8.h"

namespace nibble {

class PatternCursor {
 public:
  explicit PatternCursor(std::string_view text) : text_(text) {}  // REQUIRES: UTF-8

  bool End() const { return pos_ >= text_.size(); }
  size_t pos() const { return pos_; }
  std::string_view text() const { return text_; }
  std::string_view From(size_t begin) const { return text_.substr(begin, pos_ - begin); }
  char Peek() const { return End() ? '\0' : text_[pos_]; }  // an ASCII character, or a byte of another
  bool Sees(std::string_view s) const { return text_.substr(pos_, s.size()) == s; }
  bool Eat(std::string_view s) {
    if (!Sees(s)) return false;
    pos_ += s.size();
    return true;
  }
  char32_t Next() { return NextChar(text_, &pos_); }  // REQUIRES: !End()

  // A decimal number; one above `most` counts as most + 1.
  std::optional<int> Number(int most) {
    std::optional<int> n;
    while (Peek() >= '0' && Peek() <= '9') {
      const int digit = text_[pos_++] - '0';
      n = n.value_or(0) > most / 10 ? most + 1 : std::min(n.value_or(0) * 10 + digit, most + 1);
    }
    return n;
  }
  // Exactly `digits` hexadecimal digits that name a character.
  std::optional<char32_t> Hex(int digits) {
    char32_t value = 0;
    for (int i = 0; i < digits; ++i, ++pos_) {
      const char c = Peek(), lower = static_cast<char>(c | 0x20);
      const bool decimal = c >= '0' && c <= '9';
      if (!decimal && (lower < 'a' || lower > 'f')) return std::nullopt;
      value = value * 16 + static_cast<char32_t>(decimal ? c - '0' : lower - 'a' + 10);
      if (value > 0x10FFFF) return std::nullopt;
    }
    if (value >= 0xD800 && value < 0xE000) return std::nullopt;
    return value;
  }

 private:
  std::string_view text_;
  size_t pos_ = 0;
};

}  // namespace nibble
