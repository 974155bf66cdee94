// SPDX-License-Identifier: Apache-2.0
// Floor 9. Errors as the APIs write them: a Status becomes an HTTP status and OpenAI's error object.
#pragma once
#include <string>
#include <string_view>

#include "apps/server/http.h"
#include "base/result.h"

namespace nibble::server {

// What messages about the body of a request begin with; the name of the field follows.
inline constexpr std::string_view kBodySource = "request";

enum class Dialect : unsigned char { kOpenAi, kAnthropic };

int HttpStatus(Code code);

// {"error": {"message", "type", "param", "code"}}, or Anthropic's {"type": "error", "error": {"type",
// "message"}}. `param` is the field that the message begins with, where it does.
std::string ErrorBody(int http_status, std::string_view message, Dialect dialect = Dialect::kOpenAi);

// With Retry-After where another try makes sense.
HttpResponse ErrorResponse(int http_status, std::string_view message, Dialect dialect = Dialect::kOpenAi);
HttpResponse ErrorResponse(const Status& status, Dialect dialect = Dialect::kOpenAi);

}  // namespace nibble::server
