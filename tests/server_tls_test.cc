// SPDX-License-Identifier: Apache-2.0
// The server under TLS, with certificates made here and a client that is OpenSSL alone.
#include <gtest/gtest.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <csignal>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <random>

#include "tests/support/running_server.h"

namespace nibble::server {
namespace {

using nlohmann::json;

struct PairFiles {
  std::string certificate, key;
};

void WritePem(const std::string& path, const std::function<int(FILE*)>& write) {
  FILE* file = std::fopen(path.c_str(), "wb");
  NIBBLE_CHECK(file != nullptr && write(file) == 1 && std::fclose(file) == 0, "a PEM file");
}

// A certificate for "localhost" that vouches for itself.
PairFiles MakePair(const TempDir& dir, const std::string& name) {
  EVP_PKEY* key = EVP_EC_gen("P-256");
  X509* certificate = X509_new();
  X509_set_version(certificate, 2);
  ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1);
  X509_gmtime_adj(X509_getm_notBefore(certificate), -3600);
  X509_gmtime_adj(X509_getm_notAfter(certificate), 3600);
  X509_NAME* subject = X509_get_subject_name(certificate);
  X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC, reinterpret_cast<const unsigned char*>("localhost"),
                             -1, -1, 0);
  X509_set_issuer_name(certificate, subject);
  X509_set_pubkey(certificate, key);
  NIBBLE_CHECK(X509_sign(certificate, key, EVP_sha256()) > 0, "a signature");
  const PairFiles files{dir / (name + ".crt"), dir / (name + ".key")};
  WritePem(files.certificate, [&](FILE* f) { return PEM_write_X509(f, certificate); });
  WritePem(files.key,
           [&](FILE* f) { return PEM_write_PrivateKey(f, key, nullptr, nullptr, 0, nullptr, nullptr); });
  WritePem(files.key + ".locked", [&](FILE* f) {
    std::string password = "secret";
    return PEM_write_PrivateKey(f, key, EVP_aes_256_cbc(), nullptr, 0, nullptr, password.data());
  });
  X509_free(certificate);
  EVP_PKEY_free(key);
  return files;
}

class TlsClient {
 public:
  // Trusts `certificate` alone.
  TlsClient(const Running& server, const std::string& certificate, int most_version = 0)
      : tcp_(server.Connect()), context_(SSL_CTX_new(TLS_client_method())) {
    SSL_CTX_load_verify_locations(context_, certificate.c_str(), nullptr);
    SSL_CTX_set_verify(context_, SSL_VERIFY_PEER, nullptr);
    SSL_CTX_set_security_level(context_, 0);
    SSL_CTX_set_max_proto_version(context_, most_version);
    ssl_ = SSL_new(context_);
    const unsigned char offered[] = "\x02h2\x08http/1.1";
    SSL_set_alpn_protos(ssl_, offered, sizeof offered - 1);
    SSL_set_fd(ssl_, tcp_.fd());
    open_ = SSL_connect(ssl_) == 1;
  }
  ~TlsClient() {
    SSL_free(ssl_);
    SSL_CTX_free(context_);
  }
  TlsClient(const TlsClient&) = delete;
  TlsClient& operator=(const TlsClient&) = delete;

  bool open() const { return open_; }
  std::string version() const { return SSL_get_version(ssl_); }
  std::string protocol() const {
    const unsigned char* name = nullptr;
    unsigned bytes = 0;
    SSL_get0_alpn_selected(ssl_, &name, &bytes);
    return {reinterpret_cast<const char*>(name), bytes};
  }
  bool Send(const std::string& bytes) { return SSL_write(ssl_, bytes.data(), int(bytes.size())) > 0; }
  // "" at the end; whether that was said as TLS wants it is told by clean_end.
  std::string ReadSome() {
    char bytes[1000];
    const int n = SSL_read(ssl_, bytes, sizeof bytes);
    if (n <= 0) clean_end_ = SSL_get_error(ssl_, n) == SSL_ERROR_ZERO_RETURN;
    return {bytes, size_t(std::max(n, 0))};
  }
  std::string ReadUntil(const std::string& end) {
    std::string text;
    while (text.find(end) == text.npos) {
      const std::string some = ReadSome();
      if (some.empty()) break;
      text += some;
    }
    return text;
  }
  std::string ReadAll() { return ReadUntil("no such text"); }
  bool clean_end() const { return clean_end_; }
  void Leave() { SSL_shutdown(ssl_); }
  HttpClient& tcp() { return tcp_; }

