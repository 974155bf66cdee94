// SPDX-License-Identifier: Apache-2.0
// Floor 5. What applies to one value: schemas that it must all satisfy, gathered over $ref and allOf.
#pragma once
#include <optional>
#include <set>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace nibble {

struct SchemaPart {
  JsonRef schema;
  uint8_t done = 0;  // applicators that other parts stand for already
  int from = -1;     // the part whose $ref or allOf this is
  enum : uint8_t { kRef = 1, kAllOf = 2, kAnyOf = 4, kOneOf = 8 };
  bool operator==(const SchemaPart& other) const {
    return schema.id() == other.schema.id() && done == other.done;
  }
};
using SchemaParts = std::vector<SchemaPart>;

class SchemaReader {
 public:
  explicit SchemaReader(JsonRef root) : root_(root) {}

  // Expands $ref and allOf and drops `true`. nullopt: nothing satisfies all of them, as one is `false`.
  Result<std::optional<SchemaParts>> Expand(SchemaParts parts);

 private:
  Status CheckKeywords(JsonRef at);
  Result<JsonRef> Resolve(JsonRef ref) const;
  Status ExpandRef(SchemaParts* parts, size_t i) const;
  static Status ExpandAllOf(SchemaParts* parts, size_t i);

  JsonRef root_;
  std::set<const void*> checked_;
};

}  // namespace nibble
