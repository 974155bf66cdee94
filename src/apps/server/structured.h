// SPDX-License-Identifier: Apache-2.0
// Floor 9. Fields that say what an answer must be, and the constraint that they become.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "text/token_mask.h"

namespace nibble::server {

struct Structured {
  enum class Kind : uint8_t { kNone, kSchema, kRegex, kGrammar, kChoice };
  Kind kind = Kind::kNone;
  std::string field;                   // where it stood, for messages
  std::string text;                    // schema, pattern or GBNF
  std::vector<std::string> choices{};  // of kChoice
};

// Reads response_format, structured_outputs, guided_json, guided_regex, guided_grammar, guided_choice,
// grammar and json_schema. kInvalidArgument when more than one is given.
Result<Structured> ParseStructured(JsonRef body);

// Null without one. kInvalidArgument names the field and why it cannot be compiled within GrammarLimits.
Result<std::shared_ptr<Constraint>> MakeConstraint(const Structured& structured,
                                                   std::shared_ptr<const TokenTrie> trie);

}  // namespace nibble::server
