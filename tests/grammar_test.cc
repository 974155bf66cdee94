// SPDX-License-Identifier: Apache-2.0
// Grammars: GBNF and regular expressions against tables and Python's verdicts, random grammars against a slow
// recogniser, what is refused, hostile texts.
#include "text/grammar.h"

#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "base/utf8.h"
#include "tests/support/bad_inputs.h"
#include "tests/support/grammar_text.h"
#include "tests/support/slow_grammar.h"
#include "text/gbnf.h"
#include "text/regex_grammar.h"

namespace nibble {
namespace {

using nlohmann::json;
using test::GrammarReader;

std::string Repeated(const std::string& s, size_t n) {
  std::string out;
  for (size_t i = 0; i < n; ++i) out += s;
  return out;
}

TEST(CharSet, SpellsExactlyItsCharacters) {
  std::mt19937 rng(3);
  for (int round = 0; round < 20; ++round) {
    CharSet set;
    for (int i = 0; i < 4; ++i) {
      const auto bits = 7 + rng() % 15;
      const auto any = [&] { return static_cast<char32_t>(rng() % (1u << bits) % 0x110000); };
      const char32_t one = any(), two = any();
      set.Add(std::min(one, two), std::max(one, two));
    }
    const std::vector<ByteRun> runs = ToUtf8(round % 2 == 0 ? set : set.Complement());
    size_t spelled = 0, expected = 0;
    for (const ByteRun& run : runs) {
      size_t texts = 1;
      for (int i = 0; i < run.size; ++i) texts *= static_cast<size_t>(run.hi[i] - run.lo[i] + 1);
      spelled += texts;
    }
    for (char32_t c = 0; c <= 0x10FFFF; ++c) {
      if (c >= 0xD800 && c < 0xE000) continue;
      if (set.Contains(c) == (round % 2 != 0)) continue;
      ++expected;
      if (expected % 97 != 0 && c > 0x900) continue;  // a look at some of them; the counts cover the others
      std::string bytes;
      AppendUtf8(c, &bytes);
      const bool in = std::any_of(runs.begin(), runs.end(), [&](const ByteRun& run) {
        bool all = run.size == bytes.size();
        for (size_t i = 0; all && i < bytes.size(); ++i) {
          const auto byte = static_cast<uint8_t>(bytes[i]);
          all = run.lo[i] <= byte && byte <= run.hi[i];
        }
        return all;
      });
      ASSERT_TRUE(in) << "U+" << std::hex << static_cast<uint32_t>(c) << " round " << round;
    }
    EXPECT_EQ(spelled, expected) << "round " << round;
  }
}

struct Language {
  const char* grammar;
  std::vector<std::string> yes, no;
};

TEST(Gbnf, ReadsItsWholeSyntax) {
  const std::vector<Language> cases{
      {"root ::= \"abc\"", {"abc"}, {"", "ab", "abcd"}},
      {"root ::= \"\\x41\\u00e9\\U0001F600\\t\\r\\n\\\\\\\"\\[\\]\"",
       {"A\u00e9\U0001F600\t\r\n\\\"[]"},
       {"A"}},
      {"root ::= [a-c] [^a-c\\n] [-x] [x-] [\\]\\\\]", {"az--]", "b1xx\\"}, {"aaxx]", "a\nxx]", "azyx]"}},
      {"root ::= .", {"a", "\n", "\u20ac", "\U0001F600"}, {"", "ab", "\xff", "\xed\xa0\x80", "\xc0\x80"}},
      {"root ::= \"a\"* \"b\"+ \"c\"?", {"b", "aabbc"}, {"", "a", "bcc"}},
      {"root ::= \"a\"{2} \"b\"{1,} \"c\"{0,2}", {"aab", "aabbcc"}, {"ab", "aabccc", "aa"}},
      {"root ::= \"a\" | \"b\" | ", {"a", "b", ""}, {"ab"}},
      {"root ::= (\"a\" | \"b\" \"c\")+", {"a", "bc", "abca"}, {"", "b", "ac"}},
      {"root ::= x-1 y\nx-1 ::= \"x\" # note\n\n# more\ny ::=\n  \"y\" |\n  \"z\"\n", {"xy", "xz"}, {"x"}},
      {"root ::= (\n \"a\"\n  \"b\"\n)\n", {"ab"}, {"a"}},
      {"root ::= \"(\" root \")\" | \"\"", {"", "()", "((()))"}, {"(", "())", ")("}},
      {"root ::= list\nlist ::= item | item \",\" list\nitem ::= \"1\" | \"[\" list \"]\"",
       {"1,1", "[1,[1]],1"},
       {"1,", "[1"}},
      {"root ::= [\\u0400-\\u04FF]{2}", {"\u0416\u0436"}, {"\u0416", "ab"}},
      {"root ::= \"a\"{0}\r\n", {""}, {"a"}},
      {"root ::= a? a? a? \"x\"\na ::= \"a\"?", {"x", "aaax"}, {"aaaax"}},
      {"root ::= (\"a\"?)* \"b\"", {"b", "aaab"}, {"a"}},
  };
  for (const Language& c : cases) {
    const auto grammar = ParseGbnf(c.grammar);
    ASSERT_TRUE(grammar.ok()) << c.grammar << ": " << grammar.status().message();
    GrammarReader reader(*grammar);
    ASSERT_TRUE(reader.status().ok()) << c.grammar << ": " << reader.status().message();
    for (const std::string& text : c.yes) EXPECT_TRUE(reader.Accepts(text)) << c.grammar << ": " << text;
    for (const std::string& text : c.no) EXPECT_FALSE(reader.Accepts(text)) << c.grammar << ": " << text;
  }
}

struct Bad {
  std::string text, word;
};

TEST(Gbnf, RefusesWithPlaceAndReason) {
  const std::vector<Bad> cases{
      {"", "no rule \"root\""},
      {"a ::= \"x\"", "no rule \"root\""},
      {"root ::= b", "\"b\" is used and not defined"},
      {"root ::= \"a\"\nroot ::= \"b\"", "line 2, column 1: the rule \"root\" is defined twice"},
      {"root \"a\"", "expected ::="},
      {"root ::= \"a", "column 10: a literal that is not closed"},
      {"root ::= [a", "a [ that is not closed"},
      {"root ::= [z-a]", "range"},
      {"root ::= []", "without characters"},
      {"root ::= (\"a\"", "a ( that is not closed"},
      {"root ::= \"a\")", "a ) without its ("},
      {"root ::= *", "nothing to repeat"},
      {"root ::= \"a\"{,2}", "expected {m}"},
      {"root ::= \"a\"{3,2}", "n below m"},
      {"root ::= \"a\"{99999999999}", "more than 10000"},
      {"root ::= \"\\q\"", "unknown escape"},
      {"root ::= \"\\ud800\"", "names no character"},
      {"root ::= <[100]>", "references to tokens"},
      {"root ::= \"\xff\"", "not UTF-8"},
      {"root ::= root \"a\" | \"b\"", "left recursion"},
      {"root ::= a\na ::= b? a \"x\" | \"y\"\nb ::= \"b\"", "left recursion"},
      {"root ::= a\na ::= c \"1\"\nc ::= a", "matches the rule"},
      {"root ::= a | \"x\"\na ::= c \"1\" | \"y\"\nc ::= a", "left recursion"},
      {"root ::= \"a\" root", "no text matches the rule \"root\""},
      {"root ::= \"x\" | b\nb ::= \"b\" b", "no text matches the rule \"b\""},
  };
  for (const Bad& bad : cases) {
    const Status status = test::Usable(ParseGbnf(bad.text));
    EXPECT_FALSE(status.ok()) << bad.text;
    EXPECT_NE(status.message().find(bad.word), std::string::npos) << bad.text << ": " << status.message();
  }
}

TEST(Regex, MatchesWhatPythonMatches) {
  std::ifstream file(std::string(NIBBLE_SOURCE_DIR) + "/tests/golden/regex.json");
  const json golden = json::parse(file);
  int different_pattern_caught = 0;
  for (const json& c : golden["cases"]) {
    const std::string pattern = c["pattern"], match = c["match"];
    const auto grammar = RegexGrammar(pattern);
    ASSERT_TRUE(grammar.ok()) << pattern << ": " << grammar.status().message();
    GrammarReader reader(*grammar), other(*RegexGrammar("[abc]+"));
    ASSERT_TRUE(reader.status().ok()) << pattern << ": " << reader.status().message();
    int wrong = 0;
    for (size_t i = 0; i < match.size(); ++i) {
      const std::string text = golden["strings"][i];
      EXPECT_EQ(reader.Accepts(text), match[i] == '1') << pattern << " on " << text;
      wrong += other.Accepts(text) != (match[i] == '1') ? 1 : 0;
    }
    different_pattern_caught += wrong > 0 ? 1 : 0;
  }
  EXPECT_GE(golden["cases"].size(), 50u);
  EXPECT_GE(different_pattern_caught, 50);
}

TEST(Regex, RefusesWithPlaceAndReason) {
  const std::vector<Bad> cases{{"a(?=b)", "byte 1: look-ahead"},
                               {"(?!a)", "look-ahead"},
                               {"(?<=a)b", "look-behind"},
                               {"(?<!a)b", "look-behind"},
                               {"(a)\\1", "back-reference"},
                               {"(?P<x>a)(?P=x)", "back-reference"},
                               {"(?i)a", "kind of group"},
                               {"(?>a)", "kind of group"},
                               {"a++", "possessive"},
                               {"a**", "quantifier on a quantifier"},
                               {"*a", "nothing to repeat"},
                               {"a|*", "nothing to repeat"},
                               {"{2}", "nothing to repeat"},
                               {"a{2", "opens no"},
                               {"a{,2}", "opens no"},
                               {"a{3,2}", "n below m"},
                               {"a{10001}", "more than 10000"},
                               {"(a", "not closed"},
                               {"a)", "without its ("},
                               {"[a", "not closed"},
                               {"[]", "as the first"},
                               {"[z-a]", "range"},
                               {"[\\d-z]", "range between"},
                               {"[[:alpha:]]", "POSIX"},
                               {"a\\", "at the end"},
                               {"\\b", "word boundary"},
                               {"\\p{L}", "escape \\p"},
                               {"\\ud800", "names no character"},
                               {"\\x4", "names no character"},
                               {"\\u{110000}", "names no character"},
                               {"a^b", "behind the beginning"},
                               {"(^a)", "in a group"},
                               {"a$b", "before the end"},
                               {"\xff", "not UTF-8"},
                               {"[^\\s\\S]", "no text matches"},
                               {"\\012", "octal"},
                               {Repeated("a", 5000), "at most 4096"}};
  for (const Bad& bad : cases) {
    const Status status = test::Usable(RegexGrammar(bad.text));
    EXPECT_FALSE(status.ok()) << bad.text;
    EXPECT_NE(status.message().find(bad.word), std::string::npos) << bad.text << ": " << status.message();
  }
}

TEST(Grammar, HostileTextsEndInTime) {
  Family family("hostile grammars");
  const CaseLimits limits = {.seconds = 4, .growth = size_t{256} << 20};
  const auto gbnf = [&](const char* id, const std::string& text) {
    family.Refused(
        id, [text] { return test::Usable(ParseGbnf(text)); }, {}, limits);
  };
  gbnf("60000 groups", "root ::= " + Repeated("(", 60000) + "\"a\"" + Repeated(")", 60000));
  gbnf("60000 operators", "root ::= \"a\"" + Repeated("?", 60000));
  gbnf("repetition of repetitions", "root ::= (((\"a\"{1000}){1000}){1000}){1000}");
  gbnf("rules that double", [] {
    std::string text = "root ::= r0\n";
    for (int i = 0; i < 60; ++i) text += fmt::format("r{} ::= r{} r{}\n", i, i + 1, i + 1);
    return text + "r60 ::= root | \"a\"";
  }());
  gbnf("20000 rules", [] {
    std::string text = "root ::= r0\n";
    for (int i = 0; i < 20000; ++i) text += fmt::format("r{} ::= \"a\"\n", i);
    return text;
  }());
  family.Accepted(
      "60 rules that double",
      [] {
        std::string text = "root ::= r0\n";
        for (int i = 0; i < 60; ++i) text += fmt::format("r{} ::= r{} r{}\n", i, i + 1, i + 1);
        return test::Usable(ParseGbnf(text + "r60 ::= \"a\""));
      },
      limits);
  family.Refused(
      "patterns", [] { return test::Usable(RegexGrammar(Repeated("(", 4000))); }, {}, limits);
  family.Refused(
      "counts", [] { return test::Usable(RegexGrammar("((a{1000}){1000}){1000}")); }, {}, limits);
  family.Refused(
      "empty counts", [] { return test::Usable(RegexGrammar("((a?){1000}){5}b")); }, {}, limits);
  for (const char* pattern : {"(a+)+b", "(a|aa)*b", "(a*)*b"}) {
    family.Accepted(
        pattern,
        [pattern] {
          GrammarReader reader(*RegexGrammar(pattern));
          const std::string text(size_t{1} << 20, 'a');
          return reader.Begins(text.substr(0, 1000)) ? reader.status() : Status(Code::kCorrupt, "not begun");
        },
        limits);
  }
}

TEST(Grammar, LongTextsTakeLinearTime) {
  for (const char* pattern : {"(a+)+b", "(a|aa)*b", "(a*)*b"}) {
    GrammarReader reader(*RegexGrammar(pattern));
    const auto start = std::chrono::steady_clock::now();
    EXPECT_TRUE(reader.Accepts(std::string(size_t{1} << 20, 'a') + "b"));
    EXPECT_LT(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(), 2.0)
        << pattern;
    EXPECT_LT(reader.matcher().bytes(), size_t{1} << 20);
  }
}

// The recogniser fills a table by the definition of each node and knows nothing of automata.
TEST(Grammar, RandomGrammarsAgreeWithASlowRecogniser) {
  std::mt19937 rng(5);
  int compared = 0, refused = 0, caught = 0;
  for (int round = 0; round < 300; ++round) {
    const Grammar grammar = test::RandomGrammar(&rng);
    GrammarReader reader(grammar);
    if (!reader.status().ok()) {  // left recursion, or a rule without texts
      ++refused;
      continue;
    }
    ++compared;
    const test::SlowGrammar slow(grammar);
    const test::SlowGrammar broken(grammar, /*forgets_empty=*/true);
    int wrong = 0;
    for (const std::string& text : test::TextsUpTo(6)) {
      const bool accepts = reader.Accepts(text);
      ASSERT_EQ(accepts, slow.Accepts(text)) << "round " << round << " on " << text;
      wrong += accepts != broken.Accepts(text) ? 1 : 0;
    }
    caught += wrong > 0 ? 1 : 0;
  }
  EXPECT_GE(compared, 100);
  EXPECT_GE(refused, 20);
  EXPECT_GE(caught, 20);
}

TEST(Grammar, BrokenTextsNeverCrash) {
  const std::vector<std::string> seeds{
      "root ::= (\"a\" | [b-d]{2,3} | .)* x\nx ::= \"\\u00e9\" root? # end\n",
      "root ::= object\nvalue ::= object | \"[\" (value (\",\" value)*)? \"]\" | [0-9]+ | \"\\\"\" [^\"]* "
      "\"\\\"\"\n"
      "object ::= \"{\" (\"\\\"\" [a-z]+ \"\\\":\" value)? \"}\"\n",
      "^(a|[^b-d\\]]{2,5}?|\\d+\\.)*(?:x|\\u00e9{3})$"};
  std::mt19937 rng(9);
  int accepted = 0, refused = 0;
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(3);
  for (int i = 0; i < 20000 && std::chrono::steady_clock::now() < end; ++i) {
    const size_t seed = rng() % seeds.size();
    std::string text = seeds[seed];
    for (auto n = 1 + rng() % 4; n > 0 && !text.empty(); --n) {
      const size_t at = rng() % text.size();
      switch (rng() % 4) {
        case 0:
          text[at] = "()[]{}|*+?.\\\"-^$:=\n,019ax\xff"[rng() % 27];
          break;
        case 1:
          text.erase(at, 1 + rng() % 4);
          break;
        case 2:
          text.insert(at, text.substr(rng() % text.size(), 1 + rng() % 16));
          break;
        default:
          text.insert(at, 1, "()[]{}|*+?.\\\""[rng() % 13]);
      }
    }
    const Status status = seed == 2 ? test::Usable(RegexGrammar(text)) : test::Usable(ParseGbnf(text));
    (status.ok() ? accepted : refused) += 1;
  }
  EXPECT_GT(accepted, 500);
  EXPECT_GT(refused, 500);
}

}  // namespace
}  // namespace nibble
