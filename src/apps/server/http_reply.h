// SPDX-License-Identifier: Apache-2.0
// Floor 9. The answer of one request as routes see it: every call becomes a task of the connection's strand.
#pragma once
#include <memory>
#include <string>

#include "apps/server/http_session.h"

namespace nibble::server {

class SessionReply final : public Reply {
 public:
  SessionReply(std::shared_ptr<Session> session, std::string id)
      : session_(std::move(session)), id_(std::move(id)) {}
  ~SessionReply() override;  // NOLINT(bugprone-exception-escape)
  SessionReply(const SessionReply&) = delete;
  SessionReply& operator=(const SessionReply&) = delete;

  void Send(HttpResponse response) override;
  void Start(std::string content_type, std::string ping) override;
  void Write(std::string piece) override;
  void End() override;
  void OnGone(std::function<void()> on_gone) override;
  bool gone() const override { return session_->gone_; }
  void Log(std::string_view key, std::string value) override;
  const std::string& id() const override { return id_; }

 private:
  std::shared_ptr<Session> session_;
  std::string id_, log_;
  bool ended_ = false;
};

}  // namespace nibble::server
