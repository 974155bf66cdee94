// SPDX-License-Identifier: Apache-2.0
// Floor 5. The vocabulary of JSON Schema: types, formats, kinds of keywords.
#pragma once
#include <string>
#include <string_view>

#include "base/json.h"
#include "base/result.h"

namespace nibble::schema {

enum Types : unsigned {
  kNull = 1,
  kBoolean = 2,
  kInteger = 4,
  kFraction = 8,  // numbers that are no integers
  kString = 16,
  kArray = 32,
  kObject = 64,
  kAllTypes = 127
};
Result<unsigned> TypeNamed(JsonRef name);  // "number" is kInteger | kFraction
unsigned TypeOf(JsonRef value);

// An anchored pattern; "" for a format that is not supported.
std::string FormatPattern(std::string_view format);

enum class Keyword : uint8_t { kAssertion, kApplicator, kAnnotation, kRefused, kUnknown };
Keyword KeywordNamed(std::string_view name);

}  // namespace nibble::schema
