// SPDX-License-Identifier: Apache-2.0
// Listening, threads and signals.
#include "apps/server/http_server.h"

#include <sys/resource.h>

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/strand.hpp>
#include <chrono>
#include <climits>
#include <condition_variable>
#include <csignal>
#include <mutex>
#include <thread>
#include <vector>

#include "apps/server/http_session.h"
#include "apps/server/log.h"

namespace nibble::server {

namespace asio = boost::asio;
using asio::ip::tcp;

namespace {

constexpr int kSpareFiles = 64;        // beside connections: the model, the log, the listener, ...
constexpr double kRetrySeconds = 0.1;  // after accept has failed, as it does without file descriptors
constexpr auto kPoll = std::chrono::milliseconds(5);

class HttpServerImpl final : public HttpServer {
 public:
  HttpServerImpl(const HttpServerOptions& options, HttpService* service)
      : context_(std::make_shared<SessionContext>()),
        io_(context_->io),
        acceptor_(asio::make_strand(io_)),
        signals_(acceptor_.get_executor()),
        retry_(acceptor_.get_executor()) {
    context_->limits = options.limits;
    context_->service = service;
    context_->tls = options.tls;
  }
  ~HttpServerImpl() override;  // NOLINT(bugprone-exception-escape)

  Status Listen(const HttpServerOptions& options);
  void Run(int threads);

  std::string address() const override {
    const std::string host = endpoint_.address().to_string();
    return endpoint_.address().is_v6() ? fmt::format("[{}]:{}", host, port())
                                       : fmt::format("{}:{}", host, port());
  }
  uint16_t port() const override { return endpoint_.port(); }
  int WaitForSignal(double seconds) override;
  void Drain() override;
  bool WaitIdle(double seconds) override;
  int connections() const override { return context_->connections; }
  int requests_under_way() const override { return context_->answers; }

 private:
  void Accept();
  void OnAccept(const boost::system::error_code& error, tcp::socket socket);
  void AwaitSignal();
  void Remember(const std::shared_ptr<Session>& session);
  template <class Action>
  void ForEachSession(Action action);

  std::shared_ptr<SessionContext> context_;
  asio::io_context& io_;
  tcp::acceptor acceptor_;  // its strand also has signals_ and retry_
  asio::signal_set signals_;
  asio::steady_timer retry_;
  tcp::endpoint endpoint_;
  std::vector<std::thread> threads_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::weak_ptr<Session>> sessions_;
  size_t compact_at_ = 64;
  int signal_ = 0, signals_seen_ = 0;
};

// Room for every connection that may be open at once, where the system lets a process ask for it.
Status RaiseFileLimit(int connections) {
  rlimit files{};
  getrlimit(RLIMIT_NOFILE, &files);
  const rlim_t wanted = static_cast<rlim_t>(connections) + kSpareFiles;
  if (files.rlim_cur >= wanted) return {};
  files.rlim_cur = std::min(files.rlim_max, wanted);
  if (files.rlim_cur < wanted || setrlimit(RLIMIT_NOFILE, &files) != 0)
    return Error(Code::kIo, "{} connections need {} open files, but the system allows {} (ulimit -n)",
                 connections, wanted, files.rlim_max);
  return {};
}

Status HttpServerImpl::Listen(const HttpServerOptions& options) {
  NIBBLE_RETURN_IF_ERROR(RaiseFileLimit(options.limits.max_connections));
  boost::system::error_code error;
  const auto fail = [&] {
    return Error(Code::kIo, "cannot listen on {}:{}: {}", options.host, options.port, error.message());
  };
  const auto address =
      asio::ip::make_address(options.host == "localhost" ? "127.0.0.1" : options.host, error);
  if (error)
    return Error(Code::kInvalidArgument, "--host {}: wanted an IP address, such as 127.0.0.1 or 0.0.0.0",
                 options.host);
  acceptor_.open(address.is_v6() ? tcp::v6() : tcp::v4(), error);
  if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor_.bind({address, options.port}, error);
  if (!error) acceptor_.listen(asio::socket_base::max_listen_connections, error);
  if (!error) endpoint_ = acceptor_.local_endpoint(error);
  if (error) return fail();
  signals_.add(SIGINT, error);
  if (!error) signals_.add(SIGTERM, error);
  return error ? fail() : Status();
}

void HttpServerImpl::Run(int threads) {
  AwaitSignal();
  Accept();
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { io_.run(); });
}

// Closes everything, so that the threads run out of work.
// NOLINTNEXTLINE(bugprone-exception-escape): only for want of memory
HttpServerImpl::~HttpServerImpl() {
  {
    const std::lock_guard lock(context_->over_mutex);
    context_->over = true;
  }
  asio::post(acceptor_.get_executor(), [this] {
    boost::system::error_code ignored;
    acceptor_.close(ignored);
    signals_.cancel(ignored);
    retry_.cancel();
    ForEachSession([](const std::shared_ptr<Session>& session) {
      asio::post(session->executor(), [session] { session->Gone(); });
    });
  });
  for (std::thread& thread : threads_) thread.join();
}

void HttpServerImpl::AwaitSignal() {
  signals_.async_wait([this](const boost::system::error_code& error, int signal) {
    if (error) return;
    {
      const std::lock_guard lock(mutex_);
      signal_ = signal;
      ++signals_seen_;
    }
    changed_.notify_all();
    AwaitSignal();
  });
}

int HttpServerImpl::WaitForSignal(double seconds) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return signals_seen_ > 0; });
  return signal_;
}

