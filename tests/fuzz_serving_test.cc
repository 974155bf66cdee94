// SPDX-License-Identifier: Apache-2.0
// What clients send, broken at random with a fixed seed: bytes of HTTP, bodies, grammars, patterns; and
// tokens of which no text is made well. NIBBLE_FUZZ_ROUNDS makes it longer, NIBBLE_FUZZ_SECONDS ends each
// part earlier. Templates are in jinja_bad_input_test.cc.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "apps/server/anthropic.h"
#include "apps/server/openai_request.h"
#include "apps/server/responses.h"
#include "base/utf8.h"
#include "engine/text_stream.h"
#include "tests/support/bad_inputs.h"
#include "tests/support/mutator.h"
#include "tests/support/running_server.h"
#include "text/gbnf.h"
#include "text/regex_grammar.h"

namespace nibble::server {
namespace {

using std::chrono::steady_clock;

class Rounds {
 public:
  Rounds(int usual, int sanitized) : rounds_(kSanitized ? sanitized : usual) {
    if (const char* text = std::getenv("NIBBLE_FUZZ_ROUNDS")) rounds_ = std::atoi(text);
    const char* seconds = std::getenv("NIBBLE_FUZZ_SECONDS");
    end_ = steady_clock::now() + std::chrono::seconds(seconds == nullptr ? 3600 : std::atoi(seconds));
  }
  bool Next() { return done_ < rounds_ && (done_ % 64 != 0 || steady_clock::now() < end_) && ++done_ > 0; }
  int done() const { return done_; }
  void Report(const char* what, int accepted) const {
    std::printf("[ fuzz     ] %s: %d inputs, %d accepted\n", what, done_, accepted);
  }

