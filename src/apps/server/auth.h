// SPDX-License-Identifier: Apache-2.0
// Floor 9. API keys: where a request carries one, and comparing it without telling how much of it was right.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "apps/server/http.h"

namespace nibble::server {

// From "Authorization: Bearer KEY", "X-Api-Key: KEY" (Anthropic's clients) or "Authorization: Basic ..." with
// the key as password (browsers). "" without one.
std::string GivenKey(const HttpRequest& head);

// Time depends on the lengths alone.
bool KeyMatches(const std::vector<std::string>& keys, std::string_view given);

}  // namespace nibble::server
