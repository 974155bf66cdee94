// SPDX-License-Identifier: Apache-2.0
// Breaks good inputs at random, the same for the same seed: bits flipped, numbers replaced by those at which
// arithmetic breaks, pieces cut out, repeated and put in.
#pragma once
#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace nibble {

inline const std::vector<std::string> kNumbers = {"0",
                                                  "-1",
                                                  "1",
                                                  "2147483647",
                                                  "2147483648",
                                                  "4294967295",
                                                  "4294967296",
                                                  "9223372036854775807",
                                                  "9223372036854775808",
                                                  "18446744073709551615",
                                                  "18446744073709551616",
                                                  "281474976710656"};
// What JSON has to offer beside numbers, and the numbers.
inline std::vector<std::string> JsonPieces() {
  std::vector<std::string> pieces = kNumbers;
  pieces.insert(pieces.end(), {"1e308", "null", "[", "{", "\"", "\\u0000", "\\ud800", "\xff"});
  return pieces;
}

class Mutator {
 public:
  // `pieces`: what is put in beside the numbers.
  explicit Mutator(uint64_t seed, std::vector<std::string> pieces = JsonPieces())
      : state_(seed), pieces_(std::move(pieces)) {}

  std::string Break(std::string text) {
    for (size_t i = 0, n = 1 + Below(4); i < n && !text.empty(); ++i) BreakOnce(&text);
    return text;
  }
  size_t Below(size_t n) {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return n == 0 ? 0 : (state_ >> 33) % n;
  }

 private:
  void BreakOnce(std::string* text) {
    const size_t at = Below(text->size()), length = 1 + Below(std::min<size_t>(16, text->size() - at));
    switch (Below(6)) {
      case 0:
        (*text)[at] = static_cast<char>((*text)[at] ^ (1 << Below(8)));
        return;
      case 1: {  // the next number
        const size_t begin = text->find_first_of("0123456789", at);
        if (begin == std::string::npos) return;
        const size_t end = std::min(text->find_first_not_of("0123456789", begin), text->size());
        text->replace(begin, end - begin, kNumbers[Below(kNumbers.size())]);
        return;
      }
      case 2:
        text->erase(at, length);
        return;
      case 3:
        text->insert(at, text->substr(Below(text->size()), length));
        return;
      case 4:
        text->insert(at, pieces_[Below(pieces_.size())]);
        return;
      default:
        text->resize(at);
    }
  }
  uint64_t state_;
  std::vector<std::string> pieces_;
};

}  // namespace nibble
