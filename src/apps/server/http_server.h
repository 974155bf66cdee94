// SPDX-License-Identifier: Apache-2.0
// Floor 9. The HTTP/1.1 server: listens, parses, times out, writes. The only door to Boost.Asio and
// Boost.Beast, which http_server.cc, http_session* and http_stream.* alone include.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "apps/server/http.h"
#include "apps/server/limits.h"
#include "apps/server/tls.h"
#include "base/result.h"

namespace nibble::server {

struct HttpServerOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 8080;  // 0: any free one
  int threads = 2;
  Limits limits{};
  std::shared_ptr<TlsContext> tls{};  // null: plain HTTP
};

// Connections that the system's limit on open files leaves room for (`ulimit -Hn`).
int ConnectionsAllowed();

class HttpServer {
 public:
  // Listens and answers from here on; `service` outlives the server. kIo names the address.
  static Result<std::unique_ptr<HttpServer>> Start(const HttpServerOptions& options, HttpService* service);
  virtual ~HttpServer() = default;  // closes every connection

  virtual std::string address() const = 0;  // "127.0.0.1:8080"
  virtual uint16_t port() const = 0;
  // Waits for SIGINT or SIGTERM; 0 when none came within `seconds`.
  virtual int WaitForSignal(double seconds) = 0;
  // From now on every answer ends its connection, and connections without a request are closed.
  virtual void Drain() = 0;
  // Waits until no request is under way; false when `seconds` pass before or another signal comes.
  virtual bool WaitIdle(double seconds) = 0;
  virtual int connections() const = 0;
  virtual int requests_under_way() const = 0;
};

}  // namespace nibble::server
