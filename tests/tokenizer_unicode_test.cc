// SPDX-License-Identifier: Apache-2.0
// Every code point through every character class, case mapping and normalization form, against hashes of the
// reference library's answers (tools/golden/tokenizers.py unicode).
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <vector>

#include "tests/support/tokenizer_strings.h"
#include "text/pre_tokenizer.h"
#include "text/regex.h"
#include "text/unicode.h"

namespace nibble {
namespace {

using nlohmann::json;

json Golden() {
  return json::parse(
      std::ifstream(std::filesystem::path(NIBBLE_SOURCE_DIR) / "tests/golden/tokenizers/unicode.json"));
}

template <class Visit>
void ForEachScalar(const Visit& visit) {
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (c < 0xD800 || c >= 0xE000) visit(c);
  }
}

std::string Hex(const Fnv& hash) { return fmt::format("{:016x}", hash.value()); }

std::string ClassHash(const char* pattern) {
  const auto regex = Regex::Compile(pattern);
  EXPECT_TRUE(regex.ok()) << regex.status().message();
  std::string all;
  ForEachScalar([&](char32_t c) { AppendUtf8(c, &all); });
  std::vector<Span> matches;
  const Status status = regex->FindAll(all, &matches);
  EXPECT_TRUE(status.ok()) << status.message();
  std::string flags;
  size_t next = 0;
  for (size_t pos = 0; pos < all.size();) {
    const bool matched = next < matches.size() && matches[next].begin == pos;
    next += matched;
    flags.push_back(static_cast<char>(matched));
    NextChar(all, &pos);
  }
  Fnv hash;
  hash.Bytes(flags);
  return Hex(hash);
}

TEST(Unicode, PatternClasses) {
  const json golden = Golden();
  int patterns = 0;
  for (const auto& [pattern, want] : golden.items()) {
    if (pattern.find_first_of("\\[(") == std::string::npos) continue;
    ++patterns;
    EXPECT_EQ(ClassHash(pattern.c_str()), want) << pattern;
  }
  EXPECT_EQ(patterns, 15);
}

TEST(Unicode, PreTokenizers) {
  const json golden = Golden();
  const std::pair<const char*, const char*> cases[] = {
      {"Digits", R"({"type":"Digits","individual_digits":true})"},
      {"Whitespace", R"({"type":"Whitespace"})"},
      {"WhitespaceSplit", R"({"type":"WhitespaceSplit"})"},
      {"Punctuation", R"({"type":"Punctuation","behavior":"Isolated"})"}};
  for (const auto& [name, section] : cases) {
    const auto document = Json::Parse(section, JsonLimits(), "test");
    const auto pre = LoadPreTokenizer(document->root());
    ASSERT_TRUE(pre.ok()) << pre.status().message();
    Fnv hash;
    ForEachScalar([&](char32_t c) {
      PieceList list;
      list.text = "a";
      AppendUtf8(c, &list.text);
      list.text += "a";
      list.pieces = {{0, list.text.size()}};
      EXPECT_TRUE((*pre)->Apply(&list).ok());
      hash.Bytes(std::string(1, static_cast<char>(list.pieces.size())));
    });
    EXPECT_EQ(Hex(hash), golden[name]) << name;
  }
}

std::string NormalizedHash(unicode::NormalForm form, std::string_view before, std::string_view after) {
  Fnv hash;
  std::string text;
  ForEachScalar([&](char32_t c) {
    text = before;
    AppendUtf8(c, &text);
    text += after;
    hash.Text(unicode::Normalize(text, form));
  });
  return Hex(hash);
}

TEST(Unicode, NormalForms) {
  using unicode::NormalForm;
  const json golden = Golden();
  EXPECT_EQ(NormalizedHash(NormalForm::kNfc, "", ""), golden["NFC"]);
  EXPECT_EQ(NormalizedHash(NormalForm::kNfd, "", ""), golden["NFD"]);
  EXPECT_EQ(NormalizedHash(NormalForm::kNfkc, "", ""), golden["NFKC"]);
  EXPECT_EQ(NormalizedHash(NormalForm::kNfkd, "", ""), golden["NFKD"]);
  EXPECT_NE(golden["NFC"], golden["NFD"]);  // so that the comparison can fail
}

TEST(Unicode, CanonicalOrder) {
  EXPECT_EQ(NormalizedHash(unicode::NormalForm::kNfc, "a\u0345", "\u0334\u0301"), Golden()["order"]);
}

TEST(Unicode, Lowercase) {
  Fnv hash;
  ForEachScalar([&](char32_t c) {
    std::string lower;
    unicode::AppendLowercase(c, &lower);
    hash.Text(lower);
  });
  EXPECT_EQ(Hex(hash), Golden()["Lowercase"]);
}

// IsWord must agree with Whitespace's pattern, of which it is one half.
TEST(Unicode, WordCharacters) {
  int words = 0;
  std::string all;
  ForEachScalar([&](char32_t c) {
    words += c < 0x3000 && unicode::IsWord(c);
    if (c < 0x3000) AppendUtf8(c, &all);
  });
  std::vector<Span> runs;
  ASSERT_TRUE(Regex::WordRun().FindAll(all, &runs).ok());
  int in_runs = 0;
  for (const Span& run : runs) {
    for (size_t pos = run.begin; pos < run.end; ++in_runs) NextChar(all, &pos);
  }
  EXPECT_EQ(words, in_runs);
}

}  // namespace
}  // namespace nibble
