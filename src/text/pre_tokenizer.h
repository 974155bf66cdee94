// SPDX-License-Identifier: Apache-2.0
// Floor 5. The pre_tokenizer section of tokenizer.json: cuts text into pieces that BPE never joins.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "text/regex.h"

namespace nibble {

// Text and the pieces it is cut into, in order, none of them empty.
struct PieceList {
  std::string text;
  std::vector<Span> pieces;
  // Whether text begins with the first character of the user's input: Metaspace "first" asks.
  bool at_start = true;
};

class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  virtual Status Apply(PieceList* list) const = 0;
};

Result<std::unique_ptr<PreTokenizer>> LoadPreTokenizer(JsonRef section);

}  // namespace nibble
