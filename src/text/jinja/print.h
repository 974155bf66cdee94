// SPDX-License-Identifier: Apache-2.0
// Floor 5. Values as text: Python's str() and repr(), and json.dumps().
#pragma once
#include <optional>
#include <string>

#include "text/jinja/run.h"

namespace nibble::jinja {

std::string FloatText(double d);  // repr(): the shortest digits that read back the same

// Fail where Python would print an address or where the text grows too long.
std::string Str(Run& run, const Value& v);
std::string Repr(Run& run, const Value& v);

struct JsonStyle {
  bool ascii = false, sort_keys = false;
  std::optional<std::string> indent;  // one level of it; nothing: all on one line
  std::string between = ", ", after_key = ": ";
};
std::string ToJson(Run& run, const Value& v, const JsonStyle& style);

}  // namespace nibble::jinja
