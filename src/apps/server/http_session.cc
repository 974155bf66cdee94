// SPDX-License-Identifier: Apache-2.0
// Reading and parsing; http_session_write.cc writes.
#include "apps/server/http_session.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/post.hpp>
#include <boost/beast/http/error.hpp>
#include <random>

#include "apps/server/http_reply.h"
#include "apps/server/log.h"

namespace nibble::server {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using std::chrono::steady_clock;

namespace {

constexpr size_t kReadBytes = 4096, kBodyReadBytes = 64u << 10;
constexpr double kLingerSeconds = 2;
constexpr double kNewSeconds = 1;  // for the first bytes of a connection while the server drains
constexpr size_t kMaxIdBytes = 64;

steady_clock::duration Seconds(double seconds) {
  return std::chrono::duration_cast<steady_clock::duration>(std::chrono::duration<double>(seconds));
}

bool IsSaneId(std::string_view id) {
  const auto sane = [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' ||
           c == '_' || c == '.';
  };
  return !id.empty() && id.size() <= kMaxIdBytes && std::all_of(id.begin(), id.end(), sane);
}

// Different in every process and for every request.
std::string NewId() {
  static const uint64_t salt = (uint64_t{std::random_device{}()} << 32) | std::random_device{}();
  static std::atomic<uint64_t> counter{0};
  return fmt::format("req-{:016x}", salt + ++counter * 0x9E3779B97F4A7C15u);
}

}  // namespace

Session::Session(Socket socket, std::shared_ptr<SessionContext> context)
    : context_(std::move(context)),
      stream_(Stream::Make(std::move(socket), context_->tls)),
      deadline_(executor()),
      ping_timer_(executor()) {
  ++context_->connections;
}

Session::~Session() { --context_->connections; }

void Session::Begin() {
  ErrorCode ignored;
  Socket& socket = stream_->socket();
  const auto peer = socket.remote_endpoint(ignored);
  request_.peer = ignored ? "" : peer.address().to_string();
  socket.set_option(asio::ip::tcp::no_delay(true), ignored);
  SetDeadline(context_->limits.header_seconds);
  stream_->Open([self = shared_from_this()](const ErrorCode& error) {
    if (self->state_ == State::kClosed) return;
    if (!error) return self->NextRequest();
    Log("info", "tls",
        fmt::format("\"peer\":\"{}\",\"error\":{}", self->request_.peer, Quoted(error.message())));
    self->Close();
  });
}

void Session::NextRequest() {
  const std::string peer = std::move(request_.peer);
  request_ = {};
  request_.peer = peer;
  common_headers_.clear();
  parser_.emplace();
  parser_->header_limit(static_cast<uint32_t>(context_->limits.max_header_bytes));
  parser_->body_limit(context_->limits.max_body_bytes);
  body_read_ = 0;
  state_ = State::kIdle;
  SetDeadline(context_->limits.idle_seconds);
  Parse();
}

void Session::Read() {
  const size_t most = state_ == State::kBody ? kBodyReadBytes : kReadBytes;
  // During an answer this bounds what a client may send ahead.
  if (reading_ || peer_closed_ || buffer_.size() >= context_->limits.max_header_bytes + kBodyReadBytes)
    return;
  reading_ = true;
  stream_->Read(buffer_.prepare(most),
                [self = shared_from_this()](const ErrorCode& error, size_t n) { self->OnRead(error, n); });
}

void Session::OnRead(const ErrorCode& error, size_t bytes) {
  reading_ = false;
  if (state_ == State::kClosed) return;
  if (error == asio::error::eof) return OnEnd();
  if (error) return Gone();
  buffer_.commit(bytes);
  if (state_ == State::kLinger) {
    buffer_.clear();
    return Read();
  }
  if (state_ == State::kAnswer) return Read();
  if (state_ == State::kBody) {
    body_read_ += bytes;
    SetBodyDeadline();
  }
  Parse();
}

// The client has sent its last byte. It may still want the answer, or be gone altogether: whoever is gone
// refuses the next bytes that we send, so something harmless is sent.
void Session::OnEnd() {
  peer_closed_ = true;
  if (state_ != State::kAnswer) return Close();
  keep_alive_ = false;
  if (ended_) return;
  if (!streaming_ && parser_->get().version() < 11) return Gone();  // HTTP/1.0 knows no interim answer
  if (streaming_) {
    WritePiece(ping_);
  } else {
    Queue("HTTP/1.1 100 Continue\r\n\r\n");
  }
  stream_->socket().async_wait(Socket::wait_error, [self = shared_from_this()](const ErrorCode& error) {
    if (!error && self->state_ == State::kAnswer) self->Gone();
  });
}

void Session::Parse() {
  while (state_ <= State::kBody) {
    if (buffer_.size() == 0) return Read();
    if (state_ == State::kIdle) {
      state_ = State::kHead;
      SetDeadline(context_->limits.header_seconds);
    }
    ErrorCode error;
    const size_t used = parser_->put(buffer_.data(), error);
    buffer_.consume(used);
    if (error == http::error::need_more) return Read();
    if (error) return RefuseBadSyntax(error);
    if (state_ == State::kHead && parser_->is_header_done()) OnHead();
    if (state_ == State::kBody && parser_->is_done()) return Dispatch();
  }
}

void Session::RefuseBadSyntax(const ErrorCode& error) {
  if (error == http::error::body_limit)
    return Refuse(413, fmt::format("the body is longer than {} bytes", context_->limits.max_body_bytes));
  if (error == http::error::header_limit) {
    const bool in_target = parser_->get().target().empty();
    return Refuse(in_target ? 414 : 431, fmt::format("{} longer than {} bytes",
                                                     in_target ? "the request line is" : "the headers are",
                                                     context_->limits.max_header_bytes));
  }
  if (error == http::error::bad_version) return Refuse(505, "only HTTP/1.0 and HTTP/1.1 are spoken here");
  Refuse(400, fmt::format("not HTTP/1.1: {}", error.message()));
}

int Session::CheckHead() const {
  const auto& head = parser_->get();
  if (std::distance(head.begin(), head.end()) > context_->limits.max_headers) return 431;
  if (head.version() == 11 && head.count(http::field::host) != 1) return 400;
  const auto coding = head.equal_range(http::field::transfer_encoding);
  if (coding.first == coding.second) return 0;
  const bool chunked = boost::beast::iequals(coding.first->value(), "chunked");
  return chunked && std::next(coding.first) == coding.second && head.count(http::field::content_length) == 0
             ? 0
             : 400;
}

void Session::FillRequest() {
  const auto& head = parser_->get();
  const auto value = [&head](auto name) { return std::string(head[name]); };
  request_.method = std::string(head.method_string());
  const std::string_view target(head.target().data(), head.target().size());
  request_.path = std::string(target.substr(0, target.find('?')));
  request_.content_type = value(http::field::content_type);
  request_.content_encoding = value(http::field::content_encoding);
  request_.authorization = value(http::field::authorization);
  request_.api_key = value("x-api-key");
  request_.origin = value(http::field::origin);
  request_.preflight_method = value(http::field::access_control_request_method);
  const std::string id = value("x-request-id");
  request_.id = IsSaneId(id) ? id : NewId();
}

void Session::OnHead() {
  FillRequest();
  keep_alive_ = parser_->keep_alive();
  head_only_ = request_.method == "HEAD";
  chunked_ = parser_->get().version() >= 11;
  answer_began_ = steady_clock::now();
  switch (CheckHead()) {
    case 431:
      return Refuse(431, fmt::format("more than {} headers", context_->limits.max_headers));
    case 400:
      return Refuse(400, "wanted one Host header and either Content-Length or Transfer-Encoding: chunked");
    default:
      break;
  }
  common_headers_ = context_->service->CommonHeaders(request_);
  if (auto refused = context_->service->Refuse(request_)) return RefuseWith(*refused);
  state_ = State::kBody;
  body_began_ = steady_clock::now();
  SetBodyDeadline();
  parser_->eager(true);
  if (!parser_->is_done()) OnExpect();
}

void Session::OnExpect() {
  const auto expected = parser_->get()[http::field::expect];
  if (expected.empty()) return;
  if (!boost::beast::iequals(expected, "100-continue"))
    return Refuse(417, "only Expect: 100-continue is known");
  Queue("HTTP/1.1 100 Continue\r\n\r\n");
}

void Session::Dispatch() {
  ClearDeadline();
  state_ = State::kAnswer;
  ++context_->answers;
  request_.body = std::move(parser_->get().body());
  auto reply = std::make_shared<SessionReply>(shared_from_this(), request_.id);
  Read();
  HttpRequest request = std::move(request_);
  request_.method = request.method;  // for the log
  request_.path = request.path;
  request_.id = request.id;
  request_.peer = request.peer;
  context_->service->Handle(std::move(request), std::move(reply));
}

void Session::Refuse(int status, std::string_view message) {
  if (request_.id.empty()) request_.id = NewId();
  RefuseWith(context_->service->Error(status, message));
}

// Without its body the bytes that follow mean nothing, so the connection ends.
void Session::RefuseWith(const HttpResponse& response) {
  const bool whole = parser_->is_done();
  ClearDeadline();
  state_ = State::kAnswer;
  ++context_->answers;
  keep_alive_ = keep_alive_ && whole;
  SendWhole(response, "");
}

void Session::SetDeadline(double seconds) {
  deadline_.expires_after(Seconds(seconds));
  deadline_.async_wait([self = shared_from_this(), number = ++deadline_number_](const ErrorCode& error) {
    if (!error && number == self->deadline_number_) self->OnDeadline();
  });
}

void Session::SetBodyDeadline() {
  const Limits& limits = context_->limits;
  const double allowed =
      limits.body_seconds + static_cast<double>(body_read_) / static_cast<double>(limits.min_body_rate);
  const std::chrono::duration<double> passed = steady_clock::now() - body_began_;
  SetDeadline(std::max(0.0, allowed - passed.count()));
}

void Session::ClearDeadline() {
  ++deadline_number_;
  deadline_.cancel();
}

void Session::OnDeadline() {
  switch (state_) {
    case State::kHead:
      return Refuse(408, "the headers took too long");
    case State::kBody:
      return Refuse(408, "the body took too long");
    case State::kAnswer:
      return Gone();  // it takes no bytes
    default:
      return Close();
  }
}

// A client whose request is on its way would see a reset: what has arrived is answered, and a connection that
// has just been made gets a moment to speak.
void Session::CloseIfIdle() {
  asio::post(executor(), [self = shared_from_this()] {
    ErrorCode ignored;
    if (self->state_ != State::kIdle || self->stream_->socket().available(ignored) > 0) return;
    if (self->answered_) return self->Close();
    self->SetDeadline(kNewSeconds);
  });
}

void Session::Linger() {
  stream_->EndWriting(shared_from_this());
  if (peer_closed_) return Close();
  state_ = State::kLinger;  // what the client still sends would otherwise destroy the answer on its way
  buffer_.clear();
  SetDeadline(kLingerSeconds);
  Read();
}

void Session::Close() {
  if (state_ == State::kClosed) return;
  if (state_ == State::kAnswer) --context_->answers;
  state_ = State::kClosed;
  ClearDeadline();
  ping_timer_.cancel();
  ErrorCode ignored;
  stream_->socket().close(ignored);
}

}  // namespace nibble::server
