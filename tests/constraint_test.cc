// SPDX-License-Identifier: Apache-2.0
// Constraints from end to end on a trained model: what `generate` prints is what was asked for, alone and in
// a batch, greedy and drawn; what cannot be compiled is refused with the reason.
#include <gtest/gtest.h>

#include <fstream>
#include <regex>

#include "engine/engine.h"
#include "tests/support/run_nibble.h"
#include "tests/support/schema_validator.h"
#include "tests/support/temp_dir.h"
#include "text/gbnf.h"
#include "text/json_schema.h"
#include "text/regex_grammar.h"

namespace nibble::test {
namespace {

using nlohmann::json;

const char* const kPerson = R"({"type": "object", "properties": {
  "name": {"type": "string", "minLength": 1, "maxLength": 20}, "age": {"type": "integer", "minimum": 0, "maximum": 130},
  "mood": {"enum": ["glad", "sad"]}, "friends": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 2}},
  "required": ["name", "age", "mood", "friends"]})";

std::vector<json> Generate(Args args) {
  args.insert(args.begin(), {"generate", "-m", Model10m(), "--json", "--quiet", "-n", "200"});
  const RunResult r = RunNibble(args);
  EXPECT_EQ(r.exit_code, 0) << r.err;
  std::vector<json> lines;
  for (size_t at = 0; at < r.out.size();) {
    const size_t end = std::min(r.out.find('\n', at), r.out.size());
    lines.push_back(json::parse(r.out.substr(at, end - at)));
    at = end + 1;
  }
  return lines;
}

TEST(Constraint, TheModelWritesJsonOfTheSchema) {
  const SchemaValidator validator(json::parse(kPerson));
  for (const Args& how :
       {Args{}, Args{"--temp", "1", "--seed", "3"}, Args{"--temp", "2", "--top-k", "50", "--seed", "4"},
        Args{"--temp", "3", "--top-p", "0.9", "--min-p", "0.001", "--repeat-penalty", "1.3"}}) {
    Args args = {"-p", "The man said his name was", "-j", kPerson};
    args.insert(args.end(), how.begin(), how.end());
    const json got = Generate(args)[0];
    EXPECT_EQ(got["finish_reason"], "stop");
    const std::string text = got["text"];
    const json value = json::parse(text, nullptr, false);
    EXPECT_TRUE(!value.is_discarded() && validator.Valid(value)) << text;
  }
  // Without the constraint the model writes prose: the check can fail.
  const std::string prose = Generate({"-p", "The man said his name was"})[0]["text"];
  EXPECT_TRUE(json::parse(prose, nullptr, false).is_discarded());
}

TEST(Constraint, GrammarAndRegexFromTextAndFile) {
  const TempDir dir;
  const std::string gbnf = "root ::= (word \" \"){3} word \".\"\nword ::= [a-z]{2,8}\n";
  const std::string file = WriteFile(dir.path() + "/words.gbnf", gbnf);
  const std::string schema = WriteFile(dir.path() + "/schema.json", kPerson);
  const json by_text = Generate({"-p", "Once", "--grammar", gbnf})[0],
             by_file = Generate({"-p", "Once", "--grammar-file", file})[0];
  EXPECT_EQ(by_text["token_ids"], by_file["token_ids"]);
  EXPECT_TRUE(
      std::regex_match(by_text["text"].get<std::string>(), std::regex("([a-z]{2,8} ){3}[a-z]{2,8}\\.")))
      << by_text["text"];
  EXPECT_EQ(Generate({"-p", "x", "-j", kPerson})[0]["token_ids"],
            Generate({"-p", "x", "--json-schema-file", schema})[0]["token_ids"]);
  const std::string text = Generate({"-p", "It was", "--regex", "\\d{4}-[0-9]{2}( \\w+){2}"})[0]["text"];
  EXPECT_TRUE(std::regex_match(text, std::regex("\\d{4}-[0-9]{2}( \\w+){2}.*"))) << text;
}

TEST(Constraint, ABatchHasTheBytesOfEachAlone) {
  const Args common = {"--temp", "0.9", "--seed", "5", "-j", kPerson};
  const std::vector<std::string> prompts = {"She was", "The old captain", "At dawn they", "No"};
  Args batch = common;
  for (const std::string& prompt : prompts) batch.insert(batch.end(), {"-p", prompt});
  const std::vector<json> together = Generate(batch);
  ASSERT_EQ(together.size(), prompts.size());
  for (size_t i = 0; i < prompts.size(); ++i) {
    Args alone = common;
    alone.insert(alone.end(), {"-p", prompts[i], "-t", "1"});
    EXPECT_EQ(Generate(alone)[0]["token_ids"], together[i]["token_ids"]) << prompts[i];
  }
}

