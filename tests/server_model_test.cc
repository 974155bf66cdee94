// SPDX-License-Identifier: Apache-2.0
// `nibble serve` as a process with the embedded model: what clients get is what `nibble generate` writes,
// whoever goes leaves no page behind, and a signal ends it as it should.
#include <gtest/gtest.h>

#include <csignal>
#include <nlohmann/json.hpp>
#include <thread>

#include "apps/server/http_client.h"
#include "base/utf8.h"
#include "tests/support/run_nibble.h"
#include "tests/support/temp_dir.h"

namespace nibble::server {
namespace {

using nlohmann::json;
using test::Child;
using test::RunResult;

class Serve {
 public:
  explicit Serve(test::Args more = {}) : child_(Arguments(std::move(more))) {
    std::string line;
    while (line.find('\n') == line.npos) {
      const std::string some = child_.ReadSome();
      if (some.empty()) break;
      line += some;
    }
    const size_t colon = line.rfind(':');
    port_ = static_cast<uint16_t>(colon == line.npos ? 0 : std::stoi(line.substr(colon + 1)));
  }
  HttpClient Connect() const {
    auto client = HttpClient::Connect("127.0.0.1", port_, 60);
    EXPECT_TRUE(client.ok()) << client.status().message();
    return *std::move(client);
  }
  ClientResponse Call(std::string_view method, std::string_view path, std::string_view body = "") const {
    auto response = Connect().Call(method, path, body);
    EXPECT_TRUE(response.ok()) << response.status().message();
    return response.ok() ? *std::move(response) : ClientResponse{};
  }
  double Metric(const std::string& name) const {
    const std::string text = Call("GET", "/metrics").body;
    const size_t at = text.find("\nnibble:" + name + "{");
    return at == text.npos ? -1 : std::stod(text.substr(text.find("} ", at) + 2));
  }
  void Signal(int signal) { child_.Signal(signal); }
  RunResult Wait() { return child_.Wait(); }

