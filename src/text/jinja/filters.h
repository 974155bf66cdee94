// SPDX-License-Identifier: Apache-2.0
// Floor 5. Filters (value|name) and tests (value is name).
#pragma once
#include <string_view>

#include "text/jinja/args.h"

namespace nibble::jinja {

bool IsFilter(std::string_view name);
bool IsTest(std::string_view name);

// Fail for a name that nobody knows.
Value CallFilter(Run& run, std::string_view name, const Value& input, const Args& args);
bool CallTest(Run& run, std::string_view name, const Value& input, const Args& args);

}  // namespace nibble::jinja
