// SPDX-License-Identifier: Apache-2.0
// Streaming text with stop strings, over a byte-level toy tokenizer: pieces join to the text, no piece begins
// a stop string that later completes, no piece ends inside a character.
#include "engine/text_stream.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/utf8.h"
#include "text/byte_alphabet.h"

namespace nibble {
namespace {

// A byte-level tokenizer of 256 entries: token i is byte i.
std::unique_ptr<Tokenizer> MakeByteTokenizer() {
  nlohmann::json vocab;
  for (int b = 0; b < 256; ++b) {
    std::string character;
    AppendUtf8(kByteAlphabet.to_char[static_cast<size_t>(b)], &character);
    vocab[character] = b;
  }
  const nlohmann::json tokenizer{
      {"added_tokens", nlohmann::json::array()},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
      {"decoder", {{"type", "ByteLevel"}}},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", nlohmann::json::array()}}}};
  auto json = Json::Parse(tokenizer.dump(), {}, "tokenizer.json");
  auto made = Tokenizer::Parse(json->root());
  EXPECT_TRUE(made.ok()) << made.status().message();
  return *std::move(made);
}

struct Streamed {
  std::vector<std::string> pieces;
  std::string text;
  bool stopped;
  int index;
};

Streamed Stream(std::string_view text, std::vector<std::string> stop) {
  const auto tokenizer = MakeByteTokenizer();
  TextStream stream(*tokenizer, std::move(stop));
  Streamed out{};
  for (char c : text) {
    const auto piece = stream.Push(static_cast<uint8_t>(c));
    if (!piece.empty()) out.pieces.emplace_back(piece);
    if (stream.stopped()) break;
  }
  const auto rest = stream.Finish();
  if (!rest.empty()) out.pieces.emplace_back(rest);
  for (const std::string& piece : out.pieces) out.text += piece;
  out.stopped = stream.stopped();
  out.index = stream.stop_index();
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
  EXPECT_EQ(Stream("xyz", {"", "z"}).index, 1);
  EXPECT_EQ(Stream("one two three", {"three", "two"}).index, 1);
  EXPECT_EQ(Stream("one", {"two"}).index, -1);
}

TEST(TextStream, IncompleteCharacterAtTheEndBecomesReplacement) {
  const Streamed s = Stream("a\xE2\x82", {});
  EXPECT_EQ(s.text, "a\xEF\xBF\xBD");
}

}  // namespace
}  // namespace nibble
