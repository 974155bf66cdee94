// SPDX-License-Identifier: Apache-2.0
// Floor 9. What a route sees of HTTP: a request that has arrived whole, and where its answer goes. Sockets,
// parsing and timeouts are behind it (http_server.h).
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nibble::server {

struct HttpRequest {
  std::string method;  // "GET"
  std::string path;    // without the query
  std::string content_type, content_encoding, authorization, api_key, origin, preflight_method;
  std::string id;    // the client's X-Request-Id where it is sane, else one of ours
  std::string peer;  // address
  std::string body;
};

using Headers = std::vector<std::pair<std::string, std::string>>;

struct HttpResponse {
  int status = 200;
  std::string body{};
  std::string content_type = "application/json";
  Headers headers{};
};

// Where the answer of one request goes: one Send, or Start, any number of Writes and End. From any thread;
// the calls for one request must not overlap. Dropping the last reference before the answer is whole closes
// the connection.
class Reply {
 public:
  virtual ~Reply() = default;
  virtual void Send(HttpResponse response) = 0;
  // An answer that comes in pieces. `ping` is written when nothing else was for a while.
  virtual void Start(std::string content_type, std::string ping) = 0;
  virtual void Write(std::string piece) = 0;  // nothing once the client is gone
  virtual void End() = 0;
  // Calls `on_gone` once when the client goes, or reads so slowly that it has lost the answer, before the
  // answer is whole; now when it has gone already. From an I/O thread, so it must not block.
  virtual void OnGone(std::function<void()> on_gone) = 0;
  virtual bool gone() const = 0;
  // A field of the log line of this request. Values are numbers or words of ours.
  virtual void Log(std::string_view key, std::string value) = 0;
  virtual const std::string& id() const = 0;  // of the request
};

class HttpService {
 public:
  virtual ~HttpService() = default;
  // Looks at a request whose body has not arrived. A response refuses it: the body is never read.
  virtual std::optional<HttpResponse> Refuse(const HttpRequest& head) = 0;
  // On an I/O thread, so it must not block.
  virtual void Handle(HttpRequest request, std::shared_ptr<Reply> reply) = 0;
  // What every answer to this request carries besides.
  virtual Headers CommonHeaders(const HttpRequest& head) = 0;
  // The response to what is not even a request, e.g. 431.
  virtual HttpResponse Error(int status, std::string_view message) = 0;
  virtual void Answered(int status) = 0;  // when an answer has gone out, or its client has: 499
};

}  // namespace nibble::server