 private:
  HttpClient tcp_;
  SSL_CTX* context_;
  SSL* ssl_ = nullptr;
  bool open_ = false, clean_end_ = false;
};

std::string Post(const std::string& body, const std::string& more = "") {
  return fmt::format(
      "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{}Content-Length: "
      "{}\r\n\r\n{}",
      more, body.size(), body);
}
const std::string kClose = "Connection: close\r\n";

class ServerTls : public ::testing::Test {
 protected:
  ServerTls() : pair_(MakePair(dir_, "server")) {
    std::signal(SIGPIPE, SIG_IGN);  // OpenSSL writes to sockets that may be closed
  }
  ServerConfig Setup() const {
    auto tls = LoadTls(pair_.certificate, pair_.key);
    NIBBLE_CHECK(tls.ok(), tls.status().message().c_str());
    ServerConfig setup;
    setup.http.tls = *tls;
    return setup;
  }
  TempDir dir_;
  PairFiles pair_;
};

std::string BodyOf(const std::string& response) { return response.substr(response.find("\r\n\r\n") + 4); }

TEST_F(ServerTls, AnswersAreThoseWithoutTls) {
  const Running plain, server(Setup());
  const json expected = json::parse(plain.Call("POST", "/v1/completions", Completion(12)).body);
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    TlsClient client(server, pair_.certificate, version);
    ASSERT_TRUE(client.open());
    EXPECT_EQ(client.version(), version == TLS1_2_VERSION ? "TLSv1.2" : "TLSv1.3");
    EXPECT_EQ(client.protocol(), "http/1.1");
    ASSERT_TRUE(client.Send(Post(Completion(12), kClose)));
    const std::string response = client.ReadAll();
    EXPECT_TRUE(client.clean_end());
    EXPECT_EQ(json::parse(BodyOf(response))["choices"], expected["choices"]);
  }
}

TEST_F(ServerTls, ConnectionsAreKeptAndPipelined) {
  const Running server(Setup());
  TlsClient client(server, pair_.certificate);
  ASSERT_TRUE(client.open());
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(client.Send("GET /version HTTP/1.1\r\nHost: x\r\n\r\n"));
    EXPECT_NE(client.ReadUntil("}").find("200 OK"), std::string::npos);
  }
  // Longer than a record of TLS, in pieces of all sizes.
  const std::string body =
      fmt::format(R"({{"prompt":"{}","stream":true,"max_tokens":2}})", std::string(40000, ' ') + "x");
  std::string requests = Post(body) + "GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
  std::mt19937 random(1);
  for (size_t at = 0, size; at < requests.size(); at += size) {
    size = 1 + random() % 3000;
    ASSERT_TRUE(client.Send(requests.substr(at, size)));
  }
  const std::string both = client.ReadAll();
  EXPECT_TRUE(client.clean_end());
  EXPECT_NE(both.find("\"version\""), std::string::npos) << both;
}

TEST_F(ServerTls, StreamsComeAndWhoGoesIsCancelled) {
  ServerConfig setup = Setup();
  setup.pace = std::chrono::milliseconds(2);
  Running server(setup);
  for (const bool politely : {true, false}) {
    TlsClient client(server, pair_.certificate);
    ASSERT_TRUE(client.open());
    ASSERT_TRUE(client.Send(Post(Completion(400, R"("stream":true)"))));
    EXPECT_NE(client.ReadUntil("data: ").find("text/event-stream"), std::string::npos);
    EXPECT_EQ(server.engine.running, 1);
    if (politely) client.Leave();
    client.tcp().Reset();
    EXPECT_TRUE(server.Eventually([&] { return server.engine.running == 0; }));
  }
  EXPECT_EQ(server.engine.cancelled, 2);
}

