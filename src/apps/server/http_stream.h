// SPDX-License-Identifier: Apache-2.0
// Floor 9. The bytes of one connection, as they are or under TLS.
#pragma once
#include <boost/asio/buffer.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <functional>
#include <memory>

#include "apps/server/tls.h"

namespace nibble::server {

// On the strand of its socket. At most one Read and one Write at a time, beside each other.
class Stream {
 public:
  using Socket = boost::asio::ip::tcp::socket;
  using ErrorCode = boost::system::error_code;
  using OnDone = std::function<void(const ErrorCode& error)>;
  using OnBytes = std::function<void(const ErrorCode& error, size_t bytes)>;

  static std::unique_ptr<Stream> Make(Socket socket, const std::shared_ptr<TlsContext>& tls);  // null: plain
  virtual ~Stream() = default;

  virtual Socket& socket() = 0;
  virtual void Open(OnDone on_done) = 0;  // before anything else; at once where there is nothing to agree on
  virtual void Read(boost::asio::mutable_buffer into, OnBytes on_bytes) = 0;  // eof: the peer sends no more
  virtual void Write(boost::asio::const_buffer from, OnBytes on_bytes) = 0;
  // Tells the peer that nothing more comes; `keep` lives until it is told.
  virtual void EndWriting(std::shared_ptr<void> keep) = 0;
};

}  // namespace nibble::server