void HttpServerImpl::Accept() {
  acceptor_.async_accept(asio::make_strand(io_),
                         [this](const boost::system::error_code& error, tcp::socket socket) {
                           OnAccept(error, std::move(socket));
                         });
}

void HttpServerImpl::OnAccept(const boost::system::error_code& error, tcp::socket socket) {
  if (!acceptor_.is_open()) return;
  if (error) {  // out of descriptors, or a client that left while it waited
    Log("warn", "accept", fmt::format("\"error\":{}", Quoted(error.message())));
    retry_.expires_after(std::chrono::milliseconds(static_cast<int>(kRetrySeconds * 1000)));
    retry_.async_wait([this](const boost::system::error_code& cancelled) {
      if (!cancelled) Accept();
    });
    return;
  }
  if (context_->connections >= context_->limits.max_connections) {
    constexpr char kFull[] =
        "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\nContent-Length: "
        "0\r\n\r\n";
    boost::system::error_code ignored;
    socket.non_blocking(true, ignored);
    socket.write_some(asio::buffer(kFull, sizeof kFull - 1), ignored);
  } else {
    const auto session = std::make_shared<Session>(std::move(socket), context_);
    Remember(session);
    asio::post(session->executor(), [session] { session->Begin(); });
  }
  Accept();
}

// The list is cleaned when it has doubled, so that it costs nothing to speak of and stays small.
void HttpServerImpl::Remember(const std::shared_ptr<Session>& session) {
  const std::lock_guard lock(mutex_);
  if (sessions_.size() >= compact_at_) {
    std::erase_if(sessions_, [](const auto& weak) { return weak.expired(); });
    compact_at_ = std::max<size_t>(64, 2 * sessions_.size());
  }
  sessions_.push_back(session);
}

template <class Action>
void HttpServerImpl::ForEachSession(Action action) {
  std::vector<std::weak_ptr<Session>> sessions;
  {
    const std::lock_guard lock(mutex_);
    sessions = sessions_;
  }
  for (const auto& weak : sessions)
    if (const auto session = weak.lock()) action(session);
}

void HttpServerImpl::Drain() {
  context_->draining = true;
  ForEachSession([](const std::shared_ptr<Session>& session) { session->CloseIfIdle(); });
}

bool HttpServerImpl::WaitIdle(double seconds) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  std::unique_lock lock(mutex_);
  const int seen = signals_seen_;
  while (context_->answers > 0) {
    if (signals_seen_ > seen || std::chrono::steady_clock::now() >= until) return false;
    changed_.wait_for(lock, kPoll);
  }
  return true;
}

}  // namespace

int ConnectionsAllowed() {
  rlimit files{};
  getrlimit(RLIMIT_NOFILE, &files);
  const auto most = std::min<rlim_t>(files.rlim_max, INT_MAX);
  return std::max(0, static_cast<int>(most) - kSpareFiles);
}

Result<std::unique_ptr<HttpServer>> HttpServer::Start(const HttpServerOptions& options,
                                                      HttpService* service) {
  auto server = std::make_unique<HttpServerImpl>(options, service);
  NIBBLE_RETURN_IF_ERROR(server->Listen(options));
  server->Run(options.threads);
  return std::unique_ptr<HttpServer>(std::move(server));
}

}  // namespace nibble::server
