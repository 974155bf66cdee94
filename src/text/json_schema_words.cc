// SPDX-License-Identifier: Apache-2.0
// Floor 5. Tables of JSON Schema.
#include "text/json_schema_words.h"

#include <algorithm>
#include <utility>

#include "base/printable.h"

namespace nibble::schema {
namespace {

constexpr std::string_view kAssertions[] = {"properties", "required",         "additionalProperties",
                                            "items",      "prefixItems",      "minItems",
                                            "maxItems",   "minLength",        "maxLength",
                                            "pattern",    "format",           "minimum",
                                            "maximum",    "exclusiveMinimum", "exclusiveMaximum",
                                            "uniqueItems"};
constexpr std::string_view kApplicators[] = {"type",  "enum", "const", "anyOf",      "oneOf",
                                             "allOf", "$ref", "$defs", "definitions"};
constexpr std::string_view kAnnotations[] = {"title",         "description", "default",   "examples",
                                             "deprecated",    "readOnly",    "writeOnly", "$comment",
                                             "discriminator", "$schema"};
constexpr std::string_view kRefusedWords[] = {"not",
                                              "if",
                                              "then",
                                              "else",
                                              "multipleOf",
                                              "patternProperties",
                                              "propertyNames",
                                              "minProperties",
                                              "maxProperties",
                                              "dependentRequired",
                                              "dependentSchemas",
                                              "dependencies",
                                              "contains",
                                              "minContains",
                                              "maxContains",
                                              "unevaluatedItems",
                                              "unevaluatedProperties",
                                              "additionalItems",
                                              "$id",
                                              "$anchor",
                                              "$dynamicRef",
                                              "$dynamicAnchor",
                                              "$recursiveRef"};

template <size_t kSize>
bool Has(const std::string_view (&list)[kSize], std::string_view word) {
  return std::find(std::begin(list), std::end(list), word) != std::end(list);
}

}  // namespace

Result<unsigned> TypeNamed(JsonRef name) {
  NIBBLE_ASSIGN(const std::string_view text, name.String());
  constexpr std::pair<std::string_view, unsigned> kNames[] = {
      {"null", kNull},     {"boolean", kBoolean}, {"integer", kInteger}, {"number", kInteger | kFraction},
      {"string", kString}, {"array", kArray},     {"object", kObject}};
  for (const auto& [known, type] : kNames) {
    if (text == known) return type;
  }
  return Error(Code::kInvalidArgument, "{}: there is no type \"{}\"", name.Where(), Printable(text));
}

unsigned TypeOf(JsonRef value) {
  switch (value.type()) {
    case JsonType::kNull:
      return kNull;
    case JsonType::kBool:
      return kBoolean;
    case JsonType::kInt:
    case JsonType::kUint:
      return kInteger;
    case JsonType::kDouble: {
      const double number = *value.Number();
      return number == static_cast<double>(static_cast<int64_t>(std::clamp(number, -9e18, 9e18))) ? kInteger
                                                                                                  : kFraction;
    }
    case JsonType::kString:
      return kString;
    case JsonType::kArray:
      return kArray;
    case JsonType::kObject:
      return kObject;
  }
  return 0;
}

// Anchored, with the meaning of RFC 3339, RFC 4122 and RFC 2673. No year 0, no leap second.
std::string FormatPattern(std::string_view format) {
  const std::string year = "([1-9]\\d{3}|0[1-9]\\d{2}|00[1-9]\\d|000[1-9])";
  const std::string leap = "(\\d\\d(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)";
  const std::string date = "(" + year +
                           "-((0[13578]|1[02])-(0[1-9]|[12]\\d|3[01])|(0[469]|11)-(0[1-9]|[12]\\d|30)|" +
                           "02-(0[1-9]|1\\d|2[0-8]))|" + leap + "-02-29)";
  const std::string hour = "([01]\\d|2[0-3])", minute = "[0-5]\\d";
  const std::string time =
      hour + ":" + minute + ":" + minute + "(\\.\\d+)?(Z|[+-]" + hour + ":" + minute + ")";
  const std::string byte = "(25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)";
  const std::string hex = "[0-9a-fA-F]";
  if (format == "date") return "^" + date + "$";
  if (format == "time") return "^" + time + "$";
  if (format == "date-time") return "^" + date + "T" + time + "$";
  if (format == "ipv4") return "^" + byte + "(\\." + byte + "){3}$";
  if (format == "uuid") return "^" + hex + "{8}(-" + hex + "{4}){3}-" + hex + "{12}$";
  return "";
}

Keyword KeywordNamed(std::string_view name) {
  if (Has(kAssertions, name)) return Keyword::kAssertion;
  if (Has(kApplicators, name)) return Keyword::kApplicator;
  if (Has(kAnnotations, name)) return Keyword::kAnnotation;
  return Has(kRefusedWords, name) ? Keyword::kRefused : Keyword::kUnknown;
}

}  // namespace nibble::schema