 private:
  static test::Args Arguments(test::Args more) {
    test::Args args{"serve", "-m", test::Model10m(), "--port", "0", "-t", "1", "--max-connections", "200"};
    args.insert(args.end(), more.begin(), more.end());
    return args;
  }
  Child child_;
  uint16_t port_ = 0;
};

std::string Body(int tokens, bool stream, const std::string& prompt = "It was a dark and stormy night") {
  return json{{"prompt", prompt},
              {"max_tokens", tokens},
              {"temperature", 0},
              {"stream", stream},
              {"ignore_eos", true}}
      .dump();
}

// The text of a stream; every piece must be UTF-8 by itself.
std::string TextOf(const std::string& stream) {
  std::string text;
  for (size_t at = 0; (at = stream.find("data: {", at)) != stream.npos;) {
    const size_t end = stream.find("\n\n", at);
    const std::string event = stream.substr(at + 6, end - at - 6);
    EXPECT_EQ(FindInvalidUtf8(event), event.npos);
    text += json::parse(event)["choices"][0]["text"];
    at = end;
  }
  return text;
}

TEST(ServeModel, AnswersAreThoseOfGenerateAloneAndTogether) {
  Serve serve;
  const RunResult alone =
      test::RunNibble({"generate", "-m", test::Model10m(), "-p", "It was a dark and stormy night", "-n", "40",
                       "--ignore-eos", "--json", "-t", "1"});
  const std::string text = json::parse(alone.out)["text"];
  std::vector<std::thread> others;
  for (int i = 0; i < 6; ++i)
    others.emplace_back([&, i] { serve.Call("POST", "/v1/completions", Body(30, i % 2 == 0, "Chapter")); });
  const json whole = json::parse(serve.Call("POST", "/v1/completions", Body(40, false)).body);
  EXPECT_EQ(whole["choices"][0]["text"], text);
  EXPECT_EQ(TextOf(serve.Call("POST", "/v1/completions", Body(40, true)).body), text);
  for (std::thread& other : others) other.join();
  serve.Signal(SIGTERM);
  EXPECT_EQ(serve.Wait().exit_code, 0);
}

// Recipes over one copy of the weights, asked at once: each answers as it does alone.
TEST(ServeModel, SeveralRecipesAnswerAsAlone) {
  const std::vector<std::string> recipes{"exact", "qserve", "sparq:r=16,k=32"};
  Serve serve({"--recipes", "exact,qserve,sparq:r=16,k=32"});
  const json list = json::parse(serve.Call("GET", "/v1/models").body)["data"];
  ASSERT_EQ(list.size(), recipes.size());
  EXPECT_EQ(list[0]["id"], "novelist-10m");
  EXPECT_EQ(list[2]["id"], "novelist-10m:sparq:r=16,k=32");
  EXPECT_EQ(list[1]["recipe"], "qserve");
  EXPECT_EQ(list[0]["kv_bits"], 32.0);
  EXPECT_LT(list[1]["kv_bits"], 6.0);
  const auto body = [](const std::string& model) {
    json b = json::parse(Body(90, false));
    b["model"] = model;
    return b.dump();
  };
  std::vector<std::string> texts(recipes.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < recipes.size(); ++i)
    threads.emplace_back([&, i] {
      for (int round = 0; round < 3; ++round)
        texts[i] = json::parse(serve.Call("POST", "/v1/completions", body("novelist-10m:" + recipes[i])).body)
                       .at("choices")[0]
                       .at("text");
    });
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < recipes.size(); ++i) {
    const RunResult alone =
        test::RunNibble({"generate", "-m", test::Model10m(), "-p", "It was a dark and stormy night", "-n",
                         "90", "--ignore-eos", "--json", "-t", "1", "--recipe", recipes[i]});
    EXPECT_EQ(json::parse(alone.out)["text"], texts[i]) << recipes[i];
  }
  serve.Signal(SIGTERM);
  const RunResult end = serve.Wait();
  EXPECT_EQ(end.exit_code, 0);
  EXPECT_NE(end.err.find("weights "), std::string::npos) << end.err;
  EXPECT_NE(end.err.find(" qserve: "), std::string::npos) << end.err;
}

TEST(ServeModel, CancelledRequestsLeaveNoPage) {
  Serve serve({"--no-prefix-cache"});
  constexpr int kCancels = 60;
  uint64_t state = 11;
  for (int i = 0; i < kCancels; ++i) {
    HttpClient client = serve.Connect();
    ASSERT_TRUE(client.SendRequest("POST", "/v1/completions", Body(2000, i % 3 != 0)).ok());
    state = state * 6364136223846793005u + 1442695040888963407u;
    const size_t bytes = (state >> 33) % 3000;
    size_t seen = 0;
    if (i % 3 != 0 && bytes > 0) {
      const auto partly = client.Read([&](std::string_view piece) { return (seen += piece.size()) < bytes; });
      EXPECT_FALSE(partly.ok());
    }
    if (i % 2 == 0) client.Reset();
  }
  for (int i = 0; i < 500 && serve.Metric("num_requests_running") + serve.Metric("num_requests_waiting") > 0;
       ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(serve.Metric("num_requests_running"), 0);
  EXPECT_EQ(serve.Metric("kv_cache_pages_used"), 0);
  EXPECT_EQ(serve.Call("POST", "/v1/completions", Body(3, false)).status, 200);
}

TEST(ServeModel, DrainAndSecondSignal) {
  Serve whole;
  HttpClient client = whole.Connect();
  ASSERT_TRUE(client.SendRequest("POST", "/v1/completions", Body(300, true)).ok());
  while (whole.Metric("num_requests_running") < 1) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  whole.Signal(SIGTERM);
  const auto response = client.Read();
  ASSERT_TRUE(response.ok()) << response.status().message();
  EXPECT_NE(response->body.find("data: [DONE]"), std::string::npos);
  EXPECT_EQ(whole.Wait().exit_code, 0);

  Serve cut;
  HttpClient other = cut.Connect();
  ASSERT_TRUE(other.SendRequest("POST", "/v1/completions", Body(3900, true)).ok());
  while (cut.Metric("num_requests_running") < 1) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  cut.Signal(SIGTERM);
  while (cut.Call("GET", "/health/ready").status != 503)
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  cut.Signal(SIGTERM);
  const auto rest = other.Read();
  ASSERT_TRUE(rest.ok()) << rest.status().message();
  EXPECT_NE(rest->body.find("\"abort\""), std::string::npos);  // told, not just cut off
  EXPECT_EQ(cut.Wait().exit_code, 128 + SIGTERM);
}

TEST(ServeModel, PrintedSettingsOfRecipesAreSettingsAgain) {
  const RunResult printed =
      test::RunNibble({"serve", "-m", test::Model10m(), "--recipes", "qserve,sparq:r=16,k=32", "--preempt",
                       "auto", "--print-config"});
  ASSERT_EQ(printed.exit_code, 0) << printed.err;
  EXPECT_NE(printed.out.find("\n# recipe: not set"), std::string::npos) << printed.out;
  TempDir dir;
  WriteTestFile(dir / "again.yaml", printed.out);
  const RunResult again = test::RunNibble({"serve", "--config", dir / "again.yaml", "--print-config"});
  EXPECT_EQ(again.exit_code, 0) << again.err;
  EXPECT_NE(again.out.find("recipes: [\"qserve,sparq:r=16,k=32\"]"), std::string::npos) << again.out;
}

TEST(ServeModel, WhatCannotBeIsOneLine) {
  const auto expect = [](const test::Args& args, int code, const std::string& says) {
    const RunResult r = test::RunNibble(args);
    EXPECT_EQ(r.exit_code, code) << r.err;
    EXPECT_NE(r.err.find(says), std::string::npos) << r.err;
  };
  const std::string model = test::Model10m();
  expect({"serve"}, 2, "--model");
  expect({"serve", "-m", model, "--port", "70000"}, 2, "--port");
  expect({"serve", "-m", model, "--host", "example.com", "--quiet"}, 1, "--host example.com");
  expect({"serve", "-m", model, "--host", "203.0.113.1", "--quiet"}, 1, "203.0.113.1");
  expect({"serve", "-m", model, "--max-num-seqs", "0"}, 2, "max_num_seqs");
  expect({"serve", "-m", model, "--api-key-file", "/nonexistent"}, 1, "/nonexistent");
  expect({"serve", "-m", "/nonexistent"}, 1, "/nonexistent");
  expect({"serve", "-m", model, "--recipes", "exact,nonsense"}, 2, "--recipes: ");
  expect({"serve", "-m", model, "--swap-space", "1"}, 2,
         "--swap-space: is of no use with --preempt recompute");
  expect({"serve", "-m", model, "--preempt", "swap", "--admission", "whole"}, 2,
         "--preempt: swap: nothing is preempted");
  expect({"serve", "-m", model, "--recipes", "exact,qserve,exact"}, 2, "--recipes: exact is given twice");
  expect({"serve", "-m", model, "--recipes", "exact", "--recipe", "qserve"}, 2, "not both");
  expect({"serve", "-m", model, "-m", model, "-a", "a", "-a", "b", "-a", "c"}, 2, "3 names for 2 models");
  expect({"serve", "-m", model, "-m", model, "--quiet"}, 1, "two models would be called \"novelist-10m\"");
}

// Fewer connections where the system allows few open files, as in a container; not where the user names a
// number.
TEST(ServeModel, ConnectionsFitTheOpenFiles) {
  const auto run = [](const std::string& limit, const std::string& more) {
    const std::string command =
        "ulimit -n " + limit + "; exec " NIBBLE_BINARY_DIR "/nibble serve " + more + " 2>&1";
    FILE* out = popen(command.c_str(), "r");
    std::string text;
    for (int c = fgetc(out); c != EOF; c = fgetc(out)) text += char(c);
    pclose(out);
    return text;
  };
  EXPECT_NE(run("4160", "--print-limits").find("max_connections 4096\n"), std::string::npos);
  const std::string few = run("300", "--print-limits");
  EXPECT_NE(few.find("max_connections 236\n"), std::string::npos) << few;
  EXPECT_NE(few.find("at most 236 connections"), std::string::npos) << few;
  const std::string refused = run("300", "-m " + test::Model10m() + " --port 0 --max-connections 400");
  EXPECT_NE(refused.find("400 connections need 464 open files, but the system allows 300"), std::string::npos)
      << refused;
}

}  // namespace
}  // namespace nibble::server
