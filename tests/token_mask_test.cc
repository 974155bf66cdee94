// SPDX-License-Identifier: Apache-2.0
// Masks of tokens: against a slow recogniser for random grammars and vocabularies, against reading token by
// token for real tokenizers, and texts drawn evenly under masks, which must be what the grammar says.
#include "text/token_mask.h"

#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>

#include "base/utf8.h"
#include "tests/support/grammar_text.h"
#include "tests/support/run_nibble.h"
#include "tests/support/schema_validator.h"
#include "tests/support/slow_grammar.h"
#include "text/gbnf.h"
#include "text/json_schema.h"
#include "text/regex_grammar.h"

namespace nibble {
namespace {

using nlohmann::json;

bool Has(std::span<const uint64_t> mask, int32_t token) {
  return (mask[static_cast<size_t>(token) / 64] >> (token % 64) & 1) != 0;
}

std::shared_ptr<const TokenTrie> Vocabulary(const std::vector<std::string>& tokens,
                                            const std::vector<int32_t>& ends) {
  TokenSpellings bytes{tokens, tokens};
  return std::make_shared<const TokenTrie>(std::move(bytes), ends);
}

// A text that completes `prefix`, found by trying letters along the automaton, shortest first; "?" when too
// many were tried.
std::optional<std::string> Completion(test::GrammarReader* reader, const std::string& prefix,
                                      const std::string& letters) {
  std::vector<std::pair<GrammarMatcher::Config, std::string>> open = {{reader->Read(prefix), prefix}};
  std::set<GrammarMatcher::Config> seen;
  for (size_t i = 0; i < open.size(); ++i) {
    if (i == 20000) return "?";
    const auto [at, text] = open[i];
    if (at == GrammarMatcher::kDead || !seen.insert(at).second) continue;
    if (reader->matcher().MayEnd(at)) return text;
    for (const char c : letters) {
      open.emplace_back(reader->matcher().Step(at, static_cast<uint8_t>(c)), text + c);
    }
  }
  return std::nullopt;
}

struct Wrong {
  int masks = 0;    // bits that say something else than the recogniser
  int spoiled = 0;  // the same when the bit of the token `flip` is turned over, to see that it is noticed
  int unknown = 0;  // bits of texts whose completions are too long to find
};

// Over all prefixes of up to three letters.
Wrong Compare(const Grammar& grammar, const std::shared_ptr<Constraint>& constraint,
              const std::string& letters, int flip) {
  const test::SlowGrammar slow(grammar);
  test::GrammarReader reader(grammar);
  std::map<std::string, std::optional<bool>>
      begins;  // whether a text of the grammar does; nothing: not known
  for (const std::string& text : test::TextsUpTo(6)) {
    if (text.find_first_not_of(letters) != std::string::npos || !slow.Accepts(text)) continue;
    for (size_t n = 0; n <= text.size(); ++n) begins[text.substr(0, n)] = true;
  }
  const auto possible = [&](const std::string& text) {
    const auto [found, added] = begins.try_emplace(text, false);
    if (added) {
      const auto whole = Completion(&reader, text, letters);
      found->second = whole && slow.Accepts(*whole);
      if (whole == "?") found->second.reset();
    }
    return found->second;
  };
  const TokenTrie& trie = constraint->trie();
  Wrong wrong;
  for (const std::string& prefix : test::TextsUpTo(3)) {
    if (prefix.find_first_not_of(letters) != std::string::npos) continue;
    ConstraintState state(constraint);
    bool read = true;
    for (const char c : prefix) read = read && state.Accept(c == 'a' ? 1 : 2);
    if (!read) continue;
    const std::span<const uint64_t> mask = state.Mask();
    for (int32_t token = 0; token < trie.vocab(); ++token) {
      const std::optional<bool> expected =
          token == trie.ends()[0] ? slow.Accepts(prefix) : possible(prefix + std::string(trie.Bytes(token)));
      wrong.unknown += expected ? 0 : 1;
      if (!expected) continue;
      wrong.masks += Has(mask, token) != *expected ? 1 : 0;
      wrong.spoiled += (Has(mask, token) != (token == flip)) != *expected ? 1 : 0;
    }
  }
  return wrong;
}

TEST(TokenMask, AllowsWhatCanBeCompletedAndNothingElse) {
  std::mt19937 rng(21);
  int compared = 0, spelled_away = 0, unknown = 0;
  for (int round = 0; round < 400; ++round) {
    const Grammar grammar = test::RandomGrammar(&rng);
    const std::string letters = round % 4 == 0 ? "a" : "ab";  // b is no token then
    std::vector<std::string> tokens = {"", "a"};
    if (letters == "ab") tokens.push_back("b");
    for (int i = 0; i < 6; ++i) {
      std::string token;
      for (auto n = 2 + rng() % 3; n > 0; --n) token += letters[rng() % letters.size()];
      tokens.push_back(token);
    }
    const auto constraint = Constraint::Make(grammar, Vocabulary(tokens, {0}));
    if (!constraint.ok()) {
      spelled_away +=
          constraint.status().message().find("no token of this model") != std::string::npos ? 1 : 0;
      continue;
    }
    ++compared;
    const Wrong wrong = Compare(grammar, *constraint, letters, static_cast<int>(rng() % tokens.size()));
    EXPECT_EQ(wrong.masks, 0) << "round " << round;
    EXPECT_GT(wrong.spoiled, 0) << "round " << round;
    unknown += wrong.unknown;
  }
  EXPECT_GE(compared, 100);
  EXPECT_GE(spelled_away, 5);
  EXPECT_LE(unknown, 100);  // of some 20,000
}

TEST(TokenMask, CharactersMayBeCutAcrossTokens) {
  const auto grammar = ParseGbnf("root ::= [\\u20ac\\u00e9]+");
  const auto constraint = Constraint::Make(*grammar, Vocabulary({"<end>", "\xe2", "\x82", "\xac", "\xe2\x82",
                                                                 "\xac\xe2", "\xc3\xa9", "\xc3", "\xa9", "a"},
                                                                {0}));
  ASSERT_TRUE(constraint.ok()) << constraint.status().message();
  ConstraintState state(*constraint);
  const auto allowed = [&state] {
    std::string out;
    for (int32_t t = 0; t < 10; ++t) out += Has(state.Mask(), t) ? static_cast<char>('0' + t) : '-';
    return out;
  };
  EXPECT_EQ(allowed(), "-1--4-67--");
  EXPECT_FALSE(state.Accept(2));
  EXPECT_TRUE(state.Accept(4));
  EXPECT_EQ(allowed(), "---3-5----");
  EXPECT_TRUE(state.Accept(5));
  EXPECT_EQ(allowed(), "--2-------");
  EXPECT_FALSE(state.MayEnd());
  EXPECT_FALSE(state.Accept(0));
  EXPECT_TRUE(state.Accept(2));
  EXPECT_TRUE(state.Accept(3));
  EXPECT_EQ(allowed(), "01--4-67--");
  EXPECT_TRUE(state.Accept(0));
}

TEST(TokenMask, EndsWhenNothingCanFollow) {
  const auto constraint = Constraint::Make(*ParseGbnf("root ::= \"ab\""), Vocabulary({"a", "b", "ab"}, {}));
  ConstraintState state(*constraint);
  EXPECT_FALSE(state.Finished());
  EXPECT_TRUE(state.Accept(0));
  EXPECT_FALSE(state.Finished());
  EXPECT_TRUE(state.Accept(1));
  EXPECT_TRUE(state.Finished());
  for (const uint64_t word : state.Mask()) EXPECT_EQ(word, 0u);
}

std::unique_ptr<Tokenizer> TokenizerAt(const std::string& file) {
  auto text = Json::ReadFile(file, {.max_bytes = size_t{256} << 20});
  NIBBLE_CHECK(text.ok(), text.status().message().c_str());
  auto tokenizer = Tokenizer::Parse(text->root());
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

std::vector<std::string> TokenizerFiles() {
  std::vector<std::string> files = {test::Model10m() + "/tokenizer.json"};
  for (const auto& entry :
       std::filesystem::directory_iterator(std::string(NIBBLE_SOURCE_DIR) + "/tests/golden/tokenizers")) {
    const std::string name = entry.path().filename();
    if (name.ends_with(".json") && !name.ends_with(".hashes.json") && name != "unicode.json" &&
        name != "atoms.json") {
      files.push_back(entry.path());
    }
  }
  std::sort(files.begin(), files.end());
  return files;
}

TEST(TokenMask, BytesOfTokensAreWhatDecodingAdds) {
  int checked = 0, first_differs = 0;
  for (const std::string& file : TokenizerFiles()) {
    const auto tokenizer = TokenizerAt(file);
    if (!tokenizer) continue;  // one that loading refuses
    const auto bytes = tokenizer->Spellings();
    if (!bytes.ok()) {
      EXPECT_EQ(bytes.status().code(), Code::kUnsupported) << file;
      continue;
    }
    ++checked;
    first_differs += bytes->first != bytes->anywhere ? 1 : 0;
    std::mt19937 rng(1);
    for (int round = 0; round < 400; ++round) {
      std::vector<int32_t> ids;
      std::string joined;
      for (auto n = 1 + rng() % 6; ids.size() < n;) {
        const auto id = static_cast<int32_t>(rng() % static_cast<unsigned>(tokenizer->vocab_size()));
        const auto at = static_cast<size_t>(id);
        if (bytes->anywhere[at].empty()) continue;
        joined += ids.empty() ? bytes->first[at] : bytes->anywhere[at];
        ids.push_back(id);
      }
      if (FindInvalidUtf8(joined) != std::string_view::npos) continue;  // decoding writes U+FFFD its own way
      EXPECT_EQ(tokenizer->Decode(ids, true), joined) << file;
    }
  }
  EXPECT_GE(checked, 8);
  EXPECT_GE(first_differs, 2);
}

constexpr const char* kSchema = R"({"type": "object", "properties": {
  "name": {"type": "string", "minLength": 1, "maxLength": 30}, "age": {"type": "integer", "minimum": 0, "maximum": 130},
  "kind": {"enum": ["red", "green", "blue"]}, "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
  "more": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["name", "age", "kind"]})";

// Draws tokens evenly until the end; after `length` tokens it takes what closes, if that may come.
std::string Draw(ConstraintState* state, const TokenTrie& trie, size_t length, std::mt19937* rng) {
  std::string text;
  for (size_t n = 0; n < 4000; ++n) {
    if (state->Finished()) return text;
    const std::span<const uint64_t> mask = state->Mask();
    std::vector<int32_t> allowed;
    int32_t closing = -1;
    size_t rank = std::string_view::npos;
    for (int32_t t = 0; t < trie.vocab(); ++t) {
      if (!Has(mask, t)) continue;
      allowed.push_back(t);
      const std::string_view bytes = trie.Bytes(t);
      const size_t at = bytes.empty()       ? 0
                        : bytes.size() == 1 ? std::string_view(" \"]}").find(bytes[0])
                                            : rank;
      if (at < rank && bytes != " ") rank = at, closing = t;
    }
    if (allowed.empty()) return text + "<stuck>";
    const int32_t token = n > length && closing >= 0 ? closing : allowed[(*rng)() % allowed.size()];
    const bool first = n == 0;
    EXPECT_TRUE(state->Accept(token));
    if (trie.Bytes(token).empty()) return text;
    text += first ? trie.FirstBytes(token) : trie.Bytes(token);
  }
  return text + "<endless>";
}

TEST(TokenMask, TextsDrawnUnderMasksAreValid) {
  std::mt19937 rng(2);
  const test::SchemaValidator validator(json::parse(kSchema));
  int texts = 0;
  for (const std::string& file : TokenizerFiles()) {
    const auto tokenizer = TokenizerAt(file);
    if (!tokenizer || !tokenizer->Spellings().ok()) continue;
    const int32_t end = tokenizer->vocab_size();  // one more row: the end token
    const auto trie = TokenTrie::Make(*tokenizer, end + 1, {&end, 1});
    ASSERT_TRUE(trie.ok());
    const auto constraint = Constraint::Make(CompileJsonSchema(kSchema)->grammar, *trie);
    if (!constraint.ok()) continue;  // a vocabulary without some byte of JSON
    for (int i = 0; i < 10; ++i, ++texts) {
      ConstraintState state(*constraint);
      const std::string text = Draw(&state, **trie, 60, &rng);
      const json value = json::parse(text, nullptr, false);
      EXPECT_TRUE(!value.is_discarded() && validator.Valid(value)) << file << ": " << text;
    }
  }
  EXPECT_GE(texts, 60);
}

// Every bit of masks along drawn texts, by reading the token's bytes.
TEST(TokenMask, MasksAgreeWithReadingTokenByToken) {
  std::mt19937 rng(4);
  const auto tokenizer = TokenizerAt(test::Model10m() + "/tokenizer.json");
  const int32_t end = 4092;
  const auto trie = *TokenTrie::Make(*tokenizer, 4096, {&end, 1});
  const std::vector<Grammar> grammars = {CompileJsonSchema(kSchema)->grammar,
                                         CompileJsonSchema("true")->grammar,
                                         *RegexGrammar("(\\w+ ){2,9}[a-z\u00e0-\u00ff]{1,40}\\.?"),
                                         *ParseGbnf("root ::= \"(\" root \")\" root | [a-z ]*")};
  size_t bits = 0;
  for (const Grammar& grammar : grammars) {
    const auto constraint = *Constraint::Make(grammar, trie);
    for (int text = 0; text < 3; ++text) {
      ConstraintState state(constraint);
      for (int n = 0; n < 60 && !state.Finished(); ++n) {
        std::vector<uint64_t> mask(state.Mask().begin(), state.Mask().end());
        std::vector<int32_t> allowed;
        for (int32_t t = 0; t < 4096; ++t) {
          if (Has(mask, t) && t != end) allowed.push_back(t);
          if ((t + n) % 5 != 0) continue;  // each step another fifth of them
          ConstraintState probe = state;
          ASSERT_EQ(Has(mask, t), probe.Accept(t)) << t << " after " << n;
          ++bits;
        }
        if (allowed.empty()) break;
        state.Accept(allowed[rng() % allowed.size()]);
      }
    }
  }
  EXPECT_GT(bits, 200000u);
}

TEST(TokenMask, MemoryStaysBoundedHoweverDeepTheText) {
  const auto trie = Vocabulary({"", "[", "]", "1", ",", "[[", "]]"}, {0});
  const auto constraint =
      *Constraint::Make(*ParseGbnf("root ::= \"[\" (root (\",\" root)*)? \"]\" | \"1\""), trie);
  ConstraintState state(constraint);
  for (int i = 0; i < 100000; ++i) ASSERT_TRUE(state.Accept(1));
  EXPECT_TRUE(Has(state.Mask(), 5));
  for (int i = 0; i < 50000; ++i) ASSERT_TRUE(state.Accept(6)) << i;
  EXPECT_TRUE(state.Finished());
}

// Work grows with the square of such a text, so that a step could take seconds: it ends before.
TEST(TokenMask, AVeryAmbiguousTextEndsInsteadOfSlowingDown) {
  const auto trie = Vocabulary({"", "a", "aa", "aaaaaaaa"}, {0});
  const auto constraint = *Constraint::Make(*ParseGbnf("root ::= s\ns ::= \"a\" s s | \"a\""), trie);
  ConstraintState state(constraint);
  int steps = 0;
  do {
    state.Mask();
  } while (state.Accept(1) && ++steps < 5000);
  EXPECT_GE(steps, 200);
  EXPECT_LT(steps, 5000);
}

// A vocabulary of 32,000 words of a novel and the time of a mask; the figure is printed, and only a mistake
// of an order of magnitude fails.
TEST(TokenMask, IsQuick) {
  std::ifstream file(test::Hound());
  const std::string novel((std::istreambuf_iterator<char>(file)), {});
  std::map<std::string, int> counts;
  for (size_t at = 0; at + 12 < novel.size(); at += 2) {  // every other place is enough
    for (size_t n = 2; n <= 8; ++n) ++counts[novel.substr(at, n)];
  }
  std::vector<std::pair<int, std::string>> best;
  for (const auto& [text, count] : counts) best.emplace_back(-count, text);
  std::sort(best.begin(), best.end());
  std::vector<std::string> tokens = {""};
  for (int b = 0; b < 256; ++b) tokens.emplace_back(1, static_cast<char>(b));
  for (size_t i = 0; tokens.size() < 32000 && i < best.size(); ++i) tokens.push_back(best[i].second);
  const auto trie = Vocabulary(tokens, {0});
  for (const char* schema : {kSchema, "true"}) {
    const auto constraint = *Constraint::Make(CompileJsonSchema(schema)->grammar, trie);
    std::vector<double> first, later;
    for (int text = 0; text < 40; ++text) {
      std::mt19937 rng(static_cast<unsigned>(text % 20));  // the second half draws what the first half drew
      ConstraintState state(constraint);
      for (int n = 0; n < 60 && !state.Finished(); ++n) {
        const auto start = std::chrono::steady_clock::now();
        const std::span<const uint64_t> mask = state.Mask();
        const double us =
            std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
        (text < 20 ? first : later).push_back(us);
        std::vector<int32_t> allowed;
        for (int32_t t = 1; t < trie->vocab(); ++t) {
          if (Has(mask, t)) allowed.push_back(t);
        }
        if (allowed.empty()) break;
        state.Accept(allowed[rng() % allowed.size()]);
      }
    }
    for (auto* times : {&first, &later}) std::sort(times->begin(), times->end());
    const auto report = [&](const char* what, const std::vector<double>& us) {
      const auto at = [&](double q) { return us[static_cast<size_t>(q * double(us.size() - 1))]; };
      const double mean = std::accumulate(us.begin(), us.end(), 0.0) / double(us.size());
      std::printf("[ figures  ] %zu tokens, %s: median %.1f us a mask, mean %.1f, p99 %.0f, worst %.0f\n",
                  tokens.size(), what, at(0.5), mean, at(0.99), us.back());
    };
    report("texts that are new to the constraint", first);
    report("the same texts again", later);
    EXPECT_LT(later[later.size() / 2], 2000);
  }
}

}  // namespace
}  // namespace nibble
