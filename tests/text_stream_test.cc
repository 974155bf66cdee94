// SPDX-License-Identifier: Apache-2.0
// Streaming text with stop strings, over a byte-level toy tokenizer: pieces join to the text, no piece begins
// a stop string that later completes, no piece ends inside a character.
#include "engine/text_stream.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

// Token i is byte i; decoding replaces an incomplete character at the end by U+FFFD, as real tokenizers do.
class ByteTokenizer final : public Tokenizer {
 public:
  Result<std::vector<int32_t>> Encode(std::string_view text, SpecialTokens, SpecialText) const override {
    return std::vector<int32_t>(reinterpret_cast<const uint8_t*>(text.data()),
                                reinterpret_cast<const uint8_t*>(text.data()) + text.size());
  }
  std::string Decode(std::span<const int32_t> ids, bool) const override {
    std::string out;
    for (size_t i = 0; i < ids.size();) {
      const auto b = static_cast<uint8_t>(ids[i]);
      const size_t n = b < 0x80 ? 1 : b < 0xE0 ? 2 : b < 0xF0 ? 3 : 4;
      if (i + n > ids.size()) {
        out += "\xEF\xBF\xBD";
        break;
      }
      for (size_t j = 0; j < n; ++j) out += static_cast<char>(ids[i + j]);
      i += n;
    }
    return out;
  }
  std::string TokenText(int32_t id) const override { return {static_cast<char>(id)}; }
  bool IsSpecial(int32_t) const override { return false; }
  int vocab_size() const override { return 256; }
};

struct Streamed {
  std::vector<std::string> pieces;
  std::string text;
  bool stopped;
};

Streamed Stream(std::string_view text, std::vector<std::string> stop) {
  const ByteTokenizer tokenizer;
  TextStream stream(tokenizer, std::move(stop));
  Streamed out{};
  for (char c : text) {
    const auto piece = stream.Push(static_cast<uint8_t>(c));
    if (!piece.empty()) out.pieces.emplace_back(piece);
    if (stream.stopped()) break;
  }
  const auto rest = stream.Finish();
  if (!rest.empty()) out.pieces.emplace_back(rest);
  out.text = stream.text();
  out.stopped = stream.stopped();
  return out;
}

std::string Join(const std::vector<std::string>& pieces) {
  std::string all;
  for (const std::string& p : pieces) all += p;
  return all;
}

TEST(TextStream, WithoutStopEveryCharacterComesAtOnce) {
  const Streamed s = Stream("ab\xC3\xA9", {});
  EXPECT_EQ(s.pieces, (std::vector<std::string>{"a", "b", "\xC3\xA9"}));
  EXPECT_FALSE(s.stopped);
}

TEST(TextStream, StopStringIsCutAndNeverShown) {
  const Streamed s = Stream("hello\n\nUser: x", {"\n\nUser:"});
  EXPECT_TRUE(s.stopped);
  EXPECT_EQ(s.text, "hello");
  EXPECT_EQ(Join(s.pieces), "hello");
}

TEST(TextStream, FalseBeginningIsReleased) {
  const Streamed s = Stream("a\n\nUse it", {"\n\nUser:"});
  EXPECT_FALSE(s.stopped);
  EXPECT_EQ(Join(s.pieces), "a\n\nUse it");
}

TEST(TextStream, BeginningAtTheEndIsReleasedByFinish) {
  const Streamed s = Stream("abc\n\nUs", {"\n\nUser:"});
  EXPECT_EQ(s.text, "abc\n\nUs");
  EXPECT_EQ(s.pieces.back(), "\n\nUs");
}

TEST(TextStream, OverlappingAndSeveralStops) {
  EXPECT_EQ(Stream("aaab", {"aab"}).text, "a");  // the match begins inside a failed one
  EXPECT_EQ(Stream("one two three", {"three", "two"}).text, "one ");
  EXPECT_EQ(Stream("xyz", {"", "z"}).text, "xy");  // an empty stop string stops nothing
}

TEST(TextStream, IncompleteCharacterAtTheEndBecomesReplacement) {
  const Streamed s = Stream("a\xE2\x82", {});
  EXPECT_EQ(s.text, "a\xEF\xBF\xBD");
}

}  // namespace
}  // namespace nibble