TEST_F(ServerTls, OldVersionsAndOtherBytesGetNothing) {
  ServerConfig setup = Setup();
  setup.http.limits.header_seconds = 0.1;
  const Running server(setup);
  EXPECT_FALSE(TlsClient(server, pair_.certificate, TLS1_1_VERSION).open());
  EXPECT_FALSE(TlsClient(server, MakePair(dir_, "other").certificate).open());
  EXPECT_LE(server.Raw("GET /version HTTP/1.1\r\nHost: x\r\n\r\n"), 0);
  std::mt19937 random(7);
  for (int i = 0; i < 50; ++i) {
    std::string bytes = i % 2 == 0 ? "\x16\x03\x01\x02" : "";
    for (int n = 0; n < 300; ++n) bytes += static_cast<char>(random());
    EXPECT_LE(server.Raw(bytes), 0);
  }
  // Who says nothing is not waited for.
  HttpClient silent = server.Connect();
  EXPECT_TRUE(silent.AtEnd());
  EXPECT_TRUE(server.Eventually([&] { return server.http->connections() == 0; }));
  EXPECT_TRUE(TlsClient(server, pair_.certificate).open());
}

TEST_F(ServerTls, DrainSaysGoodbye) {
  ServerConfig setup = Setup();
  setup.pace = std::chrono::milliseconds(2);
  Running server(setup);
  TlsClient client(server, pair_.certificate);
  ASSERT_TRUE(client.open());
  ASSERT_TRUE(client.Send(Post(Completion(50, R"("stream":true)"))));
  std::string stream = client.ReadUntil("data: ");
  server.app->BeginDrain();
  server.http->Drain();
  stream += client.ReadAll();
  EXPECT_NE(stream.find("data: [DONE]"), std::string::npos);
  EXPECT_TRUE(client.clean_end());
  EXPECT_TRUE(server.http->WaitIdle(5));
}

TEST_F(ServerTls, BadFilesAreNamed) {
  const PairFiles other = MakePair(dir_, "other");
  WriteTestFile(dir_ / "junk", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
  WriteTestFile(dir_ / "empty", "");
  WriteTestFile(dir_ / "both", ReadTestFile(pair_.certificate) + ReadTestFile(pair_.key));
  EXPECT_TRUE(LoadTls(dir_ / "both", "").ok());
  struct Bad {
    std::string certificate, key, named, says;
  };
  const Bad cases[] = {
      {dir_ / "none", pair_.key, "none", ""},
      {pair_.certificate, dir_ / "none", "none", ""},
      {dir_.path(), pair_.key, dir_.path(), ""},
      {dir_ / "empty", pair_.key, "empty", "PEM"},
      {dir_ / "junk", pair_.key, "junk", "PEM"},
      {pair_.key, pair_.key, "server.key", "certificates in PEM"},
      {pair_.certificate, "", "server.crt", "private key"},
      {pair_.certificate, dir_ / "junk", "junk", "private key"},
      {pair_.certificate, other.key, "other.key", "mismatch"},
      {pair_.certificate, pair_.key + ".locked", "server.key.locked", "without a password"},
  };
  for (const Bad& bad : cases) {
    const Status status = LoadTls(bad.certificate, bad.key).status();
    ASSERT_FALSE(status.ok()) << bad.certificate << " " << bad.key;
    EXPECT_NE(status.message().find(bad.named), std::string::npos) << status.message();
    EXPECT_NE(status.message().find(bad.says), std::string::npos) << status.message();
    EXPECT_EQ(status.message().find('\n'), std::string::npos) << status.message();
  }
}

}  // namespace
}  // namespace nibble::server
