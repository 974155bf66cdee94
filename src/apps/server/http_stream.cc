// SPDX-License-Identifier: Apache-2.0
#include "apps/server/http_stream.h"

#include <fmt/format.h>
#include <openssl/err.h>
#include <openssl/ssl.h>

#include <algorithm>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <string_view>

#include "apps/server/log.h"
#include "base/file.h"

namespace nibble::server {

namespace asio = boost::asio;
namespace ssl = asio::ssl;

struct TlsContext {
  ssl::context context{ssl::context::tls_server};
};

namespace {

class PlainStream final : public Stream {
 public:
  explicit PlainStream(Socket socket) : socket_(std::move(socket)) {}
  Socket& socket() override { return socket_; }
  void Open(OnDone on_done) override { on_done({}); }
  void Read(asio::mutable_buffer into, OnBytes on_bytes) override {
    socket_.async_read_some(into, std::move(on_bytes));
  }
  void Write(asio::const_buffer from, OnBytes on_bytes) override {
    socket_.async_write_some(from, std::move(on_bytes));
  }
  void EndWriting(std::shared_ptr<void>) override {
    ErrorCode ignored;
    socket_.shutdown(Socket::shutdown_send, ignored);
  }

 private:
  Socket socket_;
};

class TlsStream final : public Stream {
 public:
  TlsStream(Socket socket, std::shared_ptr<TlsContext> tls)
      : tls_(std::move(tls)), stream_(std::move(socket), tls_->context) {}
  Socket& socket() override { return stream_.next_layer(); }
  void Open(OnDone on_done) override {
    stream_.async_handshake(ssl::stream_base::server, std::move(on_done));
  }
  void Read(asio::mutable_buffer into, OnBytes on_bytes) override {
    stream_.async_read_some(into, std::move(on_bytes));
  }
  void Write(asio::const_buffer from, OnBytes on_bytes) override {
    stream_.async_write_some(from, std::move(on_bytes));
  }
  void EndWriting(std::shared_ptr<void> keep) override {
    stream_.async_shutdown([keep = std::move(keep)](const ErrorCode&) {});
  }

 private:
  std::shared_ptr<TlsContext> tls_;
  ssl::stream<Socket> stream_;
};

// What OpenSSL complained of last, in its words.
std::string Reason() {
  const unsigned long code = ERR_peek_last_error();
  const char* reason = code == 0 ? nullptr : ERR_reason_error_string(code);
  ERR_clear_error();
  return reason == nullptr ? "unknown error" : reason;
}

// A server must not ask whoever started it for a password, which OpenSSL does unless told otherwise.
int NoPassword(char*, int, int, void*) { return -1; }

// Clients that offer protocols get HTTP/1.1, also where they would rather have another.
int ChooseProtocol(SSL*, const unsigned char** out, unsigned char* out_bytes, const unsigned char* offered,
                   unsigned offered_bytes, void*) {
  static constexpr unsigned char kOurs[] = "\x08http/1.1";
  unsigned char* chosen = nullptr;
  const int found =
      SSL_select_next_proto(&chosen, out_bytes, kOurs, sizeof kOurs - 1, offered, offered_bytes);
  *out = chosen;
  return found == OPENSSL_NPN_NEGOTIATED ? SSL_TLSEXT_ERR_OK : SSL_TLSEXT_ERR_NOACK;
}

void WarnOfDates(SSL_CTX* context, const std::string& file) {
  const X509* certificate = SSL_CTX_get0_certificate(context);
  if (X509_cmp_current_time(X509_get0_notAfter(certificate)) > 0 &&
      X509_cmp_current_time(X509_get0_notBefore(certificate)) < 0)
    return;
  Log("warn", "tls",
      fmt::format("\"file\":{},\"error\":\"the certificate is not valid today\"", Quoted(file)));
}

}  // namespace

std::unique_ptr<Stream> Stream::Make(Socket socket, const std::shared_ptr<TlsContext>& tls) {
  if (tls == nullptr) return std::make_unique<PlainStream>(std::move(socket));
  return std::make_unique<TlsStream>(std::move(socket), tls);
}

Result<std::shared_ptr<TlsContext>> LoadTls(const std::string& certificate_file,
                                            const std::string& key_file) {
  const std::string& key_from = key_file.empty() ? certificate_file : key_file;
  for (const std::string& file : {certificate_file, key_from})
    NIBBLE_RETURN_IF_ERROR(File::Open(file).status());
  auto tls = std::make_shared<TlsContext>();
  SSL_CTX* context = tls->context.native_handle();
  SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION);
  SSL_CTX_set_options(context, SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION);
  SSL_CTX_set_default_passwd_cb(context, NoPassword);
  SSL_CTX_set_alpn_select_cb(context, ChooseProtocol, nullptr);
  ERR_clear_error();
  if (SSL_CTX_use_certificate_chain_file(context, certificate_file.c_str()) != 1)
    return Error(Code::kInvalidArgument, "{}: wanted certificates in PEM form ({})", certificate_file,
                 Reason());
  if (SSL_CTX_use_PrivateKey_file(context, key_from.c_str(), SSL_FILETYPE_PEM) != 1)
    return Error(Code::kInvalidArgument,
                 "{}: wanted the private key of {} in PEM form, without a password ({})", key_from,
                 certificate_file, Reason());
  WarnOfDates(context, certificate_file);
  return tls;
}

}  // namespace nibble::server
