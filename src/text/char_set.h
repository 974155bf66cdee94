// SPDX-License-Identifier: Apache-2.0
// Floor 5. Sets of characters as ranges of code points, and the byte sequences that spell them in UTF-8.
#pragma once
#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <vector>

namespace nibble {

// Surrogates are no characters: they are dropped from every range.
class CharSet {
 public:
  struct Range {
    char32_t first, last;
    bool operator==(const Range&) const = default;
  };
  CharSet() = default;
  CharSet(std::initializer_list<Range> ranges);
  static const CharSet& All();

  void Add(char32_t first, char32_t last);  // REQUIRES: first <= last <= 0x10FFFF
  void Add(const CharSet& other);
  bool Contains(char32_t c) const;
  bool empty() const { return ranges_.empty(); }
  CharSet Complement() const;
  CharSet And(const CharSet& other) const;
  std::span<const Range> ranges() const;  // sorted, apart from each other

 private:
  mutable std::vector<Range> ranges_;  // sorted when someone asks: adding n ranges costs no n sorts
  mutable bool sorted_ = true;
};

// Bytes [lo[i], hi[i]] at place i < size: the spellings of neighbouring characters.
struct ByteRun {
  uint8_t size = 0;
  std::array<uint8_t, 4> lo{}, hi{};
};

std::vector<ByteRun> ToUtf8(const CharSet& set);

}  // namespace nibble
