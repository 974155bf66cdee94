// SPDX-License-Identifier: Apache-2.0
// Bodies of requests that are wrong in every way we could think of, and the formats of answers. No sockets,
// no model.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <span>

#include "apps/server/anthropic.h"
#include "apps/server/api_error.h"
#include "apps/server/openai_format.h"
#include "apps/server/openai_request.h"
#include "apps/server/responses.h"

namespace nibble::server {
namespace {

using nlohmann::json;

Status ParseCompletion(const std::string& body) {
  const Limits limits;
  NIBBLE_ASSIGN(const Json parsed, ParseBody(body, limits));
  return ParseCompletionRequest(parsed.root(), limits).status();
}

Status ParseChatBody(const std::string& body) {
  const Limits limits;
  NIBBLE_ASSIGN(const Json parsed, ParseBody(body, limits));
  return ParseChatRequest(parsed.root(), limits).status();
}

std::string Completion(const std::string& fields) {
  return R"({"model":"m","prompt":"p")" + (fields.empty() ? "" : "," + fields) + "}";
}
std::string Chat(const std::string& fields) {
  return R"({"messages":[{"role":"user","content":"hi"}])" + (fields.empty() ? "" : "," + fields) + "}";
}
std::string Repeat(const std::string& part, int times) {
  std::string out;
  for (int i = 0; i < times; ++i) out += part;
  return out;
}

// One line that names the field.
void ExpectRefused(const Status& status, const std::string& field, const std::string& input) {
  ASSERT_FALSE(status.ok()) << input.substr(0, 200);
  EXPECT_EQ(HttpStatus(status.code()), 400) << input.substr(0, 200);
  EXPECT_NE(status.message().find(field), std::string::npos)
      << input.substr(0, 200) << ": " << status.message();
  EXPECT_EQ(status.message().find('\n'), std::string::npos);
  const json body = json::parse(ErrorBody(400, status.message()));
  EXPECT_TRUE(body["error"]["message"].is_string());
  EXPECT_EQ(body["error"]["type"], "invalid_request_error");
}

struct Bad {
  const char* fields;
  const char* named;
};

void ExpectBothRefuse(std::span<const Bad> cases) {
  for (const Bad& bad : cases) {
    ExpectRefused(ParseCompletion(Completion(bad.fields)), bad.named, bad.fields);
    ExpectRefused(ParseChatBody(Chat(bad.fields)), bad.named, bad.fields);
  }
}

TEST(ServerRequest, BadFieldsAreNamed) {
  const Bad both[] = {
      {R"("max_tokens":-1)", "max_tokens"},
      {R"("max_tokens":2147483648)", "max_tokens"},
      {R"("max_tokens":9223372036854775808)", "max_tokens"},
      {R"("max_tokens":1.5)", "max_tokens"},
      {R"("max_tokens":"10")", "max_tokens"},
      {R"("n":0)", "n"},
      {R"("n":129)", "n"},
      {R"("n":1000000000)", "n"},
      {R"("n":2,"best_of":1)", "best_of"},
      {R"("best_of":2,"stream":true)", "best_of"},
      {R"("temperature":-1)", "temperature"},
      {R"("temperature":1e30)", "temperature"},
      {R"("temperature":"hot")", "temperature"},
      {R"("top_p":0)", "top_p"},
      {R"("top_p":-1)", "top_p"},
      {R"("top_p":1.1)", "top_p"},
      {R"("top_k":-2)", "top_k"},
      {R"("top_k":2147483648)", "top_k"},
      {R"("min_p":2)", "min_p"},
      {R"("repetition_penalty":0)", "repetition_penalty"},
      {R"("repetition_penalty":-1)", "repetition_penalty"},
      {R"("repetition_penalty":1e30)", "repetition_penalty"},
      {R"("frequency_penalty":2.5)", "frequency_penalty"},
      {R"("presence_penalty":-3)", "presence_penalty"},
      {R"("logit_bias":{"-1":1})", "logit_bias"},
      {R"("logit_bias":{"abc":1})", "logit_bias"},
      {R"("logit_bias":{"99999999999":1})", "logit_bias"},
      {R"("logit_bias":{"5":1e30})", "logit_bias"},
      {R"("logit_bias":[1])", "logit_bias"},
      {R"("stop":["a","b","c","d","e"])", "stop"},
      {R"("stop":"")", "stop"},
      {R"("stop":[""])", "stop[0]"},
      {R"("stop":[1])", "stop[0]"},
      {R"("stop":7)", "stop"},
      {R"("seed":1.5)", "seed"},
      {R"("seed":18446744073709551616)", "number"},
      {R"("seed":"1")", "seed"},
      {R"("stream":"true")", "stream"},
      {R"("stream_options":{"include_usage":true})", "stream_options"},
      {R"("stream":true,"stream_options":[])", "stream_options"},
      {R"("stop_token_ids":[-1])", "stop_token_ids[0]"},
      {R"("suffix":"end")", "suffix"},
      {R"("use_beam_search":true)", "use_beam_search"},
      {R"("min_tokens":5)", "min_tokens"},
      {R"("chat_template":"{{ x }}")", "chat_template"},
      {R"("model":5)", "model"},
      {R"("priority":1e9)", "priority"},
      {R"("model":"a","model":"b")", "twice"},
  };
  ExpectBothRefuse(both);
}

TEST(ServerRequest, BadConstraintsAreNamed) {
  const Bad both[] = {
      {R"("response_format":{"type":"xml"})", "response_format.type"},
      {R"("response_format":{"type":"json_schema"})", "response_format"},
      {R"("response_format":{"type":"json_object"},"guided_regex":"a")", "guided_regex"},
      {R"("guided_choice":[])", "guided_choice"},
      {R"("guided_regex":"")", "guided_regex"},
      {R"("ignore_eos":true,"guided_regex":"a")", "ignore_eos"},
  };
  ExpectBothRefuse(both);
}

TEST(ServerRequest, BadFieldsOfCompletionsAreNamed) {
  const Bad completion[] = {
      {R"("logprobs":-1)", "logprobs"},
      {R"("logprobs":21)", "logprobs"},
      {R"("logprobs":true)", "logprobs"},
      {R"("max_tokens":0)", "max_tokens"},
      {R"("echo":1)", "echo"},
      {R"("echo":true,"best_of":2)", "echo"},
      {R"("max_tokens":5,"max_tokens":6)", "twice"},
  };
  for (const Bad& bad : completion)
    ExpectRefused(ParseCompletion(Completion(bad.fields)), bad.named, bad.fields);
}

TEST(ServerRequest, BadFieldsOfChatsAreNamed) {
  const Bad chat[] = {
      {R"("top_logprobs":3)", "top_logprobs"},
      {R"("logprobs":true,"top_logprobs":21)", "top_logprobs"},
      {R"("logprobs":5)", "logprobs"},
      {R"("tools":{})", "tools"},
      {R"("tools":[{"type":"retrieval"}])", "tools[0].type"},
      {R"("tools":[{"type":"function","function":{"name":""}}])", "name"},
      {R"("tools":[{"type":"function","function":{"name":"f","parameters":7}}])", "parameters"},
      {R"("tool_choice":"required")", "tool_choice"},
      {R"("tool_choice":{"type":"function","function":{"name":"f"}})", "tool_choice"},
      {R"("continue_final_message":true)", "continue_final_message"},
      {R"("modalities":["text","audio"])", "modalities"},
      {R"("store":true)", "store"},
      {R"("function_call":"auto")", "function_call"},
      {R"("chat_template_kwargs":[])", "chat_template_kwargs"},
      {R"("max_completion_tokens":0)", "max_tokens"},
  };
  for (const Bad& bad : chat) ExpectRefused(ParseChatBody(Chat(bad.fields)), bad.named, bad.fields);
}

TEST(ServerRequest, BadToolsAreNamed) {
  const Limits limits;
  const auto status = [&](auto parse, const std::string& text) {
    const auto body = ParseBody(text, limits);
    return parse(body->root());
  };
  const auto messages = [&](JsonRef body) { return ParseMessagesRequest(body, limits, false).status(); };
  const auto responses = [&](JsonRef body) { return ParseResponsesRequest(body, limits).status(); };
  const std::string one = R"({"type":"function","name":"f","input_schema":{}},)";
  for (const std::string& tools :
       {std::string("{}"), std::string("\"x\""), "[" + Repeat(one, 128) + one + "1]"}) {
    const std::string text =
        R"({"messages":[{"role":"user","content":"x"}],"input":"x","max_tokens":1,"tools":)" + tools + "}";
    ExpectRefused(ParseChatBody(text), "tools", text);
    ExpectRefused(status(messages, text), "tools", text);
    ExpectRefused(status(responses, text), "tools", text);
  }
}

TEST(ServerRequest, BadBodiesAreRefused) {
  const std::string bodies[] = {
      "",
      "[]",
      "\"x\"",
      "{\"prompt\":\"a\"",
      "{\"prompt\":\"a\"} x",
      "{\"prompt\":\"a\",\"temperature\":NaN}",
      "{\"prompt\":\"a\",\"temperature\":Infinity}",
      "{\"prompt\":\"a\",\"temperature\":1e999}",
      "{\"prompt\":\"a\",\"temperature\":0x10}",
      R"({"prompt":"\ud800"})",
      R"({"prompt":"\udc00"})",
      R"({"prompt":"\udc00\ud800"})",
      "{\"prompt\":\"\x80\xff\"}",
      R"({"prompt":"a","x":)" + Repeat("[", 65) + Repeat("]", 65) + "}",
      R"({"prompt":"a","x":)" + Repeat("[", 1'000'000),
      R"({"prompt":"a","x":[)" + Repeat("1,", 1'000'001) + "1]}",
  };
  for (const std::string& body : bodies) {
    const Status status = ParseCompletion(body);
    EXPECT_EQ(HttpStatus(status.code()), 400) << body.substr(0, 60);
  }
}

TEST(ServerRequest, BadPromptsAndMessagesAreNamed) {
  for (const char* prompt :
       {"[]", "[[]]", "[-1]", "[2147483648]", R"(["a",1])", R"([[1],"a"])", "null", "5", "[[1.5]]"})
    ExpectRefused(ParseCompletion(fmt::format(R"({{"prompt":{}}})", prompt)), "prompt", prompt);
  ExpectRefused(ParseCompletion("{}"), "prompt", "{}");
  const Bad messages[] = {
      {"[]", "messages"},
      {"null", "messages"},
      {R"([{"content":"x"}])", "role"},
      {R"([{"role":"robot","content":"x"}])", "messages[0].role"},
      {R"([{"role":"user","content":null}])", "messages[0].content"},
      {R"([{"role":"user"}])", "messages[0].content"},
      {R"([{"role":"user","content":5}])", "content"},
      {R"([{"role":"user","content":[{"type":"image_url","image_url":{"url":"http://x"}}]}])",
       "content[0].type"},
      {R"([{"role":"user","content":[{"type":"text"}]}])", "text"},
      {R"([{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"[1]"}}]}])", "arguments"},
      {R"([{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"{"}}]}])", "arguments"},
      {R"(["x"])", "messages[0]"},
  };
  for (const Bad& bad : messages)
    ExpectRefused(ParseChatBody(fmt::format(R"({{"messages":{}}})", bad.fields)), bad.named, bad.fields);
}

TEST(ServerRequest, GoodFieldsArrive) {
  const Limits limits;
  const auto body =
      ParseBody(Completion(R"("max_tokens":7,"n":2,"best_of":3,"temperature":-0,"top_p":0.5,"top_k":-1,
    "min_p":0.1,"seed":-1,"logit_bias":{"5":-100,"6":100},"stop":["a","b"],"logprobs":3,"echo":true,
    "best_of":2,"unknown_field":{"a":1},"n_discard":-5,"user":"u")"),
                limits);
  ASSERT_FALSE(body.ok());  // best_of twice: the table above would not see a reader that takes the last one
  const auto again = ParseBody(Completion(R"("max_tokens":7,"n":2,"temperature":-0,"top_p":0.5,"top_k":-1,
    "min_p":0.1,"seed":-1,"logit_bias":{"5":-100,"6":100},"stop":["a","b"],"logprobs":3,"echo":true,
    "unknown_field":{"a":1},"n_discard":-5,"user":"u","suffix":null)"),
                               limits);
  ASSERT_TRUE(again.ok());
  const auto request = ParseCompletionRequest(again->root(), limits);
  ASSERT_TRUE(request.ok()) << request.status().message();
  const GenerateFields& f = request->fields;
  EXPECT_EQ(f.max_tokens, 7);
  EXPECT_EQ(f.n, 2);
  EXPECT_EQ(f.best_of, 2);
  EXPECT_EQ(f.sampling.temperature, 0);
  EXPECT_EQ(f.sampling.top_k, 0);
  EXPECT_FLOAT_EQ(f.sampling.min_p, 0.1f);
  EXPECT_EQ(f.seed, ~uint64_t{0});
  EXPECT_EQ(f.sampling.logit_bias.size(), 2u);
  EXPECT_EQ(f.stop, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(f.logprobs, 3);
  EXPECT_TRUE(request->echo);
  EXPECT_EQ(f.ignored, (std::vector<std::string>{"unknown_field", "n_discard"}));
}

TEST(ServerRequest, PromptsInEveryForm) {
  const Limits limits;
  const auto count = [&](const char* prompt) {
    const auto body = ParseBody(fmt::format(R"({{"prompt":{}}})", prompt), limits);
    return ParsePrompts(body->root(), "prompt", 100)->size();
  };
  EXPECT_EQ(count(R"("text")"), 1u);
  EXPECT_EQ(count(R"(["a","b"])"), 2u);
  EXPECT_EQ(count("[1,2,3]"), 1u);
  EXPECT_EQ(count("[[1,2],[3]]"), 2u);
  EXPECT_EQ(count(R"("a\u0000b")"), 1u);
}

TEST(ServerRequest, ConstraintsThatCannotBeCompiledAreNamed) {
  TokenSpellings letters;
  for (char c = 'a'; c <= 'z'; ++c) letters.anywhere.emplace_back(1, c);
  letters.first = letters.anywhere;
  const auto trie = std::make_shared<const TokenTrie>(letters, std::vector<int32_t>{});
  const std::pair<const char*, std::string> cases[] = {
      {"grammar", Repeat("(", 60000) + "\"a\"" + Repeat(")", 60000)},
      {"grammar", "root ::= root \"a\""},
      {"grammar", "root ::= other"},
      {"guided_regex", "^+[a-z]$"},
      {"guided_regex", "(?<=x)"},
      {"guided_regex", Repeat("(", 100000)},
      {"guided_regex", "["},
      {"guided_regex", "a{1000000}"},
      {"guided_json", "{\"type\":\"string\",\"maxLength\":-1}"},
      {"guided_json", "{\"type\":\"array\",\"minItems\":1000000000}"},
      {"guided_json", "{\"type\":\"number\",\"multipleOf\":0}"},
      {"guided_json", "{\"$ref\":\"http://example.com/a\"}"},
      {"guided_json", "false"},
  };
  for (const auto& [field, text] : cases) {
    const std::string body = json{{field, text}}.dump();
    const auto parsed = ParseBody(body, Limits{});
    ASSERT_TRUE(parsed.ok());
    const auto structured = ParseStructured(parsed->root());
    ASSERT_TRUE(structured.ok()) << structured.status().message();
    ExpectRefused(MakeConstraint(*structured, trie).status(), field, text);
  }
}

// What a client puts together from a stream is what it would have got whole.
TEST(ServerFormat, ChatStreamHasTheConventionsParts) {
  const AnswerHead head{.id = "chatcmpl-1", .model = "m", .created = 5, .choices = 1, .include_usage = true};
  const auto format = MakeChatFormat(head, ToolSyntax::kNone);
  Choice choice;
  std::string stream = format->Begin();
  stream += format->Piece(choice, {"Hel\"lo", {}});
  choice.finish = FinishReason::kStop;
  stream += format->Piece(choice, {"!", {}});
  choice.usage.new_tokens = 2;
  stream += format->End({&choice, 1}, Sum({&choice, 1}));
  std::vector<json> chunks;
  std::string text;
  size_t at = 0;
  while (stream.compare(at, 12, "data: [DONE]") != 0) {
    const size_t end = stream.find("\n\n", at);
    ASSERT_EQ(stream.compare(at, 6, "data: "), 0);
    chunks.push_back(json::parse(stream.substr(at + 6, end - at - 6)));
    at = end + 2;
  }
  EXPECT_EQ(stream.substr(at), "data: [DONE]\n\n");
  ASSERT_EQ(chunks.size(), 5u);
  EXPECT_EQ(chunks[0]["choices"][0]["delta"]["role"], "assistant");
  EXPECT_EQ(chunks[1]["choices"][0]["delta"]["content"], "Hel\"lo");
  EXPECT_TRUE(chunks[1]["choices"][0]["finish_reason"].is_null());
  EXPECT_EQ(chunks[3]["choices"][0]["finish_reason"], "stop");
  EXPECT_TRUE(chunks[3]["choices"][0]["delta"].empty());
  EXPECT_TRUE(chunks[3]["usage"].is_null());
  EXPECT_TRUE(chunks[4]["choices"].empty());
  EXPECT_EQ(chunks[4]["usage"]["completion_tokens"], 2);
  for (const json& chunk : chunks) {
    EXPECT_EQ(chunk["id"], "chatcmpl-1");
    EXPECT_EQ(chunk["object"], "chat.completion.chunk");
    EXPECT_EQ(chunk["created"], 5);
  }
}

struct CallCase {
  ToolSyntax syntax;
  std::string text, content;
  std::vector<std::string> calls;  // "name arguments"
};

TEST(ServerFormat, ToolCallsAtEverySplit) {
  const std::string call = R"({"name": "f", "arguments": {"a": [1, "x"]}})";
  const CallCase cases[] = {
      {ToolSyntax::kTagged, "Hi <tool_call>\n" + call + "\n</tool_call>", "Hi ", {R"(f {"a":[1,"x"]})"}},
      {ToolSyntax::kTagged,
       "<tool_call>" + call + "</tool_call><tool_call>" + call + "</tool_call>",
       "",
       {R"(f {"a":[1,"x"]})", R"(f {"a":[1,"x"]})"}},
      {ToolSyntax::kTagged, "a < b <tool", "a < b <tool", {}},
      {ToolSyntax::kTagged, "<tool_call>no json</tool_call>", "<tool_call>no json</tool_call>", {}},
      {ToolSyntax::kArray, "[" + call + "]", "", {R"(f {"a":[1,"x"]})"}},
      {ToolSyntax::kArray, "[TOOL_CALLS] [" + call + "]", "", {R"(f {"a":[1,"x"]})"}},
      {ToolSyntax::kObject, R"({"name":"g","parameters":{}})", "", {"g {}"}},
      {ToolSyntax::kObject, R"({"neither": 1})", R"({"neither": 1})", {}},
      {ToolSyntax::kNone, call, call, {}},
  };
  for (const CallCase& c : cases) {
    for (size_t split = 0; split <= c.text.size(); ++split) {
      ToolText text(c.syntax);
      std::string content = text.Push(std::string_view(c.text).substr(0, split));
      content += text.Push(std::string_view(c.text).substr(split));
      const ToolText::Rest rest = text.Finish();
      content += rest.content;
      EXPECT_EQ(content, c.content) << split;
      ASSERT_EQ(rest.calls.size(), c.calls.size()) << c.text << split;
      for (size_t i = 0; i < rest.calls.size(); ++i)
        EXPECT_EQ(rest.calls[i].name + " " + rest.calls[i].arguments, c.calls[i]);
    }
  }
}

TEST(ServerFormat, ErrorsNameTheField) {
  const json error =
      json::parse(ErrorBody(400, "request: messages[0].role: wanted a string, found 3"))["error"];
  EXPECT_EQ(error["param"], "messages[0].role");
  EXPECT_EQ(error["message"], "messages[0].role: wanted a string, found 3");
  EXPECT_TRUE(json::parse(ErrorBody(500, "The engine: broke"))["error"]["param"].is_null());
  EXPECT_EQ(json::parse(ErrorBody(429, "busy", Dialect::kAnthropic))["error"]["type"], "rate_limit_error");
}

}  // namespace
}  // namespace nibble::server
