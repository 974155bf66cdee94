// SPDX-License-Identifier: Apache-2.0
// Floor 5. JSON Schema as a grammar: the texts of all valid instances, in the spelling and order that
// docs/formats/grammar.md describes. A keyword that is not handled exactly is refused, with its path.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/grammar.h"

namespace nibble {

struct JsonSchemaGrammar {
  Grammar grammar;
  std::vector<std::string> notes;  // where the grammar is wider than the schema
};

// kInvalidArgument, kCorrupt or kUnsupported name the path in the schema and the reason.
Result<JsonSchemaGrammar> CompileJsonSchema(std::string_view schema, const GrammarLimits& limits = {});

}  // namespace nibble
