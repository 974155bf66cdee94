// SPDX-License-Identifier: Apache-2.0
#include "apps/server/json_text.h"

#include "apps/server/log.h"

namespace nibble::server {
namespace {

// REQUIRES: nested no deeper than the reader allows.
void Append(JsonRef value, std::string* out) {
  switch (value.type()) {
    case JsonType::kNull:
      out->append("null");
      return;
    case JsonType::kBool:
      out->append(*value.Bool() ? "true" : "false");
      return;
    case JsonType::kInt:
      out->append(fmt::format("{}", *value.Int(INT64_MIN, INT64_MAX)));
      return;
    case JsonType::kUint:
      out->append(fmt::format("{}", *value.Uint()));
      return;
    case JsonType::kDouble:
      out->append(fmt::format("{}", *value.Number()));
      return;
    case JsonType::kString:
      out->append(Quoted(*value.String()));
      return;
    case JsonType::kArray:
    case JsonType::kObject:
      break;
  }
  out->push_back(value.is_array() ? '[' : '{');
  for (size_t i = 0; i < value.size(); ++i) {
    if (i > 0) out->push_back(',');
    if (value.is_object()) out->append(Quoted(value.KeyAt(i)) + ":");
    Append(value[i], out);
  }
  out->push_back(value.is_array() ? ']' : '}');
}

}  // namespace

std::string ToText(JsonRef value) {
  std::string out;
  Append(value, &out);
  return out;
}

}  // namespace nibble::server