TEST(Constraint, RefusalsNameOptionAndReason) {
  const TempDir dir;
  const std::string bad = WriteFile(dir.path() + "/bad.gbnf", "root ::= x\n");
  struct Case {
    Args args;
    int exit_code;
    std::vector<std::string> says;
  };
  const std::vector<Case> cases{
      {{"--grammar", "root ::= root \"a\" | \"b\""}, 2, {"--grammar", "left recursion"}},
      {{"--regex", "(?=a)b"}, 2, {"--regex", "look-ahead"}},
      {{"-j", "{\"minLenght\": 1}"}, 2, {"--json-schema", "minLenght", "unknown keyword"}},
      {{"-j", "{}", "--regex", "a"}, 2, {"give one of", "--regex"}},
      {{"--regex", "a", "--ignore-eos"}, 2, {"--ignore-eos", "where the text ends"}},
      {{"--grammar", ""}, 2, {"--grammar", "empty"}},
      {{"--grammar-file", bad}, 1, {"bad.gbnf", "\"x\" is used and not defined"}},
      {{"--json-schema-file", dir.path() + "/none.json"}, 1, {"none.json"}},
  };
  for (const Case& c : cases) {
    Args args = {"generate", "-m", Model10m(), "-p", "x"};
    args.insert(args.end(), c.args.begin(), c.args.end());
    const RunResult r = RunNibble(args);
    EXPECT_EQ(r.exit_code, c.exit_code) << r.err;
    EXPECT_EQ(r.out, "");
    for (const std::string& word : c.says)
      EXPECT_NE(r.err.find(word), std::string::npos) << word << " in " << r.err;
  }
}

// Through the engine: what the command line does not show.
class EngineConstraint : public testing::Test {
 protected:
  void SetUp() override {
    auto engine = Engine::Load({.model = Model10m(), .threads = 1});
    ASSERT_TRUE(engine.ok()) << engine.status().message();
    engine_ = *std::move(engine);
  }
  Request Make(const Result<Grammar>& grammar, std::span<const int32_t> ends) const {
    Request request{.prompt = {1, 2, 3}, .max_tokens = 20};
    auto trie = TokenTrie::Make(engine_->tokenizer(), engine_->config().vocab, ends);
    request.constraint = *Constraint::Make(*grammar, *trie);
    return request;
  }
  std::unique_ptr<Engine> engine_;
};

TEST_F(EngineConstraint, EndsWithTheTextWhetherOrNotThereIsAnEndToken) {
  const auto& eos = engine_->config().eos_tokens;
  std::vector<Request> requests = {
      Make(ParseGbnf("root ::= \"ab\""), eos), Make(ParseGbnf("root ::= \"ab\""), {}),
      Make(ParseGbnf("root ::= \"\""), {}), Make(ParseGbnf("root ::= \"\""), eos),
      Make(ParseGbnf("root ::= [a-z]*"), eos)};
  const auto done = engine_->Generate(requests);
  ASSERT_TRUE(done.ok()) << done.status().message();
  EXPECT_EQ((*done)[0].text, "ab");
  EXPECT_EQ((*done)[1].text, "ab");
  EXPECT_EQ((*done)[0].token_ids, (*done)[1].token_ids);
  EXPECT_EQ((*done)[2].text, "");
  EXPECT_EQ((*done)[3].text, "");
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ((*done)[i].finish, FinishReason::kStop) << i;
  EXPECT_EQ((*done)[4].text.find_first_not_of("abcdefghijklmnopqrstuvwxyz"), std::string::npos);
}

TEST_F(EngineConstraint, StopTextAndLengthEndItEarlier) {
  Request stopped = Make(ParseGbnf("root ::= \"abcabcabc\""), {});
  stopped.stop = {"ca"};
  Request cut = Make(ParseGbnf("root ::= \"a\"*"), {});
  cut.max_tokens = 3;
  const auto done = engine_->Generate(std::vector<Request>{stopped, cut});
  ASSERT_TRUE(done.ok());
  EXPECT_EQ((*done)[0].text, "ab");
  EXPECT_EQ((*done)[0].finish, FinishReason::kStop);
  EXPECT_EQ((*done)[1].finish, FinishReason::kLength);
  EXPECT_EQ((*done)[1].token_ids.size(), 3u);
}

TEST_F(EngineConstraint, GoesNotWithIgnoringTheEnd) {
  Request request = Make(ParseGbnf("root ::= \"ab\""), {});
  request.ignore_eos = true;
  const auto done = engine_->Generate({&request, 1});
  ASSERT_FALSE(done.ok());
  EXPECT_NE(done.status().message().find("ignore_eos"), std::string::npos);
}

}  // namespace
}  // namespace nibble::test
