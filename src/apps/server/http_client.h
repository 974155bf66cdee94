// SPDX-License-Identifier: Apache-2.0
// Floor 9. A small blocking HTTP/1.1 client over one connection, for `nibble bench serve` and the tests.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace nibble::server {

struct ClientResponse {
  int status = 0;
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;                            // without chunked coding
};

class HttpClient {
 public:
  // kIo names the address. `seconds`: the longest wait for any bytes.
  static Result<HttpClient> Connect(const std::string& host, uint16_t port, double seconds = 30);
  HttpClient(HttpClient&& other) noexcept;
  HttpClient& operator=(HttpClient&& other) noexcept;
  ~HttpClient();

  Status Send(std::string_view bytes);
  // Sends a request with its length and reads the response.
  Result<ClientResponse> Call(std::string_view method, std::string_view path, std::string_view body = "",
                              std::string_view more_headers = "");
  Status SendRequest(std::string_view method, std::string_view path, std::string_view body,
                     std::string_view more_headers = "");
  // `on_body` sees the body as it comes; false ends the reading.
  using OnBody = std::function<bool(std::string_view piece)>;
  Result<ClientResponse> Read(const OnBody& on_body = {});

  bool AtEnd();       // waits for the server to close
  void FinishSend();  // half-closes
  void Reset();       // closes with a reset, as a process that dies does
  int fd() const { return fd_; }

 private:
  explicit HttpClient(int fd) : fd_(fd) {}
  Status More();  // appends what comes to buffer_; kIo at the end
  Result<std::string> Line();
  Status ReadHead(ClientResponse* response);
  Status ReadChunks(ClientResponse* response, const OnBody& on_body);
  Status ReadUntil(size_t bytes, ClientResponse* response, const OnBody& on_body);

  int fd_ = -1;
  std::string buffer_;
};

}  // namespace nibble::server
