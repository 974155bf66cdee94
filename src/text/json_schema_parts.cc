// SPDX-License-Identifier: Apache-2.0
// Floor 5. References and keywords of JSON Schema.
#include "text/json_schema_parts.h"

#include <algorithm>
#include <string>

#include "base/printable.h"
#include "text/json_schema_words.h"

namespace nibble {
namespace {

constexpr size_t kMaxParts = 256;  // schemas that one value must satisfy together

}  // namespace

Status SchemaReader::CheckKeywords(JsonRef at) {
  if (!checked_.insert(at.id()).second) return {};
  for (size_t i = 0; i < at.size(); ++i) {
    const std::string_view key = at.KeyAt(i);
    const schema::Keyword kind = schema::KeywordNamed(key);
    if (key == "$id" && at.id() == root_.id()) continue;
    if (kind != schema::Keyword::kRefused && kind != schema::Keyword::kUnknown) continue;
    return Error(Code::kUnsupported, "{}: {}", at[i].Where(),
                 kind == schema::Keyword::kRefused ? "this keyword is not supported" : "unknown keyword");
  }
  return {};
}

Result<JsonRef> SchemaReader::Resolve(JsonRef ref) const {
  NIBBLE_ASSIGN(const std::string_view target, ref.String());
  const auto refuse = [&](std::string_view why) {
    return Error(Code::kInvalidArgument, "{}: \"{}\" {}", ref.Where(), Printable(target), why);
  };
  if (target != "#" && target.substr(0, 2) != "#/") {
    return refuse("does not point into this schema; only # and #/... are followed");
  }
  if (target.find('%') != std::string_view::npos)
    return refuse("has a percent escape, which is not supported");
  JsonRef at = root_;
  for (size_t pos = 1; pos < target.size();) {
    const size_t end = std::min(target.find('/', pos + 1), target.size());
    std::string key;
    for (size_t i = pos + 1; i < end; ++i) {
      const bool escaped = target[i] == '~' && i + 1 < end && (target[i + 1] == '0' || target[i + 1] == '1');
      key.push_back(!escaped ? target[i] : target[++i] == '0' ? '~' : '/');
    }
    std::optional<JsonRef> next = at.Find(key);
    const bool index = at.is_array() && !key.empty() && key.size() < 7 &&
                       key.find_first_not_of("0123456789") == std::string::npos;
    if (index && static_cast<size_t>(std::stoi(key)) < at.size())
      next = at[static_cast<size_t>(std::stoi(key))];
    if (!next) return refuse("points to nothing");
    at = *next;
    pos = end;
  }
  return at;
}

Status SchemaReader::ExpandRef(SchemaParts* parts, size_t i) const {
  const auto ref = (*parts)[i].schema.Find("$ref");
  if (!ref || ((*parts)[i].done & SchemaPart::kRef) != 0) return {};
  NIBBLE_ASSIGN(const JsonRef target, Resolve(*ref));
  for (int at = static_cast<int>(i); at >= 0; at = (*parts)[static_cast<size_t>(at)].from) {
    if ((*parts)[static_cast<size_t>(at)].schema.id() == target.id()) {
      return Error(Code::kInvalidArgument, "{}: refers to itself", ref->Where());
    }
  }
  (*parts)[i].done |= SchemaPart::kRef;
  parts->push_back({target, 0, static_cast<int>(i)});
  return {};
}

Status SchemaReader::ExpandAllOf(SchemaParts* parts, size_t i) {
  const auto all = (*parts)[i].schema.Find("allOf");
  if (!all || ((*parts)[i].done & SchemaPart::kAllOf) != 0) return {};
  if (!all->is_array() || all->size() == 0) {
    return Error(Code::kInvalidArgument, "{}: wanted an array of schemas", all->Where());
  }
  (*parts)[i].done |= SchemaPart::kAllOf;
  for (size_t k = 0; k < all->size() && parts->size() <= kMaxParts; ++k) {
    parts->push_back({(*all)[k], 0, static_cast<int>(i)});
  }
  return {};
}

Result<std::optional<SchemaParts>> SchemaReader::Expand(SchemaParts parts) {
  for (SchemaPart& part : parts) part.from = -1;
  for (size_t i = 0; i < parts.size(); ++i) {
    if (parts.size() > kMaxParts) {
      return Error(Code::kInvalidArgument, "{}: more than {} schemas apply to one value",
                   parts[0].schema.Where(), kMaxParts);
    }
    const JsonRef schema = parts[i].schema;
    if (schema.type() == JsonType::kBool) {
      if (!*schema.Bool()) return std::optional<SchemaParts>();
      continue;
    }
    if (!schema.is_object()) {
      return Error(Code::kInvalidArgument, "{}: wanted a schema: an object, true or false", schema.Where());
    }
    NIBBLE_RETURN_IF_ERROR(CheckKeywords(schema));
    NIBBLE_RETURN_IF_ERROR(ExpandRef(&parts, i));
    NIBBLE_RETURN_IF_ERROR(ExpandAllOf(&parts, i));
  }
  SchemaParts kept;
  for (const SchemaPart& part : parts) {
    if (part.schema.is_object() && std::find(kept.begin(), kept.end(), part) == kept.end()) {
      kept.push_back(part);
    }
  }
  return std::optional(std::move(kept));
}

}  // namespace nibble
