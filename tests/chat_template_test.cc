// SPDX-License-Identifier: Apache-2.0
// Chat templates against Jinja in the environment of transformers: tests/golden/chat, by
// tools/golden/chat_templates.py. And where a model's template is found. NIBBLE_CHAT_ORACLE=DIR compares the
// templates of a folder instead, for which that script has written rendered.json.
#include "text/chat_template.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "base/file.h"
#include "base/json.h"
#include "tests/support/temp_dir.h"

namespace nibble {
namespace {

using jinja::Value;

const std::string kGolden = NIBBLE_SOURCE_DIR "/tests/golden/chat/";

Json ReadGolden(const std::string& name, const std::string& folder = kGolden) {
  auto json = Json::ReadFile(folder + name, {});
  EXPECT_TRUE(json.ok()) << json.status().message();
  return *std::move(json);
}

Value ToValue(std::optional<JsonRef> json) { return json ? *Value::FromJson(*json) : Value::None(); }

// The reference's answer: a text, or {"error": true}.
bool Agrees(const Result<std::string>& got, JsonRef want) {
  return got.ok() ? want.is_string() && *got == *want.String() : want.is_object();
}

std::string Shown(const Result<std::string>& got) {
  return got.ok() ? *got : "error: " + got.status().message();
}
std::string Shown(JsonRef want) { return want.is_string() ? std::string(*want.String()) : "error"; }

class ChatTemplates : public testing::Test {
 protected:
  void SetUp() override {
    setenv("TZ", "UTC", 1);  // of the clock that stands still in the golden files
    tzset();
  }
};

TEST_F(ChatTemplates, FamiliesRenderAsTheReference) {
  const char* oracle = std::getenv("NIBBLE_CHAT_ORACLE");
  const std::string folder = oracle ? std::string(oracle) + "/" : kGolden;
  const Json golden = ReadGolden("rendered.json", folder), conversations = ReadGolden("conversations.json");
  const JsonRef rendered = *golden.root().Find("rendered");
  const TempDir model;
  std::string tokens;
  for (size_t i = 0; i < golden.root().Find("tokens")->size(); ++i) {
    const JsonRef all = *golden.root().Find("tokens");
    tokens +=
        (i ? ",\"" : "{\"") + std::string(all.KeyAt(i)) + "\":\"" + std::string(*all[i].String()) + "\"";
  }
  WriteTestFile(model / "tokenizer_config.json", tokens + "}");
  int cases = 0, different = 0, errors = 0;
  for (size_t t = 0; t < rendered.size(); ++t) {
    const std::string file = folder + std::string(rendered.KeyAt(t)) + ".jinja";
    const auto chat = ChatTemplate::LoadFile(file, model.path());
    ASSERT_TRUE(chat.ok()) << chat.status().message();
    ASSERT_EQ(rendered[t].size(), 2 * conversations.root().size());
    for (size_t i = 0; i < rendered[t].size(); ++i, ++cases) {
      const JsonRef conversation = conversations.root()[i / 2];
      ChatInput input{.messages = ToValue(conversation.Find("messages")),
                      .tools = ToValue(conversation.Find("tools")),
                      .documents = ToValue(conversation.Find("documents")),
                      .add_generation_prompt = i % 2 == 1,
                      .now = *golden.root().GetInt("now", 0, INT64_MAX)};
      if (const auto extra = conversation.Find("extra")) input.extra = ToValue(extra).entries();
      const auto got = chat->Render(input);
      errors += !got.ok();
      if (Agrees(got, rendered[t][i])) continue;
      if (++different <= 5) {
        ADD_FAILURE() << file << ", " << *conversation.GetString("name") << ", prompt " << i % 2
                      << "\n--- want\n"
                      << Shown(rendered[t][i]) << "\n--- got\n"
                      << Shown(got);
      }
    }
  }
  std::printf("[ counts   ] %zu templates, %d texts and errors (%d), %d different\n", rendered.size(), cases,
              errors, different);
  EXPECT_EQ(different, 0);
  if (oracle) return;
  EXPECT_GE(rendered.size(), 30u);
  EXPECT_GT(errors, 0);
  EXPECT_LT(errors, cases / 4);
}

// How many of the generated templates are answered otherwise than by the reference; the first ones are shown.
int CountDifferent(const Json& golden, jinja::Trimming trimming, int show) {
  const Value context = ToValue(golden.root().Find("context"));
  const JsonRef cases = *golden.root().Find("cases");
  int different = 0;
  for (size_t i = 0; i < cases.size(); ++i) {
    const std::string_view text = *cases[i][0].String();
    const auto compiled = jinja::Template::Compile(text, "t", {}, trimming);
    const auto got = compiled.ok() ? compiled->Render(context.entries(), 1721999109)
                                   : Result<std::string>(compiled.status());
    if (Agrees(got, cases[i][1])) continue;
    if (++different <= show) {
      ADD_FAILURE() << text << "\n--- want\n" << Shown(cases[i][1]) << "\n--- got\n" << Shown(got);
    }
  }
  return different;
}

TEST_F(ChatTemplates, GeneratedTemplatesRenderAsTheReference) {
  const Json golden = ReadGolden("expressions.json");
  const size_t cases = golden.root().Find("cases")->size();
  std::printf("[ counts   ] %zu generated templates\n", cases);
  EXPECT_GE(cases, 4000u);
  EXPECT_EQ(CountDifferent(golden, {}, 10), 0);
}

// The broken variants: without either rule of whitespace some answers must differ.
TEST_F(ChatTemplates, WithoutTrimmingAnswersDiffer) {
  const Json golden = ReadGolden("expressions.json");
  EXPECT_GT(CountDifferent(golden, {.trim_blocks = false}, 0), 50);
  EXPECT_GT(CountDifferent(golden, {.lstrip_blocks = false}, 0), 10);
}

ChatInput OneMessage(bool prompt = false) {
  return {.messages = Value::List({ChatMessage("user", "Hi")}), .add_generation_prompt = prompt};
}

std::string RenderFolder(const TempDir& model, const ChatInput& input) {
  const auto chat = ChatTemplate::Load(model.path());
  return chat.ok() ? Shown(chat->Render(input)) : "error: " + chat.status().message();
}

TEST_F(ChatTemplates, AreFoundWhereModelsKeepThem) {
  const TempDir model;
  EXPECT_EQ(ChatTemplate::Load(model.path()).status().code(), Code::kNotFound);
  WriteTestFile(model / "tokenizer_config.json", R"({"chat_template": null, "bos_token": "<s>"})");
  EXPECT_EQ(ChatTemplate::Load(model.path()).status().code(), Code::kNotFound);
  WriteTestFile(model / "tokenizer_config.json",
                R"({"chat_template": "{{ bos_token }}{{ eos_token }}{{ messages[0].content }}{{ pad_token }}",
                    "bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>", "pad_token": null})");
  EXPECT_EQ(RenderFolder(model, OneMessage()), "<s></s>Hi");
  WriteTestFile(model / "special_tokens_map.json",
                R"({"pad_token": {"content": "<pad>"}, "bos_token": "other"})");
  EXPECT_EQ(RenderFolder(model, OneMessage()), "<s></s>Hi<pad>");
  WriteTestFile(model / "chat_template.jinja", "file {{ add_generation_prompt }}\n");
  EXPECT_EQ(RenderFolder(model, OneMessage(true)), "file True");
  std::filesystem::create_directory(model / "additional_chat_templates");
  WriteTestFile(model / "additional_chat_templates/tool_use.jinja", "tools {{ tools|length }}");
  ChatInput with_tools = OneMessage();
  EXPECT_EQ(RenderFolder(model, with_tools), "file False");
  with_tools.tools = Value::List({Value::Dict({})});
  EXPECT_EQ(RenderFolder(model, with_tools), "tools 1");
}

TEST_F(ChatTemplates, OfSeveralTheNamedOneIsTaken) {
  const TempDir model;
  const auto write = [&](const std::string& first) {
    WriteTestFile(model / "tokenizer_config.json",
                  R"({"chat_template": [{"name": ")" + first +
                      R"(", "template": "A"}, {"name": "tool_use", "template": "B"}]})");
  };
  write("default");
  ChatInput input = OneMessage();
  EXPECT_EQ(RenderFolder(model, input), "A");
  input.tools = Value::List({});
  EXPECT_EQ(RenderFolder(model, input), "B");
  write("rag");
  EXPECT_EQ(RenderFolder(model, input), "B");
  EXPECT_NE(
      RenderFolder(model, OneMessage()).find("several chat templates (rag, tool_use) and none named default"),
      std::string::npos);
}

