// SPDX-License-Identifier: Apache-2.0
// The server on a real port, spoken to through raw sockets; behind it an engine without a model, which gives
// every prompt back.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/socket.h>

#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "base/utf8.h"
#include "tests/support/running_server.h"

namespace nibble::server {
namespace {

using nlohmann::json;
using std::chrono::milliseconds;

TEST(Server, CompletionsChatsAndTheirStreamsAgree) {
  const Running server;
  const json whole = json::parse(server.Call("POST", "/v1/completions", Completion(12)).body);
  EXPECT_EQ(whole["object"], "text_completion");
  EXPECT_EQ(whole["usage"]["completion_tokens"], 12);
  EXPECT_EQ(whole["choices"][0]["finish_reason"], "length");
  const ClientResponse stream = server.Call(
      "POST", "/v1/completions", Completion(12, R"("stream":true,"stream_options":{"include_usage":true})"));
  EXPECT_EQ(stream.headers.at("content-type"), "text/event-stream");
  const auto events = Events(stream.body);
  std::string text;
  for (size_t i = 0; i + 2 < events.size(); ++i) text += json::parse(events[i])["choices"][0]["text"];
  EXPECT_EQ(text, whole["choices"][0]["text"]);
  EXPECT_EQ(events.back(), "[DONE]");
  EXPECT_EQ(json::parse(events[events.size() - 2])["usage"], whole["usage"]);

  const json chat =
      json::parse(server
                      .Call("POST", "/v1/chat/completions",
                            R"({"messages":[{"role":"user","content":"hello there"}],"max_tokens":6})")
                      .body);
  EXPECT_EQ(chat["object"], "chat.completion");
  EXPECT_EQ(chat["choices"][0]["message"]["role"], "assistant");
  EXPECT_FALSE(chat["choices"][0]["message"]["content"].get<std::string>().empty());
}

TEST(Server, ChoicesLogprobsEchoAndStops) {
  const Running server;
  const json n = json::parse(server.Call("POST", "/v1/completions", Completion(3, R"("n":3)")).body);
  EXPECT_EQ(n["choices"].size(), 3u);
  EXPECT_EQ(n["choices"][2]["index"], 2);
  EXPECT_EQ(n["usage"]["completion_tokens"], 9);
  // What lm-eval's local-completions asks for.
  const json echo = json::parse(server
                                    .Call("POST", "/v1/completions",
                                          R"({"prompt":[[5,6,7,8]],"max_tokens":1,"logprobs":1,"echo":true})")
                                    .body);
  const json& logprobs = echo["choices"][0]["logprobs"];
  EXPECT_EQ(logprobs["tokens"].size(), 5u);
  EXPECT_TRUE(logprobs["token_logprobs"][0].is_null());
  EXPECT_EQ(logprobs["token_logprobs"][1], -1.5);
  EXPECT_EQ(logprobs["token_logprobs"][4], -0.5);
  EXPECT_EQ(logprobs["top_logprobs"].size(), 5u);
  const json alone = json::parse(
      server.Call("POST", "/v1/completions", R"({"prompt":[5,6],"max_tokens":0,"logprobs":1,"echo":true})")
          .body);
  EXPECT_EQ(alone["choices"][0]["logprobs"]["tokens"].size(), 2u);
  const json stop = json::parse(
      server.Call("POST", "/v1/completions", Completion(30, R"("stop":"stormy")")).body)["choices"][0];
  EXPECT_EQ(stop["finish_reason"], "stop");
  EXPECT_EQ(stop["text"].get<std::string>().find("stormy"), std::string::npos);
  const json kept =
      json::parse(server
                      .Call("POST", "/v1/completions",
                            Completion(30, R"("stop":"stormy","include_stop_str_in_output":true)"))
                      .body)["choices"][0];
  EXPECT_EQ(kept["text"].get<std::string>(), stop["text"].get<std::string>() + "stormy");
}

TEST(Server, OtherRoutes) {
  const Running server;
  const json tokens = json::parse(server.Call("POST", "/tokenize", R"({"prompt":"a dark night"})").body);
  EXPECT_EQ(tokens["count"], tokens["tokens"].size());
  const json text =
      json::parse(server.Call("POST", "/detokenize", json{{"tokens", tokens["tokens"]}}.dump()).body);
  EXPECT_NE(text["prompt"].get<std::string>().find("a dark night"), std::string::npos);
  EXPECT_EQ(
      json::parse(server.Call("POST", "/apply-template", R"({"messages":[{"role":"user","content":"x"}]})")
                      .body)["prompt"],
      "[user] x\n[assistant]");
  EXPECT_EQ(json::parse(server.Call("GET", "/v1/models").body)["data"][0]["id"], "fake");
  EXPECT_EQ(json::parse(server.Call("GET", "/v1/models/fake").body)["id"], "fake");
  EXPECT_EQ(server.Call("GET", "/v1/models/other").status, 404);
  EXPECT_EQ(server.Call("GET", "/version").status, 200);
  EXPECT_EQ(server.Call("GET", "/health/live").status, 200);
  EXPECT_EQ(server.Call("GET", "/health/ready").status, 200);
  const json embedding = json::parse(server.Call("POST", "/v1/embeddings", R"({"input":["a","b"]})").body);
  EXPECT_EQ(embedding["data"].size(), 2u);
  EXPECT_FLOAT_EQ(embedding["data"][1]["embedding"][1].get<float>(), 0.8f);
  server.Call("POST", "/v1/completions", Completion(4));
  const std::string metrics = server.Call("GET", "/metrics").body;
  EXPECT_NE(metrics.find("nibble:num_requests_running{model_name=\"fake\",recipe=\"exact\"} 0\n"),
            std::string::npos)
      << metrics;
  EXPECT_NE(
      metrics.find("nibble:time_to_first_token_seconds_count{model_name=\"fake\",recipe=\"exact\"} 1\n"),
      std::string::npos)
      << metrics;
  EXPECT_NE(metrics.find("nibble:http_answers_total{status=\"4xx\"} 1\n"), std::string::npos) << metrics;
  HttpClient head = server.Connect();
  ASSERT_TRUE(head.SendRequest("HEAD", "/version", "").ok());
}

// Every route asks the engine that the request names; figures are kept apart.
TEST(Server, SeveralModels) {
  Running server({.more_models = {"fake:two", "fake:three, \"quoted\""}});
  const json list = json::parse(server.Call("GET", "/v1/models").body)["data"];
  ASSERT_EQ(list.size(), 3u);
  EXPECT_EQ(list[0]["id"], "fake");
  EXPECT_EQ(list[1]["id"], "fake:two");
  EXPECT_EQ(list[2]["id"], "fake:three, \"quoted\"");
  EXPECT_EQ(json::parse(server.Call("GET", "/v1/models/fake%3Atwo").body)["id"], "fake:two");
  EXPECT_EQ(json::parse(server.Call("GET", "/v1/models/fake:two").body)["id"], "fake:two");
  EXPECT_EQ(server.Call("GET", "/v1/models/fake%3").status, 404);
  const std::string named = R"("model":"fake:two")";
  const json answer = json::parse(server.Call("POST", "/v1/completions", Completion(4, named)).body);
  EXPECT_EQ(answer["model"], "fake:two");
  const std::string messages = R"(,"messages":[{"role":"user","content":"hi"}],"max_tokens":3})";
  for (const char* route : {"/v1/chat/completions", "/v1/messages"})
    EXPECT_EQ(json::parse(server.Call("POST", route, "{" + named + messages).body)["model"], "fake:two")
        << route;
  EXPECT_EQ(json::parse(
                server.Call("POST", "/v1/responses", "{" + named + R"(,"input":"hi","max_output_tokens":3})")
                    .body)["model"],
            "fake:two");
  EXPECT_EQ(
      json::parse(server.Call("POST", "/v1/embeddings", "{" + named + R"(,"input":"hi"})").body)["model"],
      "fake:two");
  EXPECT_EQ(json::parse(server.Call("POST", "/v1/completions", Completion(4)).body)["model"], "fake");
  for (const char* route :
       {"/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/responses", "/v1/messages",
        "/v1/messages/count_tokens", "/tokenize", "/detokenize", "/apply-template"}) {
    const auto refused = server.Call(
        "POST", route,
        R"({"model":"other","prompt":"a","input":"a","tokens":[1],"max_tokens":1,"messages":[{"role":"user","content":"a"}]})");
    EXPECT_EQ(refused.status, 404) << route << refused.body;
    EXPECT_NE(refused.body.find("\\\"other\\\" is not served here, \\\"fake\\\", \\\"fake:two\\\""),
              std::string::npos)
        << refused.body;
  }
  const std::string metrics = server.Call("GET", "/metrics").body;
  const auto count = [&](const std::string& line) {
    return metrics.find("\n" + line + "\n") != metrics.npos;
  };
  EXPECT_TRUE(count(R"(nibble:e2e_request_latency_seconds_count{model_name="fake",recipe="exact"} 1)"))
      << metrics;
  EXPECT_TRUE(count(R"(nibble:e2e_request_latency_seconds_count{model_name="fake:two",recipe="exact"} 5)"))
      << metrics;
  EXPECT_TRUE(count(R"(nibble:num_requests_running{model_name="fake:three, \"quoted\"",recipe="exact"} 0)"))
      << metrics;
  // One group of lines a metric, as the text format wants it.
  std::set<std::string> seen;
  for (size_t at = 0; at < metrics.size(); at = metrics.find('\n', at) + 1) {
    if (metrics.compare(at, 7, "# TYPE ") != 0) continue;
    EXPECT_TRUE(seen.insert(metrics.substr(at, metrics.find('\n', at) - at)).second)
        << metrics.substr(at, 60);
  }
  EXPECT_GT(seen.size(), 30u);
}

TEST(Server, NamesAreTakenOnce) {
  test::FakeServing engine;
  ServedModels models;
  auto first = *ServedModel::Make(&engine, test::Model10m(), "a", "");
  const ServedModel& model = *first;
  ASSERT_TRUE(models.Add(std::move(first), std::vector<std::string>{"b"}).ok());
  EXPECT_EQ(*models.Find("b"), &models.first());
  EXPECT_EQ(models.Add(model.WithEngine(&engine, "b")).message(),
            "--served-model-name: two models would be called \"b\"");
}

TEST(Server, BadRequestsHaveTheirStatus) {
  const Running server;
  const auto post = [&](std::string_view body) {
    return server.Call("POST", "/v1/completions", body).status;
  };
  EXPECT_EQ(post("{"), 400);
  EXPECT_EQ(post(R"({"prompt":"x","model":"other"})"), 404);
  EXPECT_EQ(post(R"({"prompt":"x","max_tokens":1000000})"), 400);
  EXPECT_EQ(post(R"({"prompt":[999999]})"), 400);
  EXPECT_EQ(post(R"({"prompt":"x","logit_bias":{"999999":1}})"), 400);
  EXPECT_EQ(post(R"({"prompt":"x","guided_regex":"["})"), 400);
  EXPECT_EQ(post(fmt::format(R"({{"prompt":"{}"}})", std::string(1 << 20, 'x'))), 400);
  EXPECT_EQ(server.Call("GET", "/v1/completions").status, 405);
  EXPECT_EQ(server.Call("POST", "/health", "{}").status, 405);
  EXPECT_EQ(server.Call("GET", "/nothing").status, 404);
  EXPECT_EQ(server.Call("GET", "/v1/../metrics").status, 404);
  EXPECT_EQ(server.Call("GET", "//metrics").status, 404);
  EXPECT_EQ(server.Call("GET", "/%2e%2e/metrics").status, 404);
  const std::string head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\n";
  EXPECT_EQ(server.Raw(head + "Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}"), 415);
  EXPECT_EQ(server.Raw(head + "Content-Length: 2\r\n\r\n{}"), 415);
  EXPECT_EQ(
      server.Raw(head +
                 "Content-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}"),
      415);
  const json error =
      json::parse(server.Call("POST", "/v1/completions", R"({"prompt":"x","n":0})").body)["error"];
  EXPECT_EQ(error["param"], "n");
}

TEST(Server, BytesThatAreNoRequest) {
  ServerConfig setup;
  setup.http.limits.max_body_bytes = 1 << 20;
  const Running server(setup);
  const std::string post = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n",
                    chunked = post + "Transfer-Encoding: chunked\r\n\r\n";
  struct Case {
    std::string bytes;
    int status;
  };
  const Case cases[] = {
      {post + "Content-Length: 10000000000\r\n\r\n", 413},
      {chunked + "fffffff\r\n" + std::string(2 << 20, 'x'), 413},
      {chunked + "-1\r\nx", 400},
      {chunked + "ffffffffffffffffff\r\nx", 400},
      {chunked + "0x10\r\nx\r\n\r\n", 400},
      {chunked + "\r\nx", 400},
      {"GET /" + std::string(1 << 20, 'a') + " HTTP/1.1\r\n\r\n", 414},
      {"GET / HTTP/1.1\r\nHost: x\r\nA: " + std::string(1 << 20, 'a') + "\r\n\r\n", 431},
      {post + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
      {post + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400},
      {post + "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400},
      {post + "Transfer-Encoding: gzip\r\n\r\n", 400},
      {std::string("GET / HTTP/1.1\r\nHost: x\r\nA: a") + '\0' + "b\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHost: x\r\nA: a\rb\r\n\r\n", 400},
      {"GET /\r\n\r\n", 400},
      {"GET / HTTP/9.9\r\nHost: x\r\n\r\n", 505},
      {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505},
      {std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11), 400},
      {"GET / HTTP/1.1\r\n\r\n", 400},
      {post + "Expect: magic\r\nContent-Length: 2\r\n\r\n", 417},
  };
  for (const Case& c : cases) EXPECT_EQ(server.Raw(c.bytes), c.status) << c.bytes.substr(0, 120);
  std::string many = "GET /health HTTP/1.1\r\nHost: x\r\n";
  for (int i = 0; i < 200; ++i) many += "A: b\r\n";
  EXPECT_EQ(server.Raw(many + "\r\n"), 431);
  EXPECT_EQ(server.Call("GET", "/health").status, 200);  // and it goes on
}

TEST(Server, SlowClientsAreTimedOut) {
  ServerConfig setup;
  setup.http.limits.header_seconds = 0.3;
  setup.http.limits.body_seconds = 0.3;
  setup.http.limits.idle_seconds = 0.3;
  const Running server(setup);
  HttpClient head = server.Connect(), body = server.Connect(), idle = server.Connect(),
             expect = server.Connect();
  ASSERT_TRUE(head.Send("GET / HT").ok());
  ASSERT_TRUE(body.Send("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: "
                        "application/json\r\nContent-Length: 10\r\n\r\n{")
                  .ok());
  ASSERT_TRUE(expect
                  .Send("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: "
                        "application/json\r\nExpect: 100-continue\r\nContent-Length: "
                        "10\r\n\r\n")
                  .ok());
  EXPECT_EQ(head.Read()->status, 408);
  EXPECT_EQ(body.Read()->status, 408);
  EXPECT_EQ(expect.Read()->status, 408);
  EXPECT_TRUE(idle.AtEnd());
}

TEST(Server, BodiesInSmallChunksAndPipelines) {
  const Running server;
  HttpClient client = server.Connect();
  const std::string body = Completion(3);
  std::string request =
      "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: "
      "chunked\r\n\r\n";
  for (size_t i = 0; i < body.size(); i += 6)
    request += fmt::format("{:x}\r\n{}\r\n", std::min<size_t>(6, body.size() - i), body.substr(i, 6));
  request += "0\r\n\r\n";
  constexpr int kTimes = 5;
  std::string all;
  for (int i = 0; i < kTimes; ++i) all += request;
  ASSERT_TRUE(client.Send(all).ok());
  for (int i = 0; i < kTimes; ++i) {
    const auto response = client.Read();
    ASSERT_TRUE(response.ok()) << i << response.status().message();
    EXPECT_EQ(response->status, 200);
  }
}

TEST(Server, KeysOnEveryRouteButHealth) {
  ServerConfig setup;
  setup.app.api_keys = {"secret-one", "secret-two"};
  const Running server(setup);
  for (const char* path : {"/", "/metrics", "/v1/models", "/version", "/nothing"}) {
    EXPECT_EQ(server.Call("GET", path).status, 401) << path;
    EXPECT_EQ(server.Call("GET", path, "", "Authorization: Bearer secret-on\r\n").status, 401) << path;
    EXPECT_EQ(server.Call("GET", path, "", "Authorization: Bearer \r\n").status, 401) << path;
  }
  for (const char* path :
       {"/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/tokenize", "/detokenize"})
    EXPECT_EQ(server.Call("POST", path, "{}").status, 401) << path;
  for (const char* path : {"/health", "/health/live", "/health/ready"})
    EXPECT_EQ(server.Call("GET", path).status, 200);
  EXPECT_EQ(server.Call("GET", "/version", "", "Authorization: Bearer secret-two\r\n").status, 200);
  EXPECT_EQ(server.Call("GET", "/version", "", "X-Api-Key: secret-one\r\n").status, 200);
  EXPECT_EQ(server.Call("GET", "/", "", "Authorization: Basic eDpzZWNyZXQtb25l\r\n").status,
            200);  // x:secret-one
  EXPECT_EQ(server.Call("GET", "/").headers.at("www-authenticate"), "Basic realm=\"nibble\"");
}

TEST(Server, OriginsAreNotAllowedUnlessConfigured) {
  const Running closed;
  const char* preflight = "Origin: https://a.example\r\nAccess-Control-Request-Method: POST\r\n";
  const ClientResponse no = closed.Call("OPTIONS", "/v1/completions", "", preflight);
  EXPECT_EQ(no.status, 204);
  EXPECT_FALSE(no.headers.contains("access-control-allow-origin"));
  ServerConfig setup;
  setup.app.cors_origins = {"https://a.example"};
  setup.app.api_keys = {"k"};
  const Running open(setup);
  EXPECT_EQ(open.Call("OPTIONS", "/v1/completions", "", preflight).headers.at("access-control-allow-origin"),
            "https://a.example");
  EXPECT_FALSE(open.Call("OPTIONS", "/v1/completions", "", "Origin: https://b.example\r\n")
                   .headers.contains("access-control-allow-origin"));
}

TEST(Server, RequestIdsComeBack) {
  const Running server;
  EXPECT_EQ(server.Call("GET", "/version", "", "X-Request-Id: my-id.7\r\n").headers.at("x-request-id"),
            "my-id.7");
  const std::string made =
      server.Call("GET", "/version", "", "X-Request-Id: a b\r\n").headers.at("x-request-id");
  EXPECT_EQ(made.rfind("req-", 0), 0u);
}

TEST(Server, WhoGoesIsCancelled) {
  ServerConfig setup;
  setup.pace = milliseconds(2);
  const Running server(setup);
  for (const char* stream : {R"("stream":true)", R"("stream":false)"}) {
    for (const bool reset : {true, false}) {
      const int before = server.engine.cancelled;
      {
        HttpClient client = server.Connect();
        ASSERT_TRUE(client.SendRequest("POST", "/v1/completions", Completion(3000, stream)).ok());
        ASSERT_TRUE(server.Eventually([&] { return server.engine.running == 1; }));
        if (reset) client.Reset();
      }
      EXPECT_TRUE(server.Eventually([&] { return server.engine.running == 0; })) << stream << reset;
      EXPECT_EQ(server.engine.cancelled, before + 1) << stream << reset;
    }
  }
  EXPECT_TRUE(server.Eventually([&] { return server.http->connections() == 0; }));
}

// A client may say that it has sent all and still wait for its answer.
TEST(Server, HalfClosedClientsGetTheirAnswer) {
  ServerConfig setup;
  setup.pace = milliseconds(2);
  const Running server(setup);
  for (const char* stream : {R"("stream":true)", R"("stream":false)"}) {
    HttpClient client = server.Connect();
    ASSERT_TRUE(client.SendRequest("POST", "/v1/completions", Completion(50, stream)).ok());
    client.FinishSend();
    const auto response = client.Read();
    ASSERT_TRUE(response.ok()) << response.status().message();
    EXPECT_EQ(response->status, 200);
    EXPECT_TRUE(client.AtEnd());
  }
}

TEST(Server, WhoDoesNotReadLosesTheStream) {
  ServerConfig setup;
  setup.http.limits.max_unsent_bytes = 64 << 10;
  setup.pace = std::chrono::microseconds(1);
  const Running server(setup);
  HttpClient client = server.Connect();
  const int small = 4096;
  setsockopt(client.fd(), SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
  std::string many = Completion(3900, R"("stream":true,"n":8)");
  ASSERT_TRUE(client.SendRequest("POST", "/v1/completions", many).ok());
  EXPECT_TRUE(server.Eventually([&] { return server.engine.cancelled == 8; })) << server.engine.cancelled;
  EXPECT_TRUE(server.Eventually([&] { return server.engine.running == 0; }));
}

TEST(Server, BusyIs429AndFailureIs500) {
  ServerConfig setup;
  setup.max_waiting = 2;
  Running server(setup);
  const ClientResponse busy = server.Call("POST", "/v1/completions", Completion(2, R"("n":3)"));
  EXPECT_EQ(busy.status, 429);
  EXPECT_EQ(busy.headers.at("retry-after"), "1");
  server.engine.fail_next = true;
  EXPECT_EQ(server.Call("POST", "/v1/completions", Completion(2)).status, 500);
  server.engine.fail_next = true;
  // Before the stream began it is a status, in the stream an event.
  const ClientResponse failed = server.Call("POST", "/v1/completions", Completion(2, R"("stream":true)"));
  const auto events = Events(failed.body);
  EXPECT_TRUE(json::parse(failed.status == 500 ? failed.body : events.at(0)).contains("error"));
  EXPECT_EQ(server.Call("POST", "/v1/completions", Completion(2)).status, 200);
}

// The engine may fail a choice before the call knows the ids of the others, which must not run on unseen.
TEST(Server, AFailureInSubmitCancelsTheOtherChoices) {
  Running server(ServerConfig{.pace = std::chrono::milliseconds(1)});
  server.engine.slow_submit = server.engine.fail_next = true;
  EXPECT_EQ(server.Call("POST", "/v1/completions", Completion(200, R"("n":3)")).status, 500);
  EXPECT_TRUE(server.Eventually([&] { return server.engine.running == 0; }));
  EXPECT_EQ(server.engine.cancelled, 2);
}

TEST(Server, SilentStreamsArePinged) {
  ServerConfig setup;
  setup.http.limits.ping_seconds = 0.05;
  setup.pace = milliseconds(400);
  const Running server(setup);
  const std::string body = server.Call("POST", "/v1/completions", Completion(2, R"("stream":true)")).body;
  EXPECT_NE(body.find(": ping\n\n"), std::string::npos);
  EXPECT_EQ(Events(body).back(), "[DONE]");
}

TEST(Server, DrainFinishesWhatRunsAndRefusesTheRest) {
  ServerConfig setup;
  setup.pace = milliseconds(1);
  const Running server(setup);
  std::vector<std::thread> streams;
  std::atomic<int> whole{0};
  for (int i = 0; i < 16; ++i) {
    streams.emplace_back([&] {
      const auto events =
          Events(server.Call("POST", "/v1/completions", Completion(200, R"("stream":true)")).body);
      if (!events.empty() && events.back() == "[DONE]") ++whole;
    });
  }
  HttpClient idle = server.Connect();
  ASSERT_TRUE(server.Eventually([&] { return server.engine.running == 16; }));
  raise(SIGTERM);
  EXPECT_EQ(server.http->WaitForSignal(5), SIGTERM);
  server.app->BeginDrain();
  server.http->Drain();
  EXPECT_EQ(server.Call("GET", "/health/ready").status, 503);
  EXPECT_EQ(server.Call("GET", "/health/live").status, 200);
  const ClientResponse refused = server.Call("POST", "/v1/completions", Completion(2));
  EXPECT_EQ(refused.status, 503);
  EXPECT_TRUE(refused.headers.contains("retry-after"));
  EXPECT_TRUE(idle.AtEnd());
  EXPECT_TRUE(server.http->WaitIdle(20));
  for (std::thread& stream : streams) stream.join();
  EXPECT_EQ(whole, 16);
}

TEST(Server, ConnectionsBeyondTheLimitGet503) {
  ServerConfig setup;
  setup.http.limits.max_connections = 4;
  const Running server(setup);
  std::vector<HttpClient> open;
  for (int i = 0; i < 4; ++i) {
    open.push_back(server.Connect());
    EXPECT_EQ(open.back().Call("GET", "/health")->status, 200);
  }
  HttpClient more = server.Connect();
  EXPECT_EQ(more.Read()->status, 503);
  open.clear();
  EXPECT_TRUE(server.Eventually([&] { return server.http->connections() == 0; }));
  EXPECT_EQ(server.Call("GET", "/health").status, 200);
}

// Bytes that are halves of characters stay back until the other half is there, whole and in streams.
TEST(Server, EveryChunkIsUtf8) {
  const Running server;
  uint64_t state = 7;
  for (int round = 0; round < 20; ++round) {
    std::string ids;
    for (int i = 0; i < 100; ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      ids += (i > 0 ? "," : "") + std::to_string((state >> 33) % 300);
    }
    const std::string body = fmt::format(R"({{"prompt":[{}],"max_tokens":100)", ids);
    const json whole = json::parse(server.Call("POST", "/v1/completions", body + "}").body);
    std::string text;
    for (const std::string& event :
         Events(server.Call("POST", "/v1/completions", body + R"(,"stream":true})").body)) {
      EXPECT_EQ(FindInvalidUtf8(event), event.npos);
      if (event != "[DONE]") text += json::parse(event)["choices"][0]["text"];
    }
    EXPECT_EQ(text, whole["choices"][0]["text"]);
  }
}

}  // namespace
}  // namespace nibble::server
