// SPDX-License-Identifier: Apache-2.0
// Floor 5. A context-free grammar over bytes: what GBNF, regular expressions and JSON schemas become. Nodes
// are made bottom up and never change; rules give names to nodes and may refer to each other.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/char_set.h"

namespace nibble {

// What a grammar from outside may cost. One struct for every notation; docs/formats/grammar.md lists it.
struct GrammarLimits {
  size_t max_text_bytes = size_t{256} << 10;  // of a GBNF text or a JSON schema
  size_t max_pattern_bytes = 4096;            // of a regular expression
  int max_depth = 200;                        // groups in groups; a JSON schema has 64
  int max_rules = 10000;
  int max_repeat = 10000;               // m and n of {m,n}, minLength, maxItems, ...
  int max_enum = 10000;                 // values of one enum
  size_t max_nodes = size_t{1} << 20;   // of the grammar
  size_t max_states = size_t{1} << 18;  // of its automaton, repetitions written out
  size_t max_edges = size_t{1} << 19;   // the work that one byte of a text can take
};

class Grammar {
 public:
  using NodeId = int32_t;
  enum class Kind : uint8_t { kNothing, kLiteral, kChars, kSequence, kChoice, kRepeat, kCall };
  static constexpr int kUnbounded = -1;

  explicit Grammar(GrammarLimits limits = {}) : limits_(limits) {}

  // Past a limit these return the node that matches nothing, and limit_passed() says which it was.
  NodeId Nothing();
  NodeId Literal(std::string_view bytes);  // "" matches the empty text
  NodeId Chars(const CharSet& set);        // one character
  NodeId Sequence(std::span<const NodeId> parts);
  NodeId Choice(std::span<const NodeId> parts);
  NodeId Sequence(std::initializer_list<NodeId> parts) {
    return Sequence(std::span(parts.begin(), parts.size()));
  }
  NodeId Choice(std::initializer_list<NodeId> parts) {
    return Choice(std::span(parts.begin(), parts.size()));
  }
  NodeId Repeat(NodeId part, int min, int max);  // max kUnbounded: no limit
  NodeId Optional(NodeId part) { return Repeat(part, 0, 1); }
  NodeId Call(int rule);

  int AddRule(std::string name);       // still without a definition
  void Define(int rule, NodeId body);  // once
  void SetRoot(int rule) { root_ = rule; }

  const Status& limit_passed() const { return overrun_; }  // ok: none
  // kInvalidArgument: a limit was passed, or a rule that something refers to has no definition.
  Status Check() const;

  // What consumers read.
  struct Node {
    Kind kind;
    int32_t a, b,
        c;  // literal: offset, bytes; chars, lists: offset, count; repeat: part, min, max; call: rule
  };
  const Node& node(NodeId id) const { return nodes_[static_cast<size_t>(id)]; }
  std::string_view LiteralOf(const Node& n) const;
  std::span<const ByteRun> RunsOf(const Node& n) const;
  std::span<const NodeId> PartsOf(const Node& n) const;
  size_t nodes() const { return nodes_.size(); }
  int rules() const { return static_cast<int>(rules_.size()); }
  NodeId body(int rule) const { return rules_[static_cast<size_t>(rule)].body; }
  const std::string& name(int rule) const { return rules_[static_cast<size_t>(rule)].name; }
  int root() const { return root_; }
  const GrammarLimits& limits() const { return limits_; }

 private:
  struct Rule {
    std::string name;
    NodeId body = -1;
  };
  NodeId Add(Node node, int depth);
  NodeId AddList(Kind kind, std::span<const NodeId> parts);
  void Overrun(std::string what);

  GrammarLimits limits_;
  std::vector<Node> nodes_;
  std::vector<int> depths_;  // of each node
  std::string text_;         // bytes of literals
  std::vector<ByteRun> runs_;
  std::vector<NodeId> parts_;
  std::vector<Rule> rules_;
  int root_ = -1;
  Status overrun_;  // the first limit that was passed
};

}  // namespace nibble
