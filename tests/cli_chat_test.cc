// SPDX-License-Identifier: Apache-2.0
// Tests. `nibble generate --chat` as a user runs it.
#include <gtest/gtest.h>

#include "tests/support/run_nibble.h"
#include "tests/support/temp_dir.h"

namespace nibble::test {
namespace {

using nlohmann::json;

Args Chat(Args rest) {
  Args args{"generate", "-m", Model10m(), "-p", "Who is there?", "-n", "4", "--chat", "--json"};
  args.insert(args.end(), rest.begin(), rest.end());
  return args;
}

// The ids of a text without the tokens around it.
size_t CountTokens(const std::string& text) {
  const RunResult r = RunNibble({"tokenize", "-m", Model10m(), "-p", text, "--no-special", "--json"});
  return json::parse(r.out)["ids"].size();
}

size_t PromptTokens(const Args& args) {
  const RunResult r = RunNibble(args);
  EXPECT_EQ(r.exit_code, 0) << r.err;
  return r.exit_code == 0 ? json::parse(r.out)["prompt_tokens"].get<size_t>() : 0;
}

TEST(CliChat, TheModelReadsWhatTheTemplateWrites) {
  const TempDir dir;
  WriteTestFile(dir / "t.jinja",
                "{% for m in messages %}\n[{{ m.role }}] {{ m.content }}\n{% endfor %}\n"
                "{% if add_generation_prompt %}[assistant]{{ note }}{% endif %}\n");
  const Args with{"--chat-template-file", dir / "t.jinja"};
  const auto more = [&](Args rest) {
    rest.insert(rest.begin(), with.begin(), with.end());
    return Chat(rest);
  };
  const size_t plain = CountTokens("[user] Who is there?\n[assistant]");
  EXPECT_EQ(PromptTokens(more({})), plain);
  EXPECT_EQ(PromptTokens(more({"--system", "Be brief."})),
            CountTokens("[system] Be brief.\n[user] Who is there?\n[assistant]"));
  EXPECT_EQ(PromptTokens(more({"--chat-template-kwargs", "{\"note\": [1, true]}"})),
            CountTokens("[user] Who is there?\n[assistant][1, True]"));
  EXPECT_NE(plain, CountTokens("Who is there?"));  // a template that did nothing would be seen
}

void ExpectError(const Args& args, int code, const std::string& says) {
  const RunResult r = RunNibble(args);
  EXPECT_EQ(r.exit_code, code) << r.err;
  EXPECT_EQ(r.out, "");
  EXPECT_NE(r.err.find(says), std::string::npos) << r.err;
  EXPECT_EQ(r.err.find('\n'), r.err.size() - 1) << r.err;
}

TEST(CliChat, WhatCannotBeIsOneLine) {
  const TempDir dir;
  WriteTestFile(dir / "no.jinja", "\n{{ raise_exception('no system messages') }}");
  WriteTestFile(dir / "open.jinja", "a\n\n{% if x %}");
  ExpectError(Chat({}), 1, "the model has no chat template");
  ExpectError(Chat({}), 1, "--chat-template-file gives one");
  ExpectError(Chat({"--chat-template-file", dir / "no.jinja"}), 1, "no.jinja, line 2: no system messages");
  ExpectError(Chat({"--chat-template-file", dir / "open.jinja"}), 1,
              "open.jinja, line 3: the template ends before endif");
  ExpectError(Chat({"--chat-template-file", dir / "none.jinja"}), 1, "none.jinja");
  WriteTestFile(dir / "t.jinja", "{{ messages }}");
  ExpectError(
      Chat({"--chat-template-file", dir / "t.jinja", "--chat-template-kwargs", "{\"tokenize\": true}"}), 1,
      "template variable tokenize: the name is reserved");
  ExpectError(Chat({"--chat-template-file", dir / "t.jinja", "--chat-template-kwargs", "[1]"}), 1,
              "wanted a JSON object");
  ExpectError(Chat({"--chat-template-file", dir / "t.jinja", "--system", "\xff"}), 1,
              "--system: byte 0 is not UTF-8");
  for (const char* option : {"--system", "--chat-template-file", "--chat-template-kwargs"}) {
    const RunResult r = RunNibble({"generate", "-m", Model10m(), "-p", "x", option, "y"});
    EXPECT_EQ(r.exit_code, 2) << option;
    EXPECT_NE(r.err.find("--chat"), std::string::npos) << r.err;
  }
}

}  // namespace
}  // namespace nibble::test