TEST_F(ChatTemplates, RefuseVariablesOfTheRenderer) {
  const TempDir model;
  WriteTestFile(model / "chat_template.jinja", "{{ enable_thinking }}{{ bos_token }}");
  for (const char* name :
       {"messages", "tools", "documents", "tokenize", "add_generation_prompt", "chat_template"}) {
    ChatInput input = OneMessage();
    input.extra = {{Value::String(name), Value::Bool(true)}};
    EXPECT_NE(RenderFolder(model, input).find(std::string(name) + ": the name is reserved"),
              std::string::npos);
  }
  ChatInput input = OneMessage();
  input.extra = {{Value::String("enable_thinking"), Value::Bool(false)},
                 {Value::String("bos_token"), Value::String("<b>")}};
  EXPECT_EQ(RenderFolder(model, input), "False<b>");
  input.messages = Value::List({});
  EXPECT_NE(RenderFolder(model, input).find("messages: wanted a list of at least one dict"),
            std::string::npos);
}

TEST_F(ChatTemplates, GiveMessagesAsTransformersDoes) {
  const TempDir model;
  WriteTestFile(model / "chat_template.jinja", "{{ messages[0] }}");
  ChatInput input;
  const auto message = [&](const char* json) {
    input.messages = Value::List({ToValue(Json::Parse(json, {}, "m")->root())});
    return RenderFolder(model, input);
  };
  EXPECT_EQ(message(R"({"role": "user", "content": null, "x": 1})"), "{'role': 'user', 'x': 1}");
  EXPECT_EQ(message(R"({"a": 1, "reasoning": "r", "thinking": "t"})"),
            "{'thinking': 't', 'a': 1, 'reasoning': 'r', 'reasoning_content': 't'}");
  EXPECT_EQ(message(R"({"reasoning_content": "r", "b": 2})"),
            "{'thinking': 'r', 'reasoning_content': 'r', 'b': 2}");
}

TEST(JinjaLimits, ArePrinted) {
  const std::string text = jinja::Limits{}.ToString();
  for (const char* line : {"source_bytes 1048576\n", "steps 10000000\n", "turns 1000000\n",
                           "string_bytes 16777216\n", "calls 256\n", "nesting 128\n", "range 100000\n"})
    EXPECT_NE(text.find(line), std::string::npos) << line;
}

}  // namespace
}  // namespace nibble
