// SPDX-License-Identifier: Apache-2.0
// Routes that say how the server is: health, models, metrics, version and the page.
#include "apps/server/app.h"
#include "apps/server/log.h"
#include "apps/server/page.h"

namespace nibble::server {
namespace {

constexpr std::string_view kModels = "/v1/models";

}  // namespace

void App::Live(const HttpRequest&, const ReplyPtr& reply) { reply->Send({.body = R"({"status":"ok"})"}); }

Status App::Ready() const {
  if (draining_) return nibble::Error(Code::kUnavailable, "the server is going down");
  return model_->engine().Health();
}

void App::ReadyRoute(const HttpRequest&, const ReplyPtr& reply) {
  const Status ready = Ready();
  if (ready.ok()) return reply->Send({.body = R"({"status":"ok"})"});
  reply->Send(ErrorResponse(503, ready.message()));
}

void App::Version(const HttpRequest&, const ReplyPtr& reply) {
  reply->Send({.body = R"({"version":")" NIBBLE_VERSION R"("})"});
}

std::string App::ModelJson() const {
  const ServingEngine& engine = model_->engine();
  return fmt::format(
      R"({{"id":{},"object":"model","created":{},"owned_by":"nibble","max_model_len":{},"recipe":{},"kv_bits":{:.3f},"weights":{},"chat":{},"capabilities":["completion"{},"embedding"]}})",
      Quoted(model_->name()), model_->created(), model_->context(), Quoted(engine.options().engine.recipe),
      engine.kv_sizes().bits_per_value,
      Quoted(engine.config().weights.format.empty() ? "float" : engine.config().weights.format),
      model_->has_chat(), model_->has_chat() ? R"(,"chat")" : "");
}

void App::Models(const HttpRequest& request, const ReplyPtr& reply) {
  if (request.path == kModels)
    return reply->Send({.body = fmt::format(R"({{"object":"list","data":[{}]}})", ModelJson())});
  const std::string name = request.path.substr(kModels.size() + 1);
  const Status known =
      name.empty() ? nibble::Error(Code::kNotFound, "model: no name") : model_->CheckName(name);
  if (!known.ok()) return Answer(known, reply);
  reply->Send({.body = ModelJson()});
}

void App::MetricsRoute(const HttpRequest&, const ReplyPtr& reply) {
  const MetricsInfo info{.model = model_->name(),
                         .recipe = model_->engine().options().engine.recipe,
                         .device = options_.device,
                         .version = NIBBLE_VERSION,
                         .load_seconds = options_.load_seconds,
                         .connections = connections_()};
  reply->Send({.body = MetricsText(metrics_, model_->engine().Stats(), info),
               .content_type = "text/plain; version=0.0.4; charset=utf-8"});
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
