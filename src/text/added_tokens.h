// SPDX-License-Identifier: Apache-2.0
// Floor 5. Added tokens: strings that become one id before any other rule sees the text.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "text/regex.h"

namespace nibble {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  std::string match;  // what is looked for: content, or its normalized form
  bool single_word = false, lstrip = false, rstrip = false, normalized = false, special = false;
};

// A part of the text: an added token (index >= 0) or text between them (-1).
struct TextPart {
  Span span;
  int32_t token;
};

// Finds the tokens of one set, leftmost first, longest among those that start there. O(text).
class TokenFinder {
 public:
  // REQUIRES: tokens outlive the finder; `match` of those chosen by `normalized` are not empty and differ.
  TokenFinder(const std::vector<AddedToken>* tokens, bool normalized);

  // Splits `text` into parts that cover it. With `skip_special` special tokens stay text.
  void Split(std::string_view text, bool skip_special, std::vector<TextPart>* parts) const;

 private:
  // Nodes of an Aho-Corasick automaton over the reversed tokens: run over the text from its end, it knows at
  // every place the longest token that starts there.
  struct Node {
    int32_t fail = 0;
    int32_t token = -1;  // the longest token that starts here, index into tokens
  };
  int32_t Step(int32_t node, unsigned char byte) const;
  void Add(int32_t index);
  void LinkFailures();
  void FindStarts(std::string_view text, std::vector<TextPart>* matches) const;

  const std::vector<AddedToken>* tokens_;
  std::vector<Node> nodes_;
  std::unordered_map<uint64_t, int32_t> edges_;  // node << 8 | byte -> node
};

// The added_tokens section: flags, ids, contents, no duplicates. `match` is left for the caller to fill.
Result<std::vector<AddedToken>> LoadAddedTokens(JsonRef section);

}  // namespace nibble
