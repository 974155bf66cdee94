// SPDX-License-Identifier: Apache-2.0
// Routing and what every route shares.
#include "apps/server/app.h"

#include <algorithm>
#include <random>

#include "apps/server/auth.h"
#include "apps/server/log.h"

namespace nibble::server {
namespace {

constexpr std::string_view kModelPrefix = "/v1/models/";

bool IsJson(std::string_view content_type) {
  const std::string_view type = content_type.substr(0, content_type.find(';'));
  constexpr std::string_view kJson = "application/json";
  return type.size() >= kJson.size() &&
         std::equal(kJson.begin(), kJson.end(), type.begin(),
                    [](char a, char b) { return a == (b | 0x20) || a == b; }) &&
         type.find_first_not_of(' ', kJson.size()) == type.npos;
}

}  // namespace

std::string NewAnswerId(std::string_view prefix) {
  thread_local std::mt19937_64 random{std::random_device{}()};
  return fmt::format("{}{:016x}", prefix, random());
}

App::App(AppOptions options, const ServedModels* models)
    : options_(std::move(options)),
      models_(models),
      queue_(options_.threads, static_cast<size_t>(options_.limits.max_parsing)) {}

const std::vector<App::Route>& App::Routes() {
  static const std::vector<Route> routes{
      {"GET", "/health", &App::ReadyRoute, Where::kInline, true},
      {"GET", "/health/live", &App::Live, Where::kInline, true},
      {"GET", "/health/ready", &App::ReadyRoute, Where::kInline, true},
      {"GET", "/", &App::Page, Where::kInline},
      {"GET", "/version", &App::Version, Where::kInline},
      {"GET", "/metrics", &App::MetricsRoute, Where::kInline},
      {"GET", "/v1/models", &App::Models, Where::kInline},
      {"GET", "/tokenizer_info", &App::TokenizerInfo, Where::kInline},
      {"POST", "/v1/completions", &App::Completions, Where::kQueue},
      {"POST", "/v1/chat/completions", &App::Chat, Where::kQueue},
      {"POST", "/v1/embeddings", &App::Embeddings, Where::kQueue},
      {"POST", "/v1/responses", &App::Responses, Where::kQueue},
      {"POST", "/v1/messages", &App::Messages, Where::kQueue, false, Dialect::kAnthropic},
      {"POST", "/v1/messages/count_tokens", &App::CountTokens, Where::kQueue, false, Dialect::kAnthropic},
      {"POST", "/tokenize", &App::Tokenize, Where::kQueue},
      {"POST", "/detokenize", &App::Detokenize, Where::kQueue},
      {"POST", "/apply-template", &App::ApplyTemplate, Where::kQueue},
  };
  return routes;
}

const App::Route* App::Find(std::string_view method, std::string_view path) {
  if (method == "HEAD") method = "GET";
  if (path.starts_with(kModelPrefix)) path = kModelPrefix.substr(0, kModelPrefix.size() - 1);
  for (const Route& route : Routes())
    if (route.path == path && (method.empty() || route.method == method)) return &route;
  return nullptr;
}

std::string App::Allowed(std::string_view path) {
  const Route* route = Find("", path);
  return route->method == "GET" ? "GET, HEAD, OPTIONS" : "POST, OPTIONS";
}

std::optional<HttpResponse> App::Refuse(const HttpRequest& head) {
  const Route* any = Find("", head.path);
  const bool open = any && any->open;
  // A preflight carries no key: browsers do not send one.
  if (head.method != "OPTIONS" && !open && !HasKey(head)) {
    HttpResponse response =
        ErrorResponse(401, "no API key, or a wrong one", any ? any->dialect : Dialect::kOpenAi);
    response.headers.emplace_back("WWW-Authenticate", head.path == "/" ? "Basic realm=\"nibble\"" : "Bearer");
    return response;
  }
  if (!any) return ErrorResponse(404, fmt::format("{} is not a route", Quoted(head.path.substr(0, 100))));
  const Route* route = Find(head.method, head.path);
  if (!route && head.method != "OPTIONS") {
    HttpResponse response =
        ErrorResponse(405, fmt::format("{} wants {}", any->path, Allowed(head.path)), any->dialect);
    response.headers.emplace_back("Allow", Allowed(head.path));
    return response;
  }
  return route && route->method == "POST" ? RefusePost(head, *route) : std::nullopt;
}

std::optional<HttpResponse> App::RefusePost(const HttpRequest& head, const Route& route) const {
  if (!head.content_encoding.empty() && head.content_encoding != "identity")
    return ErrorResponse(415, "bodies are not unpacked here: send no Content-Encoding", route.dialect);
  // Also a fence: a page of another origin may post other types without asking first.
  if (!IsJson(head.content_type))
    return ErrorResponse(415, "wanted Content-Type: application/json", route.dialect);
  if (draining_) return ErrorResponse(503, "the server is going down", route.dialect);
  return std::nullopt;
}

Headers App::CommonHeaders(const HttpRequest& head) {
  Headers headers;
  if (options_.cors_origins.empty()) return headers;
  headers.emplace_back("Vary", "Origin");
  if (!head.origin.empty() && MayCross(head.origin)) {
    headers.emplace_back("Access-Control-Allow-Origin", head.origin);
    headers.emplace_back("Access-Control-Expose-Headers", "X-Request-Id, Retry-After");
  }
  return headers;
}

bool App::MayCross(const std::string& origin) const {
  const auto& allowed = options_.cors_origins;
  const bool plain = std::all_of(origin.begin(), origin.end(), [](char c) { return c > ' ' && c < 127; });
  return plain && std::any_of(allowed.begin(), allowed.end(),
                              [&](const std::string& one) { return one == "*" || one == origin; });
}

bool App::HasKey(const HttpRequest& head) const {
  return options_.api_keys.empty() || KeyMatches(options_.api_keys, GivenKey(head));
}

void App::Handle(HttpRequest request, ReplyPtr reply) {
  if (request.method == "OPTIONS") {
    Headers headers{{"Allow", Allowed(request.path)}};
    if (!request.origin.empty() && MayCross(request.origin)) {
      headers.emplace_back("Access-Control-Allow-Methods", Allowed(request.path));
      headers.emplace_back("Access-Control-Allow-Headers",
                           "Authorization, Content-Type, X-Api-Key, X-Request-Id");
      headers.emplace_back("Access-Control-Max-Age", "600");
    }
    return reply->Send({.status = 204, .content_type = "", .headers = std::move(headers)});
  }
  const Route* route = Find(request.method, request.path);
  if (route->where == Where::kInline) return (this->*route->handler)(request, reply);
  const auto shared = std::make_shared<const HttpRequest>(std::move(request));
  const bool posted = queue_.TryPost([this, route, shared, reply] {
    if (!reply->gone()) (this->*route->handler)(*shared, reply);
  });
  if (!posted) reply->Send(ErrorResponse(429, "too many requests wait to be read", route->dialect));
}

void App::Answer(const Status& status, const ReplyPtr& reply, Dialect dialect) {
  if (status.ok()) return;
  const bool no_model = status.code() == Code::kNotFound && status.message().starts_with("model: ");
  reply->Send(no_model ? ErrorResponse(404, status.message(), dialect) : ErrorResponse(status, dialect));
}

}  // namespace nibble::server
