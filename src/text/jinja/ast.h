// SPDX-License-Identifier: Apache-2.0
// Floor 5. The syntax tree of a template.
#pragma once
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "text/jinja/value.h"

namespace nibble::jinja {

enum class NodeKind : uint8_t {
  // Expressions.
  kConst,    // value
  kName,     // name, hops, slot
  kTuple,    // items
  kList,     // items
  kDict,     // items: key, value, key, value ...
  kGetAttr,  // left.name
  kGetItem,  // left[right]
  kSlice,    // items: start, stop, step; nullptr where absent
  kCall,     // left(arguments)
  kFilter,   // left|name(arguments); left is nullptr in a block
  kTest,     // left is name(arguments)
  kNot,
  kNegate,
  kPlus,
  kAnd,
  kOr,
  kBinary,        // left op right
  kConcat,        // items
  kCompare,       // left, then items with ops
  kConditional,   // left if right else other (nullptr where absent)
  kNamespaceRef,  // name.text, a target: left is the name
  // Statements.
  kText,         // text
  kPrint,        // left
  kIf,           // left, body, otherwise (which may be one kIf)
  kFor,          // left (target), right (iterable), other (condition), body, otherwise; two more scopes
  kSet,          // left = right
  kSetBlock,     // left, right (filters or nullptr), body
  kMacro,        // left (name), items (parameters), defaults, body
  kCallBlock,    // left (the call), items, defaults, body
  kFilterBlock,  // left (filters), body
  kWith,         // items (targets), defaults (values), body
  kGeneration,   // body
  kBreak,
  kContinue
};

enum class Operator : uint8_t {
  kAdd,
  kSub,
  kMul,
  kDiv,
  kFloorDiv,
  kMod,
  kPow,
  kEq,
  kNe,
  kLt,
  kLe,
  kGt,
  kGe,
  kIn,
  kNotIn
};

// How a slot gets its first value when its scope is entered (Jinja decides that when it compiles, and
// templates see the difference).
enum class Load : uint8_t { kParameter, kContext, kOuter, kUnset };

struct Slot {
  std::string name;
  Load load;
  int outer_hops = 0, outer_slot = 0;  // kOuter
};

struct Scope {
  std::vector<Slot> slots;
  bool captured = false;  // a macro inside keeps the frame after the scope is left
};

struct Node {
  NodeKind kind;
  Operator op = Operator::kAdd;
  int line = 1;
  int depth = 1;  // of the tree below
  std::string name;
  Value value;
  Node *left = nullptr, *right = nullptr, *other = nullptr;
  std::vector<Node*> items;
  std::vector<Operator> ops;
  std::vector<std::pair<std::string, Node*>> named;  // keyword arguments
  Node *star = nullptr, *star_star = nullptr;        // *args, **kwargs
  std::vector<Node*> body, otherwise, defaults;
  int hops = 0, slot = -1;
  std::unique_ptr<Scope> scope, condition_scope, otherwise_scope;
  int loop_slot = -1;  // of a kFor whose body mentions `loop`
  // Of a macro: the slots of what its body mentions without declaring it; -1 where it does not.
  int caller_slot = -1, kwargs_slot = -1, varargs_slot = -1;
};

// A parsed template. Nodes lie in one list, so that a deep tree needs no deep destructor.
struct Tree {
  std::vector<std::unique_ptr<Node>> nodes;
  std::vector<Node*> body;
  Scope scope;
};

}  // namespace nibble::jinja