 private:
  int rounds_ = 0, done_ = 0;
  steady_clock::time_point end_;
};

// A refusal is one line of UTF-8 for the client.
void ExpectRefusal(const Status& status, const std::string& input) {
  const int http = HttpStatus(status.code());
  ASSERT_TRUE(http >= 400 && http < 500) << http << " " << status.message() << "\n" << input;
  ASSERT_FALSE(status.message().empty()) << input;
  ASSERT_EQ(status.message().find('\n'), std::string::npos) << input;
  ASSERT_TRUE(nlohmann::json::accept(ErrorBody(http, status.message()))) << input;
}

const std::vector<std::string> kHttpRequests = {
    "GET /version HTTP/1.1\r\nHost: x\r\nAccept: */*\r\nConnection: keep-alive\r\n\r\n",
    "GET /health/live HTTP/1.0\r\n\r\n",
    "HEAD /v1/models HTTP/1.1\r\nHost: x\r\n\r\nGET /v1/models/fake?a=b HTTP/1.1\r\nHost: x\r\n\r\n",
    "OPTIONS /v1/completions HTTP/1.1\r\nHost: x\r\nOrigin: https://a.example\r\n"
    "Access-Control-Request-Method: POST\r\n\r\n",
    "POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nX-Request-Id: abc\r\n"
    "Content-Length: 14\r\n\r\n{\"prompt\":\"a\"}GET /version HTTP/1.1\r\nHost: x\r\n\r\n",
    "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    "Transfer-Encoding: "
    "chunked\r\n\r\n10\r\n{\"prompt\":\"abc\",\r\n10;ext=1\r\n\"max_tokens\":10}\r\n0\r\nA: b\r\n\r\n",
    "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
    "Content-Length: 51\r\n\r\n{\"prompt\":\"a dark night\",\"max_tokens\":3,\"stream\":true}",
};
const std::vector<std::string> kHttpPieces = {"\r\n",
                                              "\r",
                                              "\n",
                                              "\r\n\r\n",
                                              ":",
                                              " ",
                                              "\t",
                                              ";",
                                              "\x01",
                                              "\xff",
                                              "Content-Length: 5\r\n",
                                              "Content-Length: 0\r\n",
                                              "Transfer-Encoding: chunked\r\n",
                                              "Transfer-Encoding: identity\r\n",
                                              "HTTP/1.1",
                                              "HTTP/9.9",
                                              "Host: y\r\n",
                                              "Connection: close\r\n",
                                              "Upgrade: h2c\r\n",
                                              "ffffffffffffffff\r\n",
                                              "0\r\n\r\n",
                                              "GET / HTTP/1.1\r\n",
                                              std::string("\0", 1),
                                              std::string(3000, 'a')};

// Whatever bytes come, the answers are HTTP, the connection ends, and nothing is left behind.
TEST(FuzzServing, BytesOfHttp) {
  ServerConfig setup;
  setup.http.limits.max_header_bytes = 2048;
  const Running server(setup);
  Rounds rounds(3000, 300);
  Mutator mutator(21, kHttpPieces);
  int good = 0;
  while (rounds.Next()) {
    std::string bytes = kHttpRequests[mutator.Below(kHttpRequests.size())];
    if (mutator.Below(4) == 0) bytes += kHttpRequests[mutator.Below(kHttpRequests.size())];
    bytes = mutator.Break(std::move(bytes));
    HttpClient client = server.Connect();
    const size_t cut = mutator.Below(bytes.size() + 1);
    const bool sent = client.Send(bytes.substr(0, cut)).ok() && client.Send(bytes.substr(cut)).ok();
    client.FinishSend();
    const auto first = client.Read();
    if (first.ok()) {
      ASSERT_TRUE(first->status >= 200 && first->status < 600) << bytes;
      good += first->status == 200 ? 1 : 0;
    } else if (sent) {
      ASSERT_EQ(first.status().message().find("not an HTTP/1.1 answer"), std::string::npos) << bytes;
    }
    client.Reset();
  }
  rounds.Report("HTTP", good);
  EXPECT_GT(good, rounds.done() / 100);
  EXPECT_LT(good, rounds.done());
  EXPECT_TRUE(
      server.Eventually([&] { return server.http->connections() == 0 && server.engine.running == 0; }));
  EXPECT_EQ(server.Call("POST", "/v1/completions", Completion(3)).status, 200);
}

const std::vector<std::string> kBodies = {
    R"({"model":"m","prompt":["a\u00e9","b"],"max_tokens":7,"n":2,"best_of":3,"temperature":0.5,"top_p":0.9,"top_k":-1,"min_p":0.1,"seed":-1,"logit_bias":{"5":-100},"stop":["a","b"],"logprobs":3,"echo":true,"priority":-3,"cache_salt":"s"})",
    R"({"prompt":[[1,2,3],[4]],"stream":true,"stream_options":{"include_usage":true},"guided_choice":["a","b"]})",
    R"({"messages":[{"role":"system","content":"x"},{"role":"user","content":[{"type":"text","text":"y"}]},{"role":"assistant","tool_calls":[{"id":"1","function":{"name":"f","arguments":"{\"a\":1}"}}]},{"role":"tool","tool_call_id":"1","content":"z"}],"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}],"tool_choice":"auto","max_completion_tokens":5,"logprobs":true,"top_logprobs":2})",
    R"({"messages":[{"role":"user","content":"x"}],"response_format":{"type":"json_schema","json_schema":{"schema":{"type":"integer"}}},"chat_template_kwargs":{"a":[1]},"documents":[{"title":"t"}]})",
    R"({"model":"m","system":[{"type":"text","text":"s"}],"max_tokens":5,"messages":[{"role":"user","content":[{"type":"tool_result","tool_use_id":"1","content":"x"}]},{"role":"assistant","content":"y"}],"tools":[{"name":"f","input_schema":{}}],"tool_choice":{"type":"tool","name":"f"},"stop_sequences":["q"]})",
    R"({"input":[{"role":"user","content":"x"},{"type":"function_call","call_id":"1","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"1","output":"y"}],"instructions":"i","max_output_tokens":4,"text":{"format":{"type":"json_object"}},"store":false})",
    R"({"input":["a",[1,2]],"encoding_format":"base64","pooling":"mean"})",
};

