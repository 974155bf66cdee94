// SPDX-License-Identifier: Apache-2.0
// Floor 5. How JSON is written under a constraint: strings, separators, given values, any value.
#pragma once
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "text/grammar.h"

namespace nibble {

class JsonText {
 public:
  explicit JsonText(Grammar* grammar) : g_(*grammar) {}

  Grammar::NodeId Comma();  // and a space, or none
  Grammar::NodeId Colon();
  // One character of `set` in a string, in its one spelling: as it is, or the shortest escape where JSON
  // wants one.
  Grammar::NodeId Char(const CharSet& set);
  // One character of any kind in any spelling, \u escapes and surrogate pairs included.
  Grammar::NodeId AnyChar();
  Grammar::NodeId String(int min_chars, int max_chars);
  // A string whose text is not one of `names`, in the spelling of Char.
  Grammar::NodeId StringOtherThan(const std::vector<std::string>& names);
  Grammar::NodeId Quoted(std::string_view text);  // this string
  Grammar::NodeId Value(JsonRef value);           // this value; REQUIRES: the depth of JsonLimits
  Grammar::NodeId AnyValue();
  Grammar::NodeId AnyOf(std::vector<std::string> texts);  // one of them, common beginnings shared

  static std::string Quote(std::string_view text);

 private:
  struct NameTree;
  Grammar::NodeId Other(const NameTree& tree);
  Grammar::NodeId Shared(std::span<const std::string> sorted, size_t at);

  Grammar& g_;
  int any_value_ = -1;  // rule
};

}  // namespace nibble
