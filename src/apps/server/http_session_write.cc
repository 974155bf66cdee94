// SPDX-License-Identifier: Apache-2.0
// The writing half of a connection.
#include <fmt/chrono.h>

#include <boost/asio/post.hpp>
#include <boost/beast/http/status.hpp>
#include <ctime>

#include "apps/server/http_reply.h"
#include "apps/server/log.h"

namespace nibble::server {

namespace asio = boost::asio;
using std::chrono::steady_clock;

namespace {

constexpr size_t kKeptBytes = 64u << 10;  // of an empty buffer
constexpr size_t kLoggedPathBytes = 200;
constexpr int kClientGone = 499;  // in the log, as nginx has it

}  // namespace

template <class Task>
void Session::Post(Task task) {
  const std::shared_lock lock(context_->over_mutex);
  if (!context_->over) asio::post(executor(), std::move(task));
}

// A reply that is dropped half-way leaves the client with a broken connection rather than with a wait.
// NOLINTNEXTLINE(bugprone-exception-escape): only for want of memory
SessionReply::~SessionReply() {
  if (ended_) return;
  session_->Post([session = session_] { session->Gone(); });
}

void SessionReply::Send(HttpResponse response) {
  ended_ = true;
  session_->Post([session = session_, response = std::move(response), log = std::move(log_)]() mutable {
    session->SendWhole(response, std::move(log));
  });
}

void SessionReply::Start(std::string content_type, std::string ping) {
  session_->Post([session = session_, content_type = std::move(content_type),
                  ping = std::move(ping)]() mutable { session->StartStream(content_type, std::move(ping)); });
}

void SessionReply::Write(std::string piece) {
  if (piece.empty() || session_->gone_) return;
  session_->Post([session = session_, piece = std::move(piece)] { session->WritePiece(piece); });
}

void SessionReply::End() {
  ended_ = true;
  session_->Post(
      [session = session_, log = std::move(log_)]() mutable { session->EndStream(std::move(log)); });
}

void SessionReply::OnGone(std::function<void()> on_gone) {
  {
    const std::lock_guard lock(session_->gone_mutex_);
    if (!session_->gone_) {
      session_->on_gone_ = std::move(on_gone);
      return;
    }
  }
  on_gone();
}

void SessionReply::Log(std::string_view key, std::string value) {
  log_ += fmt::format(",\"{}\":{}", key, value);
}

std::string Session::Head(int status, const std::string& content_type, const Headers& headers) const {
  const auto reason = boost::beast::http::obsolete_reason(static_cast<boost::beast::http::status>(status));
  std::string head = fmt::format(
      "HTTP/1.1 {} {}\r\nDate: {:%a, %d %b %Y %H:%M:%S} GMT\r\nX-Request-Id: {}\r\n", status,
      std::string_view(reason.data(), reason.size()), fmt::gmtime(std::time(nullptr)), request_.id);
  if (!content_type.empty()) head += fmt::format("Content-Type: {}\r\n", content_type);
  for (const Headers* list : {&headers, &common_headers_})
    for (const auto& [name, value] : *list) head += fmt::format("{}: {}\r\n", name, value);
  if (!keep_alive_) head += "Connection: close\r\n";
  return head;
}

void Session::SendWhole(const HttpResponse& response, std::string log) {
  if (state_ != State::kAnswer) return;
  keep_alive_ = keep_alive_ && !context_->draining && !peer_closed_;
  log_ = std::move(log);
  status_ = response.status;
  std::string bytes = Head(response.status, response.content_type, response.headers);
  if (response.status != 204) bytes += fmt::format("Content-Length: {}\r\n", response.body.size());
  bytes += "\r\n";
  if (!head_only_) bytes += response.body;
  ended_ = true;
  Queue(std::move(bytes));
}

void Session::StartStream(const std::string& content_type, std::string ping) {
  if (state_ != State::kAnswer) return;
  keep_alive_ = keep_alive_ && chunked_ && !context_->draining && !peer_closed_;
  streaming_ = true;
  status_ = 200;
  ping_ = std::move(ping);
  Headers headers{{"Cache-Control", "no-store"}, {"X-Accel-Buffering", "no"}};
  if (chunked_) headers.emplace_back("Transfer-Encoding", "chunked");
  Queue(Head(200, content_type, headers) + "\r\n");
  ArmPing();
}

void Session::WritePiece(const std::string& piece) {
  if (state_ != State::kAnswer || !streaming_ || ended_ || piece.empty()) return;
  if (!waiting_.empty() && waiting_.size() + piece.size() > context_->limits.max_unsent_bytes) return Gone();
  Queue(chunked_ ? fmt::format("{:x}\r\n{}\r\n", piece.size(), piece) : piece);
}

void Session::EndStream(std::string log) {
  if (state_ != State::kAnswer || !streaming_) return;
  log_ = std::move(log);
  ended_ = true;
  ping_timer_.cancel();
  if (chunked_) {
    Queue("0\r\n\r\n");
  } else if (!writing_) {
    Answered();
  }
}

void Session::ArmPing() {
  const auto silence = std::chrono::duration_cast<steady_clock::duration>(
      std::chrono::duration<double>(context_->limits.ping_seconds));
  ping_timer_.expires_at(last_write_ + silence);
  ping_timer_.async_wait([self = shared_from_this(), silence](const ErrorCode& error) {
    if (error || !self->streaming_ || self->ended_ || self->state_ != State::kAnswer) return;
    if (steady_clock::now() - self->last_write_ >= silence) self->WritePiece(self->ping_);
    self->ArmPing();
  });
}

void Session::Queue(std::string bytes) {
  last_write_ = steady_clock::now();
  sent_bytes_ += bytes.size();
  if (writing_) {
    waiting_ += bytes;
    return;
  }
  outgoing_ = std::move(bytes);
  written_ = 0;
  WriteSome();
}

void Session::WriteSome() {
  writing_ = true;
  if (state_ == State::kAnswer) SetDeadline(context_->limits.send_seconds);
  stream_->Write(
      asio::buffer(outgoing_) + written_,
      [self = shared_from_this()](const ErrorCode& error, size_t bytes) { self->OnWritten(error, bytes); });
}

void Session::OnWritten(const ErrorCode& error, size_t bytes) {
  writing_ = false;
  if (state_ == State::kClosed) return;
  if (error) return Gone();
  written_ += bytes;
  if (written_ < outgoing_.size()) return WriteSome();
  outgoing_.clear();
  if (!waiting_.empty()) {
    outgoing_.swap(waiting_);
    written_ = 0;
    return WriteSome();
  }
  if (outgoing_.capacity() > kKeptBytes) std::string().swap(outgoing_);
  if (waiting_.capacity() > kKeptBytes) std::string().swap(waiting_);
  if (state_ != State::kAnswer) return;
  ClearDeadline();
  if (ended_) Answered();
}

void Session::Answered() {
  LogAnswer(status_);
  --context_->answers;
  state_ = State::kIdle;
  {
    const std::lock_guard lock(gone_mutex_);
    on_gone_ = nullptr;
  }
  streaming_ = ended_ = false;
  answered_ = true;
  sent_bytes_ = 0;
  if (!keep_alive_ || context_->draining) return Linger();
  NextRequest();
}

void Session::Gone() {
  if (state_ == State::kClosed) return;
  std::function<void()> on_gone;
  if (state_ == State::kAnswer) {
    LogAnswer(kClientGone);
    const std::lock_guard lock(gone_mutex_);
    gone_ = true;
    on_gone.swap(on_gone_);
  }
  Close();
  if (on_gone) on_gone();
}

void Session::LogAnswer(int status) {
  context_->service->Answered(status);
  const std::chrono::duration<double> took = steady_clock::now() - answer_began_;
  Log("info", "request",
      fmt::format(R"("id":"{}","peer":"{}","method":{},"path":{},"status":{},"bytes":{},"seconds":{:.6f}{})",
                  request_.id, request_.peer, Quoted(request_.method),
                  Quoted(request_.path.substr(0, kLoggedPathBytes)), status, sent_bytes_, took.count(),
                  log_));
  log_.clear();
}

}  // namespace nibble::server
