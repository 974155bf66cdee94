// SPDX-License-Identifier: Apache-2.0
// Floor 9. One connection: a loop of read, answer, read, on a strand. A read is always under way, also during
// an answer, so that a client that goes is noticed and pipelined requests wait in a bounded buffer.
#pragma once
#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <string>

#include "apps/server/http.h"
#include "apps/server/http_stream.h"
#include "apps/server/limits.h"

namespace nibble::server {

// What connections share. Replies may outlive the server; they hold this, and do nothing once it is over.
struct SessionContext {
  boost::asio::io_context io;
  // Whoever posts from outside holds it shared, so that nothing is posted once `over` is set: a task that is
  // left in `io` would own it.
  std::shared_mutex over_mutex;
  bool over = false;
  Limits limits;
  HttpService* service;
  std::shared_ptr<TlsContext> tls;  // null: plain
  std::atomic<int> connections{0}, answers{0};
  std::atomic<bool> draining{false};
};

class Session : public std::enable_shared_from_this<Session> {
 public:
  using Socket = Stream::Socket;
  using ErrorCode = Stream::ErrorCode;

  Session(Socket socket, std::shared_ptr<SessionContext> context);  // the socket's executor is a strand
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  void Begin();
  void CloseIfIdle();  // from any thread
  void Gone();         // on the strand: closes; a request under way has lost its client
  Socket::executor_type executor() { return stream_->socket().get_executor(); }

 private:
  friend class SessionReply;
  template <class Task>
  void Post(Task task);  // from a reply, on any thread
  enum class State : uint8_t { kIdle, kHead, kBody, kAnswer, kLinger, kClosed };

  void NextRequest();
  void Read();
  void OnRead(const ErrorCode& error, size_t bytes);
  void OnEnd();
  void Parse();
  void OnHead();
  int CheckHead() const;  // a status to refuse it with, 0: fine
  void FillRequest();
  void OnExpect();
  void Dispatch();
  void Refuse(int status, std::string_view message);
  void RefuseWith(const HttpResponse& response);
  void RefuseBadSyntax(const ErrorCode& error);

  void SetDeadline(double seconds);
  void SetBodyDeadline();
  void ClearDeadline();
  void OnDeadline();
  void ArmPing();

  // What replies ask for, on the strand.
  void SendWhole(const HttpResponse& response, std::string log);
  void StartStream(const std::string& content_type, std::string ping);
  void WritePiece(const std::string& piece);
  void EndStream(std::string log);

  std::string Head(int status, const std::string& content_type, const Headers& headers) const;
  void Queue(std::string bytes);
  void WriteSome();
  void OnWritten(const ErrorCode& error, size_t bytes);
  void Answered();
  void Linger();
  void Close();
  void LogAnswer(int status);

  std::shared_ptr<SessionContext> context_;  // first, so that it outlives what belongs to its io_context
  std::unique_ptr<Stream> stream_;
  boost::asio::steady_timer deadline_, ping_timer_;
  boost::beast::flat_buffer buffer_;
  std::optional<boost::beast::http::request_parser<boost::beast::http::string_body>> parser_;
  State state_ = State::kIdle;
  bool reading_ = false, writing_ = false, peer_closed_ = false;
  uint64_t deadline_number_ = 0;  // a timer that fires late is told by it
  std::chrono::steady_clock::time_point body_began_, answer_began_, last_write_;
  size_t body_read_ = 0;

  // The request that is being answered.
  HttpRequest request_;
  Headers common_headers_;
  bool keep_alive_ = false, head_only_ = false, chunked_ = false, streaming_ = false, ended_ = false;
  bool answered_ = false;  // a request before this one
  int status_ = 0;
  size_t sent_bytes_ = 0;
  std::string ping_, log_;

  std::string outgoing_, waiting_;  // being written, and behind it
  size_t written_ = 0;              // of outgoing_

  // What other threads touch.
  std::atomic<bool> gone_{false};
  std::mutex gone_mutex_;
  std::function<void()> on_gone_;
};

}  // namespace nibble::server
