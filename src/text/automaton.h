// SPDX-License-Identifier: Apache-2.0
// Floor 5. A grammar as tables that a matcher walks: states with byte edges, with calls of rules, and with
// ends. From every state that can be reached an end can be reached too, so a text that is accepted so far can
// always be completed.
#pragma once
#include <array>
#include <bitset>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "text/grammar.h"

namespace nibble {

using ByteSet = std::bitset<256>;

// What an automaton must know of the tokens that it will read.
struct TokenShape {
  ByteSet bytes;    // that are tokens by themselves
  int longest = 1;  // bytes of a token
};

// Rows of unequal length in one array.
template <class T>
struct Rows {
  std::vector<uint32_t> begin = {0};
  std::vector<T> all;
  void EndRow() { begin.push_back(static_cast<uint32_t>(all.size())); }
  std::span<const T> operator[](int32_t row) const {
    const auto r = static_cast<size_t>(row);
    return std::span(all).subspan(begin[r], begin[r + 1] - begin[r]);
  }
};

struct Automaton {
  struct Edge {
    uint8_t lo, hi;
    int32_t to;
  };
  // A rule whose text comes next, and the state behind it.
  struct Call {
    int32_t rule, back;
  };
  // States without edges and calls that mark the bottom of a stack of calls: the text is complete, or a part
  // of the grammar that is looked at by itself has ended.
  static constexpr int32_t kAccept = 0, kEscape = 1;

  Rows<Edge> edges;           // by state
  Rows<Call> calls;           // by state
  std::vector<uint8_t> ends;  // by state: its rule may end here
  std::vector<uint8_t> tail;  // by state: its rule can do nothing but end here
  // By state: one that no token tells apart from it, among the copies that a counted repetition became.
  std::vector<int32_t> twin;

  std::vector<int32_t> start;  // by rule
  std::vector<int32_t> rank;   // by rule: a rule that may begin with a call ranks below the rule it calls
  int root = -1;

  std::array<uint8_t, 256> byte_class{};  // bytes that no state tells apart
  int byte_classes = 0;

  int states() const { return static_cast<int>(ends.size()); }

  // Texts of the grammar with bytes that are no tokens are left out: what remains can always be spelled.
  // kInvalidArgument with the reason when nothing remains, and for a limit, an undefined rule, left recursion
  // and a rule that no text matches.
  static Result<Automaton> Compile(const Grammar& grammar, const TokenShape& tokens);
};

}  // namespace nibble
