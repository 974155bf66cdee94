// SPDX-License-Identifier: Apache-2.0
// A server on a free port for as long as a test, with an engine that has no model, and what speaks to it.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "apps/server/app.h"
#include "apps/server/http_client.h"
#include "apps/server/http_server.h"
#include "apps/server/log.h"
#include "tests/support/fake_serving.h"
#include "tests/support/temp_dir.h"

namespace nibble::server {

inline constexpr const char* kTemplate =
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt "
    "%}[assistant]{% "
    "endif %}";

struct ServerConfig {
  AppOptions app{};
  HttpServerOptions http{};
  std::chrono::microseconds pace{0};
  int max_waiting = 1000;
  bool chat = true;
  std::vector<std::string> more_models{};  // beside "fake", each with an engine of its own
};

// A server that lives as long as a test.
class Running {
 public:
  explicit Running(ServerConfig setup = {}) : engine(setup.pace, setup.max_waiting) {
    EnableLog(std::getenv("NIBBLE_SHOW_LOG") != nullptr);
    WriteTestFile(dir_ / "t.jinja", kTemplate);
    auto served = ServedModel::Make(&engine, test::Model10m(), "fake", setup.chat ? dir_ / "t.jinja" : "");
    NIBBLE_CHECK(served.ok(), served.status().message().c_str());
    NIBBLE_CHECK(models_.Add(*std::move(served)).ok(), "the first name");
    for (size_t i = 0; i < setup.more_models.size(); ++i) {
      more_engines.push_back(std::make_unique<test::FakeServing>(setup.pace, setup.max_waiting));
      NIBBLE_CHECK(models_.Add(models_.first().WithEngine(more_engines[i].get(), setup.more_models[i])).ok(),
                   "one name twice");
    }
    setup.http.port = 0;
    setup.http.limits.max_connections = std::min(setup.http.limits.max_connections, 256);
    setup.app.limits = setup.http.limits;
    app = std::make_unique<App>(setup.app, &models_);
    auto started = HttpServer::Start(setup.http, app.get());
    NIBBLE_CHECK(started.ok(), started.status().message().c_str());
    http = *std::move(started);
  }

  HttpClient Connect(double seconds = 20) const {
    auto client = HttpClient::Connect("127.0.0.1", http->port(), seconds);
    NIBBLE_CHECK(client.ok(), client.status().message().c_str());
    return *std::move(client);
  }
  ClientResponse Call(std::string_view method, std::string_view path, std::string_view body = "",
                      std::string_view headers = "") const {
    HttpClient client = Connect();
    auto response = client.Call(method, path, body, headers);
    EXPECT_TRUE(response.ok()) << path << ": " << response.status().message();
    return response.ok() ? *std::move(response) : ClientResponse{};
  }
  // What comes for bytes that are no request of ours; 0: the connection was closed without an answer.
  int Raw(std::string_view bytes) const {
    HttpClient client = Connect();
    if (!client.Send(bytes).ok()) return -1;
    const auto response = client.Read();
    return response.ok() ? response->status : 0;
  }
  bool Eventually(const std::function<bool()>& what) const {
    for (int i = 0; i < 1000 && !what(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    return what();
  }

 private:
  TempDir dir_;

 public:
  test::FakeServing engine;
  std::vector<std::unique_ptr<test::FakeServing>> more_engines;

 private:
  ServedModels models_;

 public:
  std::unique_ptr<App> app;
  std::unique_ptr<HttpServer> http;
};

inline std::string Completion(int tokens, const std::string& more = "") {
  return fmt::format(
      R"({{"prompt":"It was a dark and stormy night; the rain fell in torrents","max_tokens":{}{}{}}})",
      tokens, more.empty() ? "" : ",", more);
}

// The data of every event; the last one is [DONE].
inline std::vector<std::string> Events(const std::string& body) {
  std::vector<std::string> events;
  for (size_t at = 0; at < body.size();) {
    const size_t end = body.find("\n\n", at);
    if (end == body.npos) break;
    if (body.compare(at, 6, "data: ") == 0) events.push_back(body.substr(at + 6, end - at - 6));
    at = end + 2;
  }
  return events;
}

}  // namespace nibble::server
