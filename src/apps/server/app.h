// SPDX-License-Identifier: Apache-2.0
// Floor 9. The routes of the server: who may ask what, and which handler answers.
#pragma once
#include <algorithm>
#include <array>
#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "apps/server/api_error.h"
#include "apps/server/call.h"
#include "apps/server/http.h"
#include "apps/server/limits.h"
#include "apps/server/metrics.h"
#include "apps/server/served_model.h"
#include "apps/server/work_queue.h"

namespace nibble::server {

struct AppOptions {
  Limits limits{};
  std::vector<std::string> api_keys{};      // none: everybody may
  std::vector<std::string> cors_origins{};  // pages that may ask from a browser; "*": all
  int threads = 2;
  std::string device = "cpu";  // for /metrics
  double load_seconds = 0;
};

class App final : public HttpService {
 public:
  App(AppOptions options, const ServedModels* models);

  std::optional<HttpResponse> Refuse(const HttpRequest& head) override;
  void Handle(HttpRequest request, std::shared_ptr<Reply> reply) override;
  Headers CommonHeaders(const HttpRequest& head) override;
  HttpResponse Error(int status, std::string_view message) override { return ErrorResponse(status, message); }
  void Answered(int status) override { ++answers_[static_cast<size_t>(std::clamp(status / 100, 0, 5))]; }

  void BeginDrain() { draining_ = true; }  // not ready from now on, and no new work
  void SetConnections(std::function<int()> connections) { connections_ = std::move(connections); }

 private:
  using ReplyPtr = std::shared_ptr<Reply>;
  using Handler = void (App::*)(const HttpRequest&, const ReplyPtr&);
  // kInline handlers answer on the I/O thread, at once whatever else waits.
  enum class Where : uint8_t { kInline, kQueue };
  struct Route {
    std::string_view method, path;
    Handler handler;
    Where where;
    bool open = false;  // needs no key
    Dialect dialect = Dialect::kOpenAi;
  };
  static const std::vector<Route>& Routes();
  static const Route* Find(std::string_view method, std::string_view path);
  static std::string Allowed(std::string_view path);
  std::optional<HttpResponse> RefusePost(const HttpRequest& head, const Route& route) const;

  bool HasKey(const HttpRequest& head) const;
  Status Ready() const;
  bool MayCross(const std::string& origin) const;

  // A handler whose work returns a Status: an error is answered.
  void Answer(const Status& status, const ReplyPtr& reply, Dialect dialect = Dialect::kOpenAi);

  // app_info.cc
  void Live(const HttpRequest&, const ReplyPtr&);
  void ReadyRoute(const HttpRequest&, const ReplyPtr&);
  void Version(const HttpRequest&, const ReplyPtr&);
  void Models(const HttpRequest&, const ReplyPtr&);
  void MetricsRoute(const HttpRequest&, const ReplyPtr&);
  void Page(const HttpRequest&, const ReplyPtr&);
  // app_text.cc
  void Tokenize(const HttpRequest&, const ReplyPtr&);
  void Detokenize(const HttpRequest&, const ReplyPtr&);
  void ApplyTemplate(const HttpRequest&, const ReplyPtr&);
  void TokenizerInfo(const HttpRequest&, const ReplyPtr&);
  // app_openai.cc
  void Completions(const HttpRequest&, const ReplyPtr&);
  void Chat(const HttpRequest&, const ReplyPtr&);
  void Embeddings(const HttpRequest&, const ReplyPtr&);
  Status StartCompletions(const HttpRequest&, const ReplyPtr&);
  Status StartChat(const HttpRequest&, const ReplyPtr&);
  Status StartEmbeddings(const HttpRequest&, const ReplyPtr&);
  // app_messages.cc
  void Messages(const HttpRequest&, const ReplyPtr&);
  void CountTokens(const HttpRequest&, const ReplyPtr&);
  void Responses(const HttpRequest&, const ReplyPtr&);
  Status StartMessages(const HttpRequest&, const ReplyPtr&);
  Status AnswerTokenCount(const HttpRequest&, const ReplyPtr&);
  Status StartResponses(const HttpRequest&, const ReplyPtr&);
  // What a chat puts into the plan, and how long its prompt is.
  static Status PlanChat(const ServedModel& model, const ChatRequest& request, CallPlan* plan,
                         int64_t* prompt_tokens);
  static ToolSyntax SyntaxFor(const ServedModel& model, const ChatRequest& request);

  // Puts n or best_of requests a prompt into the plan; max_tokens is what is left of the context where the
  // call does not say and `fill`.
  static Status AddPrompt(const ServedModel& model, const GenerateFields& fields, std::vector<int32_t> prompt,
                          std::shared_ptr<Constraint> constraint, bool fill, CallPlan* plan);
  void StartCall(const ServedModel& model, const GenerateFields& fields, CallPlan plan,
                 const ReplyPtr& reply);

  AppOptions options_;
  const ServedModels* models_;
  std::array<std::atomic<uint64_t>, 6> answers_{};  // by the first digit of the status
  std::atomic<bool> draining_{false};
  std::function<int()> connections_ = [] { return 0; };
  WorkQueue queue_;  // last: its threads use the rest
};

// Answers of ours get an id like "chatcmpl-1f...".
std::string NewAnswerId(std::string_view prefix);

}  // namespace nibble::server
