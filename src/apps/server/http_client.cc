// SPDX-License-Identifier: Apache-2.0
#include "apps/server/http_client.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace nibble::server {
namespace {

Status System(const char* what) { return Error(Code::kIo, "{}: {}", what, std::strerror(errno)); }

std::string Lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  return out;
}

}  // namespace

Result<HttpClient> HttpClient::Connect(const std::string& host, uint16_t port, double seconds) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  if (inet_pton(AF_INET, host.c_str(), &address.sin_addr) != 1)
    return Error(Code::kInvalidArgument, "{}: wanted an IPv4 address", host);
  HttpClient client(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (client.fd_ < 0) return System("socket");
  timeval limit{};
  limit.tv_sec = static_cast<time_t>(seconds);
  limit.tv_usec = static_cast<suseconds_t>((seconds - static_cast<double>(limit.tv_sec)) * 1e6);
  const int on = 1;
  setsockopt(client.fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  setsockopt(client.fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  if (connect(client.fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    return Error(Code::kIo, "{}:{}: {}", host, port, std::strerror(errno));
  return client;
}

HttpClient::HttpClient(HttpClient&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), buffer_(std::move(other.buffer_)) {}

HttpClient& HttpClient::operator=(HttpClient&& other) noexcept {
  std::swap(fd_, other.fd_);
  buffer_.swap(other.buffer_);
  return *this;
}

HttpClient::~HttpClient() {
  if (fd_ >= 0) close(fd_);
}

Status HttpClient::Send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return System("send");
    bytes.remove_prefix(static_cast<size_t>(n));
  }
  return {};
}

Status HttpClient::SendRequest(std::string_view method, std::string_view path, std::string_view body,
                               std::string_view more_headers) {
  std::string request = fmt::format("{} {} HTTP/1.1\r\nHost: nibble\r\n{}", method, path, more_headers);
  if (method == "POST")
    request += fmt::format("Content-Type: application/json\r\nContent-Length: {}\r\n", body.size());
  return Send(request + "\r\n" + std::string(body));
}

Result<ClientResponse> HttpClient::Call(std::string_view method, std::string_view path, std::string_view body,
                                        std::string_view more_headers) {
  NIBBLE_RETURN_IF_ERROR(SendRequest(method, path, body, more_headers));
  return Read();
}

Status HttpClient::More() {
  char chunk[1 << 16];
  while (true) {
    const ssize_t n = recv(fd_, chunk, sizeof chunk, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return System("recv");
    if (n == 0) return Error(Code::kIo, "the server closed the connection");
    buffer_.append(chunk, static_cast<size_t>(n));
    return {};
  }
}

Result<std::string> HttpClient::Line() {
  size_t end;
  while ((end = buffer_.find("\r\n")) == buffer_.npos) NIBBLE_RETURN_IF_ERROR(More());
  std::string line = buffer_.substr(0, end);
  buffer_.erase(0, end + 2);
  return line;
}

Status HttpClient::ReadHead(ClientResponse* response) {
  NIBBLE_ASSIGN(const std::string status, Line());
  if (!status.starts_with("HTTP/1.1 ")) return Error(Code::kIo, "not an HTTP/1.1 answer: {}", status);
  response->status = std::atoi(status.c_str() + std::strlen("HTTP/1.1 "));
  response->headers.clear();
  while (true) {
    NIBBLE_ASSIGN(const std::string line, Line());
    if (line.empty()) return {};
    const size_t colon = std::min(line.find(": "), line.size());
    response->headers[Lower(line.substr(0, colon))] = line.substr(std::min(colon + 2, line.size()));
  }
}

Status HttpClient::ReadUntil(size_t bytes, ClientResponse* response, const OnBody& on_body) {
  while (bytes > 0) {
    if (buffer_.empty()) NIBBLE_RETURN_IF_ERROR(More());
    const size_t take = std::min(bytes, buffer_.size());
    const std::string piece = buffer_.substr(0, take);
    buffer_.erase(0, take);
    bytes -= take;
    response->body += piece;
    if (on_body && !on_body(piece)) return Error(Code::kCancelled, "reading was ended");
  }
  return {};
}

Status HttpClient::ReadChunks(ClientResponse* response, const OnBody& on_body) {
  while (true) {
    NIBBLE_ASSIGN(const std::string size, Line());
    const size_t bytes = std::strtoul(size.c_str(), nullptr, 16);
    NIBBLE_RETURN_IF_ERROR(ReadUntil(bytes, response, on_body));
    NIBBLE_ASSIGN(const std::string end, Line());
    if (!end.empty()) return Error(Code::kIo, "a chunk that does not end: {}", end);
    if (bytes == 0) return {};
  }
}

Result<ClientResponse> HttpClient::Read(const OnBody& on_body) {
  ClientResponse response;
  do {
    NIBBLE_RETURN_IF_ERROR(ReadHead(&response));
  } while (response.status == 100);
  if (response.headers.contains("transfer-encoding")) {
    NIBBLE_RETURN_IF_ERROR(ReadChunks(&response, on_body));
    return response;
  }
  const auto length = response.headers.find("content-length");
  if (length == response.headers.end()) return response;
  NIBBLE_RETURN_IF_ERROR(ReadUntil(std::strtoul(length->second.c_str(), nullptr, 10), &response, on_body));
  return response;
}

bool HttpClient::AtEnd() {
  while (true) {
    char byte;
    const ssize_t n = recv(fd_, &byte, 1, 0);
    if (n < 0 && errno == EINTR) continue;
    return n == 0 || (n < 0 && errno == ECONNRESET);
  }
}

void HttpClient::FinishSend() { shutdown(fd_, SHUT_WR); }

void HttpClient::Reset() {
  const linger now{1, 0};
  setsockopt(fd_, SOL_SOCKET, SO_LINGER, &now, sizeof now);
  close(std::exchange(fd_, -1));
}

}  // namespace nibble::server
