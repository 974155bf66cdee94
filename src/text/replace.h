// SPDX-License-Identifier: Apache-2.0
// Floor 5. "Replace": a normalizer and a decoder, with the same fields.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "text/regex.h"

namespace nibble {

// {"String": "..."} or {"Regex": "..."} under `key`.
Result<Regex> LoadPattern(JsonRef section, std::string_view key);

struct Replacement {
  Regex pattern;
  std::string content;

  static Result<Replacement> Load(JsonRef section);
  // Replaces every match. *matches holds them (in the old text) afterwards.
  Status Apply(std::string* text, std::vector<Span>* matches) const;
};

}  // namespace nibble
