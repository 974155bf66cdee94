// SPDX-License-Identifier: Apache-2.0
// The strict JSON document: what it accepts exactly, what it refuses, and what its messages say.
#include "base/json.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <string>
#include <vector>

#include "base/checked.h"
#include "base/printable.h"

namespace nibble {
namespace {

Result<Json> Parse(std::string_view text, JsonLimits limits = {}) {
  return Json::Parse(text, limits, "t.json");
}

std::string ErrorOf(std::string_view text, JsonLimits limits = {}) {
  const auto json = Parse(text, limits);
  return json.ok() ? "accepted" : json.status().message();
}

std::string Times(const std::string& text, int n) {
  std::string out;
  for (int i = 0; i < n; ++i) out += text;
  return out;
}

TEST(Json, ReadsEveryType) {
  auto json = Parse(
      R"({"n":null,"t":true,"i":-5,"u":18446744073709551615,"d":1.5,"s":"a\u00e9\n","a":[1,[2]],"o":{}})");
  ASSERT_TRUE(json.ok()) << json.status().message();
  const JsonRef r = json->root();
  EXPECT_TRUE(r.Find("n")->is_null());
  EXPECT_TRUE(*r.GetBool("t"));
  EXPECT_EQ(*r.GetInt("i", -10, 10), -5);
  EXPECT_EQ(*r.Find("u")->Uint(), UINT64_MAX);
  EXPECT_EQ(r.Find("u")->type(), JsonType::kUint);
  EXPECT_EQ(*r.GetNumber("d"), 1.5);
  EXPECT_EQ(*r.GetNumber("i"), -5.0);
  EXPECT_EQ(*r.GetString("s"), "a\xc3\xa9\n");
  EXPECT_EQ((*r.Find("a"))[1][0].Where(), "t.json: a[1][0]");
  EXPECT_EQ(r.Find("o")->size(), 0u);
  EXPECT_EQ(r.size(), 8u);
  EXPECT_EQ(r.KeyAt(6), "a");
  EXPECT_FALSE(r.Find("absent"));
}

TEST(Json, IntegersAreExact) {
  auto json = Parse("[9007199254740993, 9223372036854775807, 9223372036854775808, -9223372036854775808]");
  ASSERT_TRUE(json.ok());
  EXPECT_EQ(*json->root()[0].Uint(), 9007199254740993u);
  EXPECT_EQ(*json->root()[1].Int(0, INT64_MAX), INT64_MAX);
  EXPECT_EQ(*json->root()[2].Uint(), uint64_t{1} << 63);
  EXPECT_FALSE(json->root()[2].Int(0, INT64_MAX).ok());
  EXPECT_EQ(*json->root()[3].Int(INT64_MIN, 0), INT64_MIN);
  EXPECT_FALSE(json->root()[3].Uint().ok());
  EXPECT_NE(ErrorOf("18446744073709551616"), "accepted");  // 2^64 would have to be rounded
  EXPECT_NE(ErrorOf("-9223372036854775809"), "accepted");
}

TEST(Json, FloatsAreNotIntegers) {
  auto json = Parse("[1.0, 1e3, 1e300, -0.0]");
  ASSERT_TRUE(json.ok());
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_FALSE(json->root()[i].Int(INT64_MIN, INT64_MAX).ok()) << i;
    EXPECT_FALSE(json->root()[i].Uint().ok()) << i;
    EXPECT_TRUE(json->root()[i].Number().ok()) << i;
  }
}

TEST(Json, RefusesWhatIsNotJson) {
  const std::vector<std::string> bad = {"",
                                        " ",
                                        "{",
                                        "}",
                                        "[1,]",
                                        "{\"a\":1,}",
                                        "{\"a\"}",
                                        "{a:1}",
                                        "{'a':1}",
                                        "nul",
                                        "NaN",
                                        "Infinity",
                                        "-Infinity",
                                        "1e400",
                                        "-1e400",
                                        "01",
                                        "+1",
                                        "1.",
                                        ".5",
                                        "0x10",
                                        "1 2",
                                        "{}{}",
                                        "{} x",
                                        "\"\x01\"",
                                        "\"\\q\"",
                                        "\"\\u12\"",
                                        "\"\xff\"",
                                        "\"\xc0\x80\"",
                                        "\"\xed\xa0\x80\"",
                                        "\"\\ud800\"",
                                        "\"\\udc00\"",
                                        "\"\\ud800\\u0041\"",
                                        "\"abc",
                                        "\xef\xbb\xbf{}",
                                        "[1 2]",
                                        "// c\n1",
                                        "{\"a\" 1}",
                                        "--1",
                                        "tru",
                                        "[\"a\"",
                                        "{\"\\udfff\":1}",
                                        std::string("1\0", 2),
                                        std::string("\0", 1)};
  for (const std::string& text : bad) {
    const std::string message = ErrorOf(text);
    EXPECT_NE(message, "accepted") << Printable(text);
    EXPECT_EQ(message.substr(0, 8), "t.json: ") << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  }
}

TEST(Json, DuplicateKeysAtEveryLevel) {
  EXPECT_EQ(ErrorOf(R"({"a":1,"a":1})"), "t.json: the key \"a\" appears twice");
  EXPECT_EQ(ErrorOf(R"({"x":[0,{"b":1,"c":2,"\u0062":3}]})"), "t.json: x[1]: the key \"b\" appears twice");
  EXPECT_EQ(ErrorOf(R"({"":1,"":2})"), "t.json: the key \"\" appears twice");
  std::string many = "{";
  for (int i = 0; i < 100000; ++i) many += "\"k" + std::to_string(i) + "\":0,";
  EXPECT_EQ(ErrorOf(many + "\"z\":0}"), "accepted");
  EXPECT_NE(ErrorOf(many + "\"k77\":0}"), "accepted");
}

TEST(Json, DepthIsBounded) {
  EXPECT_EQ(ErrorOf(Times("[", 64) + Times("]", 64)), "accepted");
  EXPECT_EQ(ErrorOf(Times("[", 65) + Times("]", 65)), "t.json: JSON nested 65 deep, at most 64 are read");
  EXPECT_NE(ErrorOf(Times("[", 100000)), "accepted");
  EXPECT_NE(ErrorOf(Times("{\"a\":", 100000)), "accepted");
  EXPECT_EQ(ErrorOf("\"" + Times("[", 1000) + "\\\"" + Times("{", 1000) + "\""), "accepted");  // in a string
  EXPECT_EQ(ErrorOf(Times("[", 512) + Times("]", 512), {.max_depth = 512}), "accepted");
}

TEST(Json, SizeAndNodesAreBounded) {
  EXPECT_EQ(ErrorOf("[1,2,3]", {.max_bytes = 7}), "accepted");
  EXPECT_NE(ErrorOf("[1,2,3]", {.max_bytes = 6}), "accepted");
  EXPECT_EQ(ErrorOf("[1,2,3]", {.max_nodes = 4}), "accepted");
  EXPECT_NE(ErrorOf("[1,2,3]", {.max_nodes = 3}), "accepted");
}

TEST(Json, MessagesNameFileKeyWantedAndFound) {
  auto json = Parse(R"({"a":{"b":[{"c":"x"}]},"f":2.5})");
  ASSERT_TRUE(json.ok());
  const JsonRef b = *(*json->root().Get("a")).Get("b");
  EXPECT_EQ(b[0].GetInt("c", 1, 9).status().message(),
            "t.json: a.b[0].c: wanted an integer in [1, 9], found \"x\"");
  EXPECT_EQ(b[0].GetInt("d", 1, 9).status().message(), "t.json: a.b[0].d is missing");
  EXPECT_EQ(b[0].GetInt("d", 1, 9).status().code(), Code::kNotFound);
  EXPECT_EQ(json->root().Get("q").status().message(), "t.json: q is missing");
  EXPECT_EQ(json->root().GetInt("f", 1, 9).status().message(),
            "t.json: f: wanted an integer in [1, 9], found 2.5 (written as a fraction)");
  EXPECT_EQ(b.Get("k").status().message(), "t.json: a.b: wanted an object with \"k\", found an array of 1");
}

TEST(Json, FallbacksForAbsentAndNullOnly) {
  auto json = Parse(R"({"null":null,"wrong":"x"})");
  ASSERT_TRUE(json.ok());
  const JsonRef r = json->root();
  EXPECT_EQ(*r.GetIntOr("absent", 7, 0, 9), 7);
  EXPECT_EQ(*r.GetIntOr("null", 7, 0, 9), 7);
  EXPECT_FALSE(r.GetIntOr("wrong", 7, 0, 9).ok());
  EXPECT_EQ(*r.GetBoolOr("null", true), true);
  EXPECT_FALSE(r.GetBoolOr("wrong", true).ok());
  EXPECT_EQ(*r.GetNumberOr("absent", 0.5), 0.5);
  EXPECT_FALSE(r.GetNumberOr("wrong", 0.5).ok());
  EXPECT_EQ(*r.GetStringOr("null", "d"), "d");
  EXPECT_EQ(*r.GetStringOr("wrong", "d"), "x");
}

TEST(Json, DocumentOutlivesTextAndMoves) {
  auto text = std::make_unique<std::string>(R"({"key":"a string longer than any small buffer would hold"})");
  auto parsed = Parse(*text);
  text.reset();
  Json json = *std::move(parsed);
  const JsonRef before = json.root();
  const Json moved = std::move(json);
  EXPECT_EQ(*before.GetString("key"), "a string longer than any small buffer would hold");
  EXPECT_EQ(*moved.root().GetString("key"), *before.GetString("key"));
}

TEST(Json, ReadFileTakesRegularFilesOnly) {
  const std::string dir = testing::TempDir() + "/json_test_" + std::to_string(getpid());
  ASSERT_EQ(mkdir(dir.c_str(), 0700), 0);
  const std::string good = dir + "/good.json", fifo = dir + "/fifo";
  std::ofstream(good) << "[1]";
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  EXPECT_TRUE(Json::ReadFile(good, {}).ok());
  EXPECT_FALSE(Json::ReadFile(good, {.max_bytes = 2}).ok());
  EXPECT_EQ(Json::ReadFile(fifo, {}).status().message(), fifo + ": wanted a regular file, found a FIFO");
  EXPECT_EQ(Json::ReadFile(dir, {}).status().message(), dir + ": wanted a regular file, found a folder");
  EXPECT_EQ(Json::ReadFile("/dev/zero", {}).status().message(),
            "/dev/zero: wanted a regular file, found a device");
  EXPECT_EQ(Json::ReadFile(dir + "/none", {}).status().code(), Code::kNotFound);
  unlink(good.c_str());
  unlink(fifo.c_str());
  rmdir(dir.c_str());
}

TEST(Checked, RemembersEveryWrap) {
  const Checked big(uint64_t{1} << 63);
  EXPECT_EQ((Checked(3) * 4 + 5).Get(), 17u);
  EXPECT_FALSE((big * 2).ok());
  EXPECT_FALSE((big * 2 + 1).ok());        // still remembered
  EXPECT_FALSE((big * 2 - big * 2).ok());  // and not undone
  EXPECT_FALSE((Checked(1) - 2).ok());
  EXPECT_FALSE((Checked(UINT64_MAX) + 1).ok());
  EXPECT_FALSE((Checked(4294967296) * 4294967296 * 2).ok());
  EXPECT_EQ((Checked(4294967295) * 4294967297).Get(), UINT64_MAX);
}

TEST(Printable, EscapesAndCuts) {
  EXPECT_EQ(Printable("a\n\"\xe2\x80\xae\\"), "a\\x0a\\x22\\xe2\\x80\\xae\\x5c");
  EXPECT_EQ(Printable("abcdef", 3), "abc... (6 bytes)");
}

}  // namespace
}  // namespace nibble
