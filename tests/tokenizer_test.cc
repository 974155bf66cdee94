// SPDX-License-Identifier: Apache-2.0
// What a caller sees of a tokenizer: rows T08 to T13 of the list of bad inputs, special tokens in plain text,
// streaming, and use from several threads.
#include "text/tokenizer.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/utf8.h"
#include "tests/support/tokenizer_strings.h"

namespace nibble {
namespace {

using nlohmann::json;
using Ids = std::vector<int32_t>;

const std::string kGolden = NIBBLE_SOURCE_DIR "/tests/golden/tokenizers/";

std::unique_ptr<Tokenizer> Make(const json& file) {
  const auto document = Json::Parse(file.dump(), {.max_bytes = size_t{64} << 20}, "tokenizer.json");
  EXPECT_TRUE(document.ok()) << document.status().message();
  auto tokenizer = Tokenizer::Parse(document->root());
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

json Read(const std::string& name) { return json::parse(std::ifstream(kGolden + name)); }

// Characters `alphabet` with ids from 0, merges, added tokens with the ids behind.
json Small(const std::vector<std::string>& vocabulary, const json& merges, const json& added) {
  json file = {{"added_tokens", json::array()}, {"model", {{"type", "BPE"}, {"merges", merges}}}};
  int id = 0;
  for (const std::string& token : vocabulary) file["model"]["vocab"][token] = id++;
  for (json token : added) {
    const json& known = file["model"]["vocab"];
    token["id"] =
        known.contains(token["content"]) ? known[token["content"].get<std::string>()].get<int>() : id++;
    file["added_tokens"].push_back(token);
  }
  return file;
}

TEST(Tokenizer, RefusesBytesThatAreNotUtf8) {  // T08
  const std::pair<std::string, size_t> cases[] = {
      {"\xED\xA0\x80", 0},       {"ab\xC0\x80", 2},           {"\xC3", 0},         {"a\x80", 1},
      {"ok\xF4\x90\x80\x80", 2}, {"\xF0\x9F\x98", 0},         {"\xFF", 0},         {"x\xE0\x80\x80", 1},
      {"\xED\xBF\xBF", 0},       {"\xF8\x88\x80\x80\x80", 0}, {"e\xCC\x81\xCC", 3}};
  for (const char* name : {"llama3.json", "llama2.json", "tricky.json"}) {
    const auto tokenizer = Make(Read(name));
    for (const auto& [text, offset] : cases) {
      const auto ids = tokenizer->Encode(text, SpecialTokens::kAdd);
      ASSERT_FALSE(ids.ok());
      EXPECT_EQ(ids.status().code(), Code::kInvalidArgument);
      EXPECT_NE(ids.status().message().find(fmt::format("byte {} is", offset)), std::string::npos)
          << ids.status().message();
    }
  }
}

TEST(Tokenizer, EveryControlCharacterRoundTrips) {  // T08
  std::string text;
  for (char32_t c = 0; c < 0xA0; ++c) AppendUtf8(c, &text);
  for (const char32_t c : {0xFFFEu, 0xFFFFu, 0xFFFDu, 0xFEFFu, 0xE000u, 0x10FFFFu, 0x200Eu, 0x2028u}) {
    AppendUtf8(c, &text);
  }
  for (const char* name : {"gpt2.json", "llama3.json", "mistral.json", "llama2.json"}) {
    const auto tokenizer = Make(Read(name));
    const auto ids = tokenizer->Encode(text, SpecialTokens::kAdd);
    ASSERT_TRUE(ids.ok()) << ids.status().message();
    EXPECT_EQ(tokenizer->Decode(*ids, true), text) << name;
    const auto zero = tokenizer->Encode(std::string(1, '\0'), SpecialTokens::kOmit);
    ASSERT_TRUE(zero.ok());
    EXPECT_GE(zero->size(), 1u);
  }
}

TEST(Tokenizer, PlainTextMakesNoSpecialToken) {  // T09
  for (const auto& [name, spelled] :
       {std::pair("llama3.json", "<|eot_id|>"), std::pair("qwen2.json", "<|im_end|>"),
        std::pair("llama2.json", "</s>"), std::pair("mistral.json", "</s>")}) {
    const auto tokenizer = Make(Read(name));
    const std::string text = std::string("before ") + spelled + spelled + " after";
    const auto has_special = [&](const Ids& ids) {
      return std::any_of(ids.begin(), ids.end(), [&](int32_t id) { return tokenizer->IsSpecial(id); });
    };
    EXPECT_TRUE(has_special(*tokenizer->Encode(text, SpecialTokens::kOmit))) << name;
    const Ids plain = *tokenizer->Encode(text, SpecialTokens::kOmit, SpecialText::kPlain);
    EXPECT_FALSE(has_special(plain)) << name;
    EXPECT_EQ(tokenizer->Decode(plain, true), text) << name;
  }
}

// The shortcut of ignore_merges must not be a way to a special token either.
TEST(Tokenizer, PlainPieceThatSpellsASpecialToken) {
  json file = Small({"a", "b", "ab"}, json::array(), json::array());
  file["model"]["ignore_merges"] = true;
  file["added_tokens"] = {{{"id", 2}, {"content", "ab"}, {"special", true}}};
  const auto tokenizer = Make(file);
  EXPECT_EQ(*tokenizer->Encode("ab", SpecialTokens::kOmit), Ids({2}));
  EXPECT_EQ(*tokenizer->Encode("ab", SpecialTokens::kOmit, SpecialText::kPlain), Ids({0, 1}));
}

std::unique_ptr<Tokenizer> Bytes() {
  std::vector<std::string> tokens;
  for (int b = 0; b < 256; ++b) tokens.push_back(fmt::format("<0x{:02X}>", b));
  json file = Small(tokens, json::array(), json::array());
  file["model"]["byte_fallback"] = true;
  file["model"]["vocab"]["x"] = 256;
  file["decoder"] = {{"type", "Sequence"}, {"decoders", {{{"type", "ByteFallback"}}, {{"type", "Fuse"}}}}};
  return Make(file);
}

Ids BytesOf(std::string_view text) {
  Ids ids;
  for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
  return ids;
}

std::vector<std::string> Pushes(const Tokenizer& tokenizer, const Ids& ids) {
  StreamDecoder stream(tokenizer);
  std::vector<std::string> pieces;
  for (const int32_t id : ids) pieces.push_back(stream.Push(id));
  pieces.push_back(stream.Flush());
  return pieces;
}

TEST(Stream, HoldsHalfACharacterThenReplacesIt) {  // T10
  const auto gpt2 = Make(Read("gpt2.json"));
  const auto id = [&](const char* text) { return (*gpt2->Encode(text, SpecialTokens::kOmit)).at(0); };
  // U+00A2 is the byte alphabet's spelling of byte A2: ids of single bytes, by TokenText.
  std::vector<int32_t> byte_ids(256, -1);
  for (int32_t i = 0; i < gpt2->vocab_size(); ++i) {
    if (gpt2->TokenText(i) == "\xC3\xA2") byte_ids[0xE2] = i;  // U+00E2 spells E2
    if (gpt2->TokenText(i) == "\xC4\xA4") byte_ids[0x82] = i;  // U+0124 spells 82
    if (gpt2->TokenText(i) == "\xC2\xAC") byte_ids[0xAC] = i;  // U+00AC spells itself
  }
  const int32_t e2 = byte_ids[0xE2], b82 = byte_ids[0x82], ac = byte_ids[0xAC];
  EXPECT_EQ(Pushes(*gpt2, {e2, b82, ac}), std::vector<std::string>({"", "", "\xE2\x82\xAC", ""}));
  EXPECT_EQ(Pushes(*gpt2, {e2, b82}), std::vector<std::string>({"", "", "\xEF\xBF\xBD"}));
  EXPECT_EQ(Pushes(*gpt2, {b82, id("a")}), std::vector<std::string>({"\xEF\xBF\xBD", "a", ""}));
  EXPECT_EQ(Pushes(*gpt2, {e2, id("a")}), std::vector<std::string>({"",
                                                                    "\xEF\xBF\xBD"
                                                                    "a",
                                                                    ""}));
  EXPECT_EQ(Pushes(*gpt2, {-1, 1 << 30, e2}), std::vector<std::string>({"", "", "", "\xEF\xBF\xBD"}));
}

TEST(Stream, ByteFallbackRuns) {  // T10, T11
  const auto tokenizer = Bytes();
  const std::string family = "\xF0\x9F\x91\xA9\xE2\x80\x8D\xF0\x9F\x91\xA7";
  Ids ids = BytesOf(family);
  ids.push_back(256);
  const auto pieces = Pushes(*tokenizer, ids);
  for (size_t i = 0; i + 2 < pieces.size(); ++i)
    EXPECT_EQ(pieces[i], "") << "a run is text as a whole or not at all";
  EXPECT_EQ(pieces[pieces.size() - 2], family + "x");
  // One bad byte makes every byte of its run U+FFFD, as in the reference's whole decode.
  EXPECT_EQ(tokenizer->Decode(BytesOf("\xC3\xA9\xFF"), true), "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_EQ(Pushes(*tokenizer, BytesOf("\xC3\xA9\xFF\x41")),
            std::vector<std::string>({"", "", "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD", "\xEF\xBF\xBD", ""}));
}

// An emoji of seven code points, token by token: only whole characters come out.
TEST(Stream, WholeCharactersOnly) {  // T11
  const std::string emoji =
      "\xF0\x9F\x91\xA9\xE2\x80\x8D\xF0\x9F\x91\xA9\xE2\x80\x8D\xF0\x9F\x91\xA7\xE2\x80\x8D\xF0\x9F\x91\xA6";
  for (const char* name : {"gpt2.json", "llama3.json", "llama2.json", "mistral.json"}) {
    const auto tokenizer = Make(Read(name));
    const Ids ids = *tokenizer->Encode("a " + emoji + " b", SpecialTokens::kAdd);
    std::string joined;
    for (const std::string& piece : Pushes(*tokenizer, ids)) {
      EXPECT_EQ(FindInvalidUtf8(piece), std::string::npos);
      EXPECT_EQ(piece.find("\xEF\xBF\xBD"), std::string::npos);
      joined += piece;
    }
    EXPECT_EQ(joined, "a " + emoji + " b") << name;
  }
}

TEST(Stream, FlushStartsANewText) {
  const auto tokenizer = Make(Read("llama2.json"));
  const Ids ids = *tokenizer->Encode("word", SpecialTokens::kOmit);
  StreamDecoder stream(*tokenizer);
  for (int round = 0; round < 2; ++round) {
    std::string text;
    for (const int32_t id : ids) text += stream.Push(id);
    EXPECT_EQ(text + stream.Flush(), "word");  // the first space is stripped both times
  }
}

TEST(AddedTokens, LongestAtTheLeftmostPlace) {  // T12
  const json added = {{{"content", "<a>"}, {"special", true}},   {{"content", "<a><a>x"}, {"special", true}},
                      {{"content", "<a>b"}, {"special", true}},  {{"content", "a>b<"}, {"special", true}},
                      {{"content", "w"}, {"single_word", true}}, {{"content", "[L]"}, {"lstrip", true}},
                      {{"content", "[R]"}, {"rstrip", true}}};
  const auto tokenizer = Make(Small({"<", "a", ">", "b", "x", " ", "w", "y"}, json::array(), added));
  const auto encode = [&](const char* text) { return *tokenizer->Encode(text, SpecialTokens::kOmit); };
  EXPECT_EQ(encode("<a>"), Ids({8}));
  EXPECT_EQ(encode("<a>b"), Ids({10}));
  EXPECT_EQ(encode("<a>b<"), Ids({10, 0}));
  EXPECT_EQ(encode("<a><a>x"), Ids({9}));
  EXPECT_EQ(encode("<a><a><a>x"), Ids({8, 9}));
  EXPECT_EQ(encode("a>b<a>"), Ids({11, 1, 2}));
  EXPECT_EQ(encode("w yw wy w"), Ids({6, 5, 7, 6, 5, 6, 7, 5, 6}));
  EXPECT_EQ(encode("x  [L]  x[R]  x"), Ids({4, 12, 5, 5, 4, 13, 4}));
}

TEST(AddedTokens, DeclaredIdsHold) {
  json file = Small({"a", "b"}, json::array(), {{{"content", "<s>"}, {"special", true}}});
  file["added_tokens"][0]["id"] = 7;
  const auto tokenizer = Make(file);
  EXPECT_EQ(*tokenizer->Encode("a<s>b", SpecialTokens::kOmit), Ids({0, 7, 1}));
  EXPECT_EQ(tokenizer->vocab_size(), 8);
  EXPECT_EQ(tokenizer->TokenText(7), "<s>");
  EXPECT_EQ(tokenizer->TokenText(5), "");
  EXPECT_TRUE(tokenizer->IsSpecial(7));
  EXPECT_FALSE(tokenizer->IsSpecial(1));
  EXPECT_FALSE(tokenizer->IsSpecial(-1));
  EXPECT_EQ(tokenizer->Decode(Ids({0, 7, 5, 99, 1}), false), "a <s> b");  // no decoder: joined by spaces
}

TEST(Tokenizer, RefusesMoreTextThanItHasMemoryFor) {
  const auto tokenizer = Make(Small({"a"}, json::array(), json::array()));
  const auto ids = tokenizer->Encode(std::string((size_t{64} << 20) + 1, 'a'), SpecialTokens::kOmit);
  ASSERT_FALSE(ids.ok());
  EXPECT_NE(ids.status().message().find("67108865"), std::string::npos);
}

TEST(Tokenizer, ThreadsAgree) {
  const auto tokenizer = Make(Read("tricky.json"));
  const StringGenerator generator(Read("atoms.json"));
  const auto run = [&](Fnv* hash) {
    for (uint64_t i = 0; i < 300; ++i) {
      const auto ids = tokenizer->Encode(generator.Generate(i), SpecialTokens::kAdd);
      if (!ids.ok()) continue;
      hash->Ids(*ids);
      hash->Text(tokenizer->Decode(*ids, true));
    }
  };
  Fnv hashes[4];
  std::vector<std::thread> threads;
  for (Fnv& hash : hashes) threads.emplace_back([&run, &hash] { run(&hash); });
  for (std::thread& thread : threads) thread.join();
  for (const Fnv& hash : hashes) EXPECT_EQ(hash.value(), hashes[0].value());
  EXPECT_NE(hashes[0].value(), Fnv().value());
}

}  // namespace
}  // namespace nibble
