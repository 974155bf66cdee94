// SPDX-License-Identifier: Apache-2.0
// The string generator of tools/golden/tokenizers.py, in C++: the same bytes for the same index, so that the
// reference's answers can be stored as hashes. Keep the two in step.
#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/utf8.h"

namespace nibble {

class SplitMix {  // splitmix64 (Steele, Lea, Flood 2014)
 public:
  explicit SplitMix(uint64_t seed) : state_(seed) {}
  uint64_t Below(uint64_t n) {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (z ^ (z >> 31)) % n;
  }

 private:
  uint64_t state_;
};

class StringGenerator {
 public:
  explicit StringGenerator(nlohmann::json atoms) : atoms_(std::move(atoms)) {}

  std::string Generate(uint64_t index) const {
    SplitMix random(index);
    std::string out;
    for (uint64_t left = random.Below(9); left > 0; --left) {
      AppendPart(&random, &out);
      if (random.Below(200) == 0) AppendHex(Pick(&random, "invalid"), &out);
    }
    return out;
  }

  static std::vector<int32_t> RandomIds(uint64_t index, int vocab_size) {
    SplitMix random(index ^ 0x5555555555555555u);
    std::vector<int32_t> ids(random.Below(16));
    for (int32_t& id : ids) id = static_cast<int32_t>(random.Below(static_cast<uint64_t>(vocab_size) + 3));
    return ids;
  }

  static void AppendHex(std::string_view hex, std::string* out) {
    for (size_t i = 0; i + 1 < hex.size(); i += 2) {
      out->push_back(static_cast<char>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16)));
    }
  }

 private:
  static char32_t Scalar(uint64_t n) { return static_cast<char32_t>(n < 0xD800 ? n : n + 0x800); }

  std::string Pick(SplitMix* random, const char* list) const {
    const auto& items = atoms_[list];
    return items[random->Below(items.size())].get<std::string>();
  }

  static char32_t InRanges(SplitMix* random, const nlohmann::json& ranges, size_t count) {
    const auto& range = ranges[random->Below(count)];
    const auto first = range[0].get<uint64_t>(), last = range[1].get<uint64_t>();
    return static_cast<char32_t>(first + random->Below(last - first + 1));
  }

  void AppendPart(SplitMix* random, std::string* out) const {
    static constexpr const char* kLists[] = {"words", "words", "code", "emoji", "tokens"};
    const auto& scripts = atoms_["scripts"];
    const auto& marks = atoms_["marks"];
    const uint64_t kind = random->Below(12);
    if (kind == 0) {
      AppendUtf8(Scalar(random->Below(0x110000 - 0x800)), out);
    } else if (kind == 1) {
      AppendUtf8(Scalar(random->Below(0x10000 - 0x800)), out);
    } else if (kind == 2) {
      AppendUtf8(InRanges(random, scripts, scripts.size()), out);
    } else if (kind == 3) {
      const auto& spaces = atoms_["spaces"];
      const auto space = spaces[random->Below(spaces.size())].get<char32_t>();
      for (uint64_t n = 1 + random->Below(12); n > 0; --n) AppendUtf8(space, out);
    } else if (kind == 4) {
      for (uint64_t n = 1 + random->Below(10); n > 0; --n) AppendUtf8(InRanges(random, scripts, 1), out);
    } else if (kind == 5) {
      AppendUtf8(InRanges(random, scripts, scripts.size()), out);
      for (uint64_t n = 1 + random->Below(6); n > 0; --n)
        AppendUtf8(InRanges(random, marks, marks.size()), out);
    } else if (kind == 6) {
      for (uint64_t n = 1 + random->Below(8); n > 0; --n)
        out->push_back(static_cast<char>(48 + random->Below(10)));
    } else {
      out->append(Pick(random, kLists[kind - 7]));
    }
  }

  nlohmann::json atoms_;
};

class Fnv {  // FNV-1a, 64 bits
 public:
  void Bytes(std::string_view bytes) {
    for (const char b : bytes) value_ = (value_ ^ static_cast<unsigned char>(b)) * 0x100000001B3u;
  }
  void Word(uint32_t word) {
    for (int i = 0; i < 4; ++i) {
      value_ = (value_ ^ (word & 0xFF)) * 0x100000001B3u;
      word >>= 8;
    }
  }
  void Ids(std::span<const int32_t> ids) {
    Word(static_cast<uint32_t>(ids.size()));
    for (const int32_t id : ids) Word(static_cast<uint32_t>(id));
  }
  void Text(std::string_view text) {
    Word(static_cast<uint32_t>(text.size()));
    Bytes(text);
  }
  uint64_t value() const { return value_; }

 private:
  uint64_t value_ = 0xCBF29CE484222325u;
};

}  // namespace nibble
