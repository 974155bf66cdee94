// SPDX-License-Identifier: Apache-2.0
// Routes that say how the server is: health, models, metrics, version and the page.
#include <cctype>

#include "apps/server/app.h"
#include "apps/server/log.h"
#include "apps/server/page.h"

namespace nibble::server {
namespace {

constexpr std::string_view kModels = "/v1/models";

// A name in a path, where clients write "novelist:qserve" as "novelist%3Aqserve".
std::string Unescaped(std::string_view path) {
  const auto digit = [](char c) { return c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10; };
  std::string out;
  for (size_t i = 0; i < path.size(); ++i) {
    const bool code = path[i] == '%' && i + 2 < path.size() &&
                      std::isxdigit(static_cast<unsigned char>(path[i + 1])) &&
                      std::isxdigit(static_cast<unsigned char>(path[i + 2]));
    out += code ? static_cast<char>(digit(path[i + 1]) * 16 + digit(path[i + 2])) : path[i];
    if (code) i += 2;
  }
  return out;
}

std::string ModelJson(const ServedModel& model) {
  const ServingEngine& engine = model.engine();
  return fmt::format(
      R"({{"id":{},"object":"model","created":{},"owned_by":"nibble","max_model_len":{},"recipe":{},"kv_bits":{:.3f},"weights":{},"chat":{},"capabilities":["completion"{},"embedding"]}})",
      Quoted(model.name()), model.created(), model.context(), Quoted(engine.options().engine.recipe),
      engine.kv_sizes().bits_per_value,
      Quoted(engine.config().weights.format.empty() ? "float" : engine.config().weights.format),
      model.has_chat(), model.has_chat() ? R"(,"chat")" : "");
}

}  // namespace

void App::Live(const HttpRequest&, const ReplyPtr& reply) { reply->Send({.body = R"({"status":"ok"})"}); }

Status App::Ready() const {
  if (draining_) return nibble::Error(Code::kUnavailable, "the server is going down");
  for (const auto& model : models_->all()) NIBBLE_RETURN_IF_ERROR(model->engine().Health());
  return {};
}

void App::ReadyRoute(const HttpRequest&, const ReplyPtr& reply) {
  const Status ready = Ready();
  if (ready.ok()) return reply->Send({.body = R"({"status":"ok"})"});
  reply->Send(ErrorResponse(503, ready.message()));
}

void App::Version(const HttpRequest&, const ReplyPtr& reply) {
  reply->Send({.body = R"({"version":")" NIBBLE_VERSION R"("})"});
}

void App::Models(const HttpRequest& request, const ReplyPtr& reply) {
  if (request.path == kModels) {
    std::string list;
    for (const auto& model : models_->all()) list += (list.empty() ? "" : ",") + ModelJson(*model);
    return reply->Send({.body = fmt::format(R"({{"object":"list","data":[{}]}})", list)});
  }
  const std::string name =
      Unescaped(std::string_view(request.path).substr(std::min(request.path.size(), kModels.size() + 1)));
  const auto model = name.empty()
                         ? Result<const ServedModel*>(nibble::Error(Code::kNotFound, "model: no name"))
                         : models_->Find(name);
  if (!model.ok()) return Answer(model.status(), reply);
  reply->Send({.body = ModelJson(**model)});
}

void App::MetricsRoute(const HttpRequest&, const ReplyPtr& reply) {
  std::vector<EngineMetrics> engines;
  for (const auto& model : models_->all())
    engines.push_back({.model = model->name(),
                       .recipe = model->engine().options().engine.recipe,
                       .requests = &model->metrics(),
                       .stats = model->engine().Stats()});
  ServerMetrics server{.device = options_.device,
                       .version = NIBBLE_VERSION,
                       .load_seconds = options_.load_seconds,
                       .connections = connections_(),
                       .draining = draining_};
  for (size_t i = 0; i < answers_.size(); ++i) server.answers[i] = answers_[i];
  reply->Send(
      {.body = MetricsText(server, engines), .content_type = "text/plain; version=0.0.4; charset=utf-8"});
}

void App::Page(const HttpRequest&, const ReplyPtr& reply) {
  reply->Send(
      {.body = kPage,
       .content_type = "text/html; charset=utf-8",
       .headers = {{"Content-Security-Policy",
                    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src "
                    "'self'; img-src data:; frame-ancestors 'none'"},
                   {"X-Content-Type-Options", "nosniff"}}});
}

}  // namespace nibble::server
