// SPDX-License-Identifier: Apache-2.0
#include "apps/server/api_error.h"

#include "apps/server/log.h"

namespace nibble::server {
namespace {

constexpr const char* kRetrySeconds = "1";

const char* TypeName(int status, Dialect dialect) {
  const bool openai = dialect == Dialect::kOpenAi;
  switch (status) {
    case 401:
      return "authentication_error";
    case 404:
      return "not_found_error";
    case 413:
      return openai ? "invalid_request_error" : "request_too_large";
    case 429:
      return "rate_limit_error";
    case 503:
      return openai ? "unavailable_error" : "overloaded_error";
    default:
      if (status < 500) return "invalid_request_error";
      return openai ? "server_error" : "api_error";
  }
}

const char* CodeName(int status) {
  switch (status) {
    case 401:
      return "invalid_api_key";
    case 404:
      return "not_found";
    case 405:
      return "method_not_allowed";
    case 408:
      return "timeout";
    case 413:
      return "request_too_large";
    case 415:
      return "unsupported_media_type";
    case 429:
      return "queue_full";
    case 503:
      return "unavailable";
    default:
      return status < 500 ? "invalid_value" : "internal_error";
  }
}

// "messages[0].role" of "messages[0].role: wanted a string, found 3"; "" where the message begins otherwise.
std::string_view FieldOf(std::string_view message) {
  const size_t end = message.find(": ");
  if (end == message.npos) return "";
  for (const char c : message.substr(0, end)) {
    const bool in_path =
        (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '.' || c == '[' || c == ']';
    if (!in_path) return "";
  }
  return message.substr(0, end);
}

}  // namespace

int HttpStatus(Code code) {
  switch (code) {
    case Code::kOk:
      return 200;
    case Code::kInvalidArgument:
    case Code::kUnsupported:
    case Code::kCorrupt:
    case Code::kNotFound:  // a field that must be there; routes and models have their own 404
      return 400;
    case Code::kBusy:
      return 429;
    case Code::kUnavailable:
    case Code::kOutOfMemory:
      return 503;
    default:
      return 500;
  }
}

std::string ErrorBody(int http_status, std::string_view message, Dialect dialect) {
  if (message.starts_with(kBodySource) && message.substr(kBodySource.size()).starts_with(": "))
    message.remove_prefix(kBodySource.size() + 2);
  const char* type = TypeName(http_status, dialect);
  if (dialect == Dialect::kAnthropic)
    return fmt::format(R"({{"type":"error","error":{{"type":"{}","message":{}}}}})", type, Quoted(message));
  const std::string_view field = FieldOf(message);
  return fmt::format(R"({{"error":{{"message":{},"type":"{}","param":{},"code":"{}"}}}})", Quoted(message),
                     type, field.empty() ? "null" : Quoted(field), CodeName(http_status));
}

HttpResponse ErrorResponse(int http_status, std::string_view message, Dialect dialect) {
  HttpResponse response{.status = http_status, .body = ErrorBody(http_status, message, dialect)};
  if (http_status == 429 || http_status == 503) response.headers.emplace_back("Retry-After", kRetrySeconds);
  return response;
}

HttpResponse ErrorResponse(const Status& status, Dialect dialect) {
  return ErrorResponse(HttpStatus(status.code()), status.message(), dialect);
}

}  // namespace nibble::server