TEST(FuzzServing, BodiesOfRequests) {
  Limits limits;
  limits.max_json_nodes = 10'000;
  Rounds rounds(60'000, 6000);
  Mutator mutator(22);
  int accepted = 0;
  while (rounds.Next()) {
    const std::string text = mutator.Break(kBodies[mutator.Below(kBodies.size())]);
    const auto body = ParseBody(text, limits);
    if (!body.ok()) {
      ExpectRefusal(body.status(), text);
      continue;
    }
    const Status statuses[] = {ParseCompletionRequest(body->root(), limits).status(),
                               ParseChatRequest(body->root(), limits).status(),
                               ParseMessagesRequest(body->root(), limits, mutator.Below(2) == 0).status(),
                               ParseResponsesRequest(body->root(), limits).status(),
                               ParseEmbeddingRequest(body->root(), limits).status()};
    bool good = false;
    for (const Status& status : statuses) {
      good |= status.ok();
      if (!status.ok()) ExpectRefusal(status, text);
    }
    accepted += good ? 1 : 0;
    if (::testing::Test::HasFailure()) return;
  }
  rounds.Report("bodies", accepted);
  EXPECT_GT(accepted, rounds.done() / 100);
  EXPECT_LT(accepted, rounds.done());
}

std::shared_ptr<const TokenTrie> Letters() {
  TokenSpellings tokens;
  for (int c = 1; c < 256; ++c) tokens.anywhere.emplace_back(1, static_cast<char>(c));
  for (const char* word : {"ab", "abc", "12", "\"a\"", "é", "  "}) tokens.anywhere.emplace_back(word);
  tokens.anywhere.emplace_back();  // the end
  tokens.first = tokens.anywhere;
  const int32_t end = static_cast<int32_t>(tokens.anywhere.size()) - 1;
  return std::make_shared<const TokenTrie>(tokens, std::vector<int32_t>{end});
}

// Writes a text that the constraint allows, token by token: there is always one until the text is whole.
void Walk(const std::shared_ptr<Constraint>& constraint, const std::string& input, Mutator* mutator) {
  ConstraintState state(constraint);
  for (int step = 0; step < 12 && !state.Finished(); ++step) {
    const auto mask = state.Mask();
    std::vector<int32_t> allowed;
    for (int32_t t = 0; t < constraint->trie().vocab(); ++t)
      if ((mask[static_cast<size_t>(t) / 64] >> (t % 64) & 1) != 0) allowed.push_back(t);
    ASSERT_TRUE(!allowed.empty() || constraint->exhausted()) << input;
    if (allowed.empty()) return;
    const int32_t token = allowed[mutator->Below(allowed.size())];
    ASSERT_TRUE(state.Accept(token) || constraint->exhausted()) << input;
    if (token + 1 == constraint->trie().vocab()) return;
  }
}

using Compile = Result<Grammar> (*)(std::string_view, const GrammarLimits&);

void FuzzGrammar(const char* what, Compile compile, const std::vector<std::string>& good,
                 const std::vector<std::string>& pieces, uint64_t seed) {
  const GrammarLimits limits{.max_text_bytes = 4096,
                             .max_pattern_bytes = 1024,
                             .max_rules = 100,
                             .max_repeat = 200,
                             .max_nodes = 4096,
                             .max_states = 2048,
                             .max_edges = 8192};
  const auto trie = Letters();
  Rounds rounds(6000, 600);
  Mutator mutator(seed, pieces);
  int accepted = 0;
  while (rounds.Next()) {
    std::string text = good[mutator.Below(good.size())];
    if (mutator.Below(3) == 0) text += good[mutator.Below(good.size())];
    text = mutator.Break(std::move(text));
    const auto grammar = compile(text, limits);
    const auto made = grammar.ok() ? Constraint::Make(*grammar, trie) : grammar.status();
    if (made.ok()) {
      ++accepted;
      Walk(*made, text, &mutator);
    } else {
      ExpectRefusal(made.status(), text);
    }
    if (::testing::Test::HasFailure()) return;
  }
  rounds.Report(what, accepted);
  EXPECT_GT(accepted, rounds.done() / 100);
  EXPECT_LT(accepted, rounds.done());
}

TEST(FuzzServing, Grammars) {
  FuzzGrammar(
      "grammars", [](std::string_view text, const GrammarLimits& l) { return ParseGbnf(text, l); },
      {"root ::= \"a\" | b c*\nb ::= [a-z0-9^-] # comment\nc ::= (\"x\" b){2,5} \"\\x41\\n\"\n",
       "root ::= item (\",\" item)*\nitem ::= [^\"\\\\] | \"\\\\\" [\"\\\\/bfnrt] | \"é\"?\n",
       "root   ::= expr\nexpr ::= term ([+*] term)*\nterm ::= \"(\" expr \")\" | [0-9]+\n"},
      {"::=",     "root",        "\n",   "|", "(", ")", "[",    "]",         "{",
       "}",       "{0,}",        "{,3}", "*", "+", "?", "\"",   "\\",        "\\x",
       "\\u00e9", "\\U0010ffff", "#",    "^", "-", ".", "\xff", "root ::= ", " b "},
      23);
}

TEST(FuzzServing, Patterns) {
  FuzzGrammar(
      "patterns", [](std::string_view text, const GrammarLimits& l) { return RegexGrammar(text, l); },
      {"[a-z]+(ab|cd?){2,4}\\d*", "^(?:a|b)*?c\\.[^x-z]$", "(\\w+@\\w+\\.com)|\\s{1,3}\\S",
       "é[\\u00e0-\\u00ff]+|\\x41"},
      {"(",   ")",     "[",      "]",          "{",  "}",  "{1,2}", "{,}",    "*",   "+",
       "?",   "|",     "^",      "$",          ".",  "\\", "\\d",   "\\b",    "\\1", "(?=",
       "(?!", "(?<a>", "\\p{L}", "\\u{1F600}", "[^", "-",  "\xff",  "{99999}"},
      24);
}

// Pieces of a stream are whole characters, hold nothing of a stop text, and join to the text that is there at
// once.
TEST(FuzzServing, StreamsOfTokens) {
  auto loaded = Tokenizer::Load(test::Model10m());
  ASSERT_TRUE(loaded.ok());
  const Tokenizer& tokenizer = **loaded;
  const auto spellings = tokenizer.Spellings();
  ASSERT_TRUE(spellings.ok());
  std::vector<int32_t> bytes;  // tokens of one byte, most of which are no character
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id)
    if (spellings->anywhere[static_cast<size_t>(id)].size() == 1 && bytes.size() < 256) bytes.push_back(id);
  ASSERT_GT(bytes.size(), 100u);
  Rounds rounds(20'000, 2000);
  Mutator mutator(25);
  int stopped = 0;
  int64_t count = 0;
  while (rounds.Next()) {
    std::vector<int32_t> ids(1 + mutator.Below(40));
    for (int32_t& id : ids)
      id = mutator.Below(4) != 0
               ? bytes[mutator.Below(bytes.size())]
               : static_cast<int32_t>(mutator.Below(static_cast<size_t>(tokenizer.vocab_size())));
    count += static_cast<int64_t>(ids.size());
    const std::string whole = tokenizer.Decode(ids, true);
    std::vector<std::string> stops;
    for (size_t i = mutator.Below(3); i > 0 && !whole.empty(); --i) {
      std::string stop;
      AppendLossyUtf8(whole.substr(mutator.Below(whole.size()), 1 + mutator.Below(5)), &stop);
      stops.push_back(stop);
    }
    TextStream stream(tokenizer, stops);
    std::string text;
    const auto add = [&](std::string_view piece) {
      ASSERT_EQ(FindInvalidUtf8(piece), piece.npos);
      text += piece;
    };
    for (const int32_t id : ids) {
      if (!stream.stopped()) add(stream.Push(id));
    }
    add(stream.Finish());
    if (stream.stopped()) {
      ++stopped;
      ASSERT_TRUE(whole.starts_with(text));
      ASSERT_TRUE(std::string_view(whole)
                      .substr(text.size())
                      .starts_with(stops[static_cast<size_t>(stream.stop_index())]));
    } else {
      ASSERT_EQ(text, whole);
    }
    for (const std::string& stop : stops) ASSERT_EQ(text.find(stop), text.npos) << stop;
  }
  std::printf("[ fuzz     ] streams: %d of %lld tokens, %d stopped\n", rounds.done(),
              static_cast<long long>(count), stopped);
  EXPECT_GT(stopped, rounds.done() / 20);
}

}  // namespace
}  // namespace nibble::server
