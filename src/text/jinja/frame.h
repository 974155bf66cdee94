// SPDX-License-Identifier: Apache-2.0
// Floor 5. What lives while a template runs: the variables of its scopes, macros, loops.
#pragma once
#include <vector>

#include "text/jinja/ast.h"
#include "text/jinja/value.h"

namespace nibble::jinja {

// The variables of one scope. A name in the tree says how many frames up and which slot.
struct Frame {
  Frame(const Scope& s, Frame* up) : scope(&s), parent(up), slots(s.slots.size()) {}
  const Scope* scope;
  Frame* parent;
  Values slots;
};

struct Macro {
  const Node* node;  // kMacro or kCallBlock
  Frame* frame;      // where it was defined
};

// A loop that runs. With a condition (`for x in y if c`) the items are looked at as late as Jinja looks at
// them, since the condition may see what the body has set.
struct LoopState {
  const Node* node;
  Frame* condition = nullptr;  // where the condition is evaluated, while the loop runs
  Values items;
  size_t next = 0;  // of items
  int64_t index0 = -1;
  int64_t length = -1;  // -1: not asked for yet
  bool filtered = false;
  Value before, current, after;  // missing where there is none
  Value changed;                 // what loop.changed was called with last
};

}  // namespace nibble::jinja
