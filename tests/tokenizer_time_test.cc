// SPDX-License-Identifier: Apache-2.0
// Encoding time: rows T03 and T04 of the list of bad inputs. A million characters of anything take under a
// second and two million at most 2.3 times as long. Times are of the processor, the least of several runs.
// Under a sanitizer, which measures itself, the same texts run at a tenth of the size without limits.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <malloc.h>
#include <time.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "tests/support/bad_inputs.h"
#include "text/regex.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

namespace nibble {
namespace {

constexpr size_t kMillion = kSanitized ? 100000 : 1000000;

double Now() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Least of `runs`, in seconds.
template <class Work>
double Seconds(int runs, const Work& work) {
  double least = 1e9;
  for (int i = 0; i < runs; ++i) {
    const double begin = Now();
    work();
    least = std::min(least, Now() - begin);
  }
  return least;
}

std::string Repeat(std::string_view unit, size_t times) {
  std::string text;
  for (size_t i = 0; i < times; ++i) text += unit;
  return text;
}

// Freed memory stays in the process: otherwise the larger texts also pay for fresh pages, the smaller do not.
const bool kKeepMemory =
    mallopt(M_MMAP_THRESHOLD, 1 << 30) != 0 && mallopt(M_TRIM_THRESHOLD, 2000 << 20) != 0;

class Linear : public testing::TestWithParam<const char*> {};

TEST_P(Linear, AMillionOfAnything) {
  ASSERT_TRUE(kKeepMemory || kSanitized);
  const auto document =
      Json::ReadFile(NIBBLE_SOURCE_DIR "/tests/golden/tokenizers/" + std::string(GetParam()) + ".json", {});
  const auto tokenizer = Tokenizer::Parse(document->root());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  const auto encode = [&](const std::string& text) {
    const auto ids = (*tokenizer)->Encode(text, SpecialTokens::kAdd);
    EXPECT_TRUE(ids.ok()) << ids.status().message();
  };
  for (const std::string_view unit : {"a", "^", " ", "\n", "\xF0\x9F\x98\x80"}) {
    const std::string one = Repeat(unit, kMillion), two = one + one;
    double t1 = 0, t2 = 1;
    const int most = kSanitized ? 1 : 5;
    for (int tries = 0; tries < most && t2 > 2.3 * t1; ++tries) {  // again: the machine may have been busy
      t2 = Seconds(2, [&] { encode(two); });
      t1 = Seconds(2, [&] { encode(one); });
    }
    if (kSanitized) continue;
    EXPECT_LT(t1, 1.0) << testing::PrintToString(unit);
    EXPECT_LT(t2, 2.3 * t1) << testing::PrintToString(unit) << ": " << t1 << " s and " << t2 << " s";
  }
  for (const std::string_view unit : {"\n ", "ab", "\xCC\x81\xCC\xB4", "1"}) {
    const std::string text = Repeat(unit, kMillion);
    const double seconds = Seconds(1, [&] { encode(text); });
    if (!kSanitized) {
      EXPECT_LT(seconds, 1.0) << testing::PrintToString(unit);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, Linear, testing::Values("llama3", "qwen2", "llama2"),
                         [](const auto& family) { return std::string(family.param); });

// Texts that make a pattern try the same place again and again are refused, after linear time.
TEST(Regex, WorkIsBounded) {
  const std::pair<const char*, std::string> cases[] = {
      {"\\s+$", Repeat(" ", kMillion) + "x"},
      {"\\s*\\s*\\s*x", Repeat(" ", kMillion)},
      {"a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?a?aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab",
       Repeat("a", kMillion)},
      {"(?:a|aa)(?:a|aa)(?:a|aa)(?:a|aa)(?:a|aa)(?:a|aa)(?:a|aa)(?:a|aa)(?:a|aa)(?:a|aa)(?:a|aa)b",
       Repeat("a", kMillion)},
      {"a+?a+?b", Repeat("a", kMillion)},
      {"(?>a+)b", Repeat("a", kMillion)},
      {"a++b", Repeat("a", kMillion)}};
  for (const auto& c : cases) {  // no binding: clang 14 cannot capture one in a lambda
    const auto& pattern = c.first;
    const auto& text = c.second;
    const auto regex = Regex::Compile(pattern);
    ASSERT_TRUE(regex.ok()) << regex.status().message();
    std::vector<Span> matches;
    Status status;
    const double seconds = Seconds(1, [&] { status = regex->FindAll(text, &matches); });
    EXPECT_EQ(status.code(), Code::kInvalidArgument) << pattern;
    EXPECT_NE(status.message().find("steps a byte"), std::string::npos) << status.message();
    if (!kSanitized) {
      EXPECT_LT(seconds, 2.0) << pattern;
    }
  }
}

TEST(Regex, LongRepeatsOfAGroup) {
  const auto regex = Regex::Compile("(?:ab)+c?");
  ASSERT_TRUE(regex.ok()) << regex.status().message();
  std::vector<Span> matches;
  const std::string text = Repeat("ab", kMillion);
  const Status status = regex->FindAll(text, &matches);
  ASSERT_TRUE(status.ok()) << status.message();
  ASSERT_EQ(matches.size(), 1u);
  EXPECT_EQ(matches[0].size(), text.size());
}

// utf8proc sorts runs of marks by exchanging neighbours: this would take minutes.
TEST(Unicode, MillionMarks) {
  const std::string text = "a" + Repeat("\xCD\x85", kMillion / 2) + Repeat("\xCC\xB4", kMillion / 2);
  std::string out;
  const double seconds = Seconds(1, [&] { out = unicode::Normalize(text, unicode::NormalForm::kNfc); });
  EXPECT_EQ(out.substr(0, 3), "a\xCC\xB4");  // class 1 comes before class 240
  EXPECT_EQ(out.size(), text.size());
  if (!kSanitized) {
    EXPECT_LT(seconds, 1.0);
  }
}

// The work of one Push does not depend on how much was pushed before.
TEST(Stream, PushIsConstantTime) {
  const auto document = Json::ReadFile(NIBBLE_SOURCE_DIR "/tests/golden/tokenizers/llama2.json", {});
  const auto tokenizer = Tokenizer::Parse(document->root());
  const auto ids =
      (*tokenizer)->Encode(Repeat("the dog \xF0\x9F\x98\x80", kMillion / 40), SpecialTokens::kAdd);
  ASSERT_TRUE(ids.ok());
  StreamDecoder stream(**tokenizer);
  size_t bytes = 0;
  const auto push = [&] {
    for (const int32_t id : *ids) bytes += stream.Push(id).size();
  };
  const double first = Seconds(1, push);
  for (int i = 0; i < 8; ++i) push();
  const double later = Seconds(3, push);
  EXPECT_GT(bytes, kMillion);
  if (!kSanitized) {
    EXPECT_LT(later, 3 * first + 0.05);
  }
}

}  // namespace
}  // namespace nibble
