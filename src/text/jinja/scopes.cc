// SPDX-License-Identifier: Apache-2.0
// Floor 5. For each scope two walks: one declares what its own statements mention (nested scopes are not
// entered), the other gives names their slots and opens the nested scopes. Recursion: a tree is at most
// Limits::chain deep.
#include "text/jinja/scopes.h"

#include <functional>
#include <map>
#include <set>
#include <string>

#include "base/printable.h"
#include "text/jinja/filters.h"

namespace nibble::jinja {
namespace {

constexpr int64_t kMaxCopies =
    10'000'000;  // names copied at branches: each `if` copies those known before it

// The names of a scope, as far as a walk has come. Copies of it walk the branches of an `if`.
struct Names {
  Scope* scope = nullptr;
  const Names* parent = nullptr;
  std::map<std::string, int>* slots = nullptr;  // of all copies together
  std::map<std::string, Slot> known;
  std::set<std::string> stored;
};

struct Place {
  int hops = 0, slot = -1;
};

class Resolver {
 public:
  explicit Resolver(std::string_view source) : source_(source) {}

  Status Run(Tree* tree) {
    std::map<std::string, int> slots;
    Names names{.scope = &tree->scope, .slots = &slots};
    Declare(tree->body, &names);
    Finish(&names);
    BindAll(tree->body, names);
    return status_;
  }

 private:
  void Fail(int line, std::string what) {
    if (status_.ok()) status_ = Error(Code::kInvalidArgument, "{}, line {}: {}", source_, line, what);
  }

  // ---- names of one scope ----
  static int SlotOf(const Names* names, const std::string& name) {
    const auto [at, is_new] = names->slots->emplace(name, static_cast<int>(names->scope->slots.size()));
    if (is_new) names->scope->slots.push_back({name, Load::kUnset});
    return at->second;
  }

  static Place Find(const Names* names, const std::string& name) {
    for (int hops = 0; names; names = names->parent, ++hops)
      if (names->known.count(name)) return {hops, SlotOf(names, name)};
    return {};
  }

  void Define(Names* names, const std::string& name, Load load, Place outer = {}) {
    SlotOf(names, name);
    names->known[name] = {name, load, outer.hops, outer.slot};
  }

  void Loaded(Names* names, const std::string& name) {
    if (Find(names, name).slot < 0) Define(names, name, Load::kContext);
  }

  void Parameter(Names* names, const std::string& name) {
    names->stored.insert(name);
    Define(names, name, Load::kParameter);
  }

  void Stored(Names* names, const std::string& name) {
    names->stored.insert(name);
    if (names->known.count(name)) return;
    Place outer = Find(names->parent, name);
    if (outer.slot < 0) return Define(names, name, Load::kUnset);
    ++outer.hops;
    Define(names, name, Load::kOuter, outer);
  }

  // What only some branches set has outside the value it had before.
  void Merge(Names* names, const std::vector<Names>& branches) {
    std::set<std::string> stored;
    for (const Names& branch : branches)
      for (const std::string& name : branch.stored)
        if (!names->stored.count(name)) stored.insert(name);
    for (const Names& branch : branches) {
      for (const auto& [name, slot] : branch.known) names->known[name] = slot;
      names->stored.insert(branch.stored.begin(), branch.stored.end());
    }
    for (const std::string& name : stored) {
      Place outer = Find(names->parent, name);
      ++outer.hops;
      Define(names, name, outer.slot < 0 ? Load::kContext : Load::kOuter, outer);
    }
  }

  void Finish(Names* names) {
    for (Slot& slot : names->scope->slots) slot = names->known[slot.name];
  }

  // ---- first walk ----
  void Declare(const std::vector<Node*>& list, Names* names) {
    for (const Node* node : list) Declare(node, names);
  }

  void DeclareTarget(const Node* node, Names* names, bool parameter) {
    if (node->kind == NodeKind::kTuple) {
      for (const Node* item : node->items) DeclareTarget(item, names, parameter);
    } else if (node->kind == NodeKind::kNamespaceRef) {
      Loaded(names, node->left->name);
    } else if (parameter) {
      Parameter(names, node->name);
    } else {
      Stored(names, node->name);
    }
  }

  void Declare(const Node* node, Names* names) {
    if (!node || !status_.ok()) return;
    switch (node->kind) {
      case NodeKind::kName:
        return Loaded(names, node->name);
      case NodeKind::kIf:
        return DeclareIf(node, names);
      case NodeKind::kFor:
        return Declare(node->right, names);
      case NodeKind::kSet:
        Declare(node->right, names);
        return DeclareTarget(node->left, names, false);
      case NodeKind::kSetBlock:
        return DeclareTarget(node->left, names, false);
      case NodeKind::kMacro:
        return Stored(names, node->left->name);
      case NodeKind::kCallBlock:
        return Declare(node->left, names);
      case NodeKind::kWith:
        return Declare(node->defaults, names);
      case NodeKind::kFilterBlock:
      case NodeKind::kGeneration:
        return;
      default:
        for (const Node* child : {node->left, node->right, node->other, node->star, node->star_star})
          Declare(child, names);
        Declare(node->items, names);
        for (const auto& named : node->named) Declare(named.second, names);
    }
  }

  void DeclareIf(const Node* node, Names* names) {
    Declare(node->left, names);
    copies_ += 3 * static_cast<int64_t>(names->known.size() + names->stored.size());
    if (copies_ > kMaxCopies) return Fail(node->line, "too many names and branches");
    std::vector<Names> branches(3, *names);
    Declare(node->body, &branches[0]);
    Declare(node->items, &branches[1]);
    Declare(node->otherwise, &branches[2]);
    Merge(names, branches);
  }

  // ---- second walk ----
  void BindAll(const std::vector<Node*>& list, const Names& names) {
    for (Node* node : list) Bind(node, names);
  }

  void BindName(Node* node, const Names& names) {
    const Place place = Find(&names, node->name);
    node->hops = place.hops;
    node->slot = place.slot;
  }

  void BindTarget(Node* node, const Names& names) {
    if (node->kind == NodeKind::kTuple) {
      for (Node* item : node->items) BindTarget(item, names);
    } else if (node->kind == NodeKind::kNamespaceRef) {
      BindName(node->left, names);
    } else {
      if (node->name == "loop" && loops_ > 0) Fail(node->line, "loop cannot be assigned to inside a loop");
      BindName(node, names);
    }
  }

  void Bind(Node* node, const Names& names) {
    if (!node || !status_.ok()) return;
    switch (node->kind) {
      case NodeKind::kName:
        return BindName(node, names);
      case NodeKind::kFilter:
      case NodeKind::kTest:
        BindFilterOrTest(node);
        return BindChildren(node, names);
      case NodeKind::kConditional:
      case NodeKind::kIf: {
        const bool soft = std::exchange(soft_, true);
        BindChildren(node, names);
        soft_ = soft;
        return;
      }
      case NodeKind::kSet:
        Bind(node->right, names);
        return BindTarget(node->left, names);
      case NodeKind::kFor:
        return BindFor(node, names);
      default:
        if (node->kind >= NodeKind::kSetBlock && node->kind <= NodeKind::kGeneration)
          return BindScope(node, names);
        return BindChildren(node, names);
    }
  }

  void BindChildren(Node* node, const Names& names) {
    for (Node* child : {node->left, node->right, node->other, node->star, node->star_star})
      Bind(child, names);
    BindAll(node->items, names);
    for (const auto& named : node->named) Bind(named.second, names);
    BindAll(node->body, names);
    BindAll(node->otherwise, names);
  }

  void BindFilterOrTest(Node* node) {
    const bool filter = node->kind == NodeKind::kFilter;
    if (soft_ || (filter ? IsFilter(node->name) : IsTest(node->name))) return;
    Fail(node->line, fmt::format("no {} named {}", filter ? "filter" : "test", Printable(node->name)));
  }

  // Opens a scope below `names`: `declare` walks it first, `bind` second.
  template <class DeclareIn, class BindIn>
  std::unique_ptr<Scope> Open(const Names& names, DeclareIn declare, BindIn bind) {
    auto scope = std::make_unique<Scope>();
    std::map<std::string, int> slots;
    Names inner{.scope = scope.get(), .parent = &names, .slots = &slots};
    declare(&inner);
    Finish(&inner);
    const bool soft = std::exchange(soft_, false);
    bind(inner);
    soft_ = soft;
    return scope;
  }

  void BindFor(Node* node, const Names& names) {
    Bind(node->right, names);
    ++loops_;
    node->scope = Open(
        names,
        [&](Names* inner) {
          DeclareTarget(node->left, inner, true);
          if (MentionsAny(node->body, "loop")) Parameter(inner, "loop");
          Declare(node->body, inner);
        },
        [&](const Names& inner) {
          BindTarget(node->left, inner);
          if (inner.stored.count("loop")) node->loop_slot = Find(&inner, "loop").slot;
          BindAll(node->body, inner);
        });
    if (node->other) {
      // Its slots for the targets are those of the body's scope: both declare them first.
      node->condition_scope = Open(
          names,
          [&](Names* inner) {
            DeclareTarget(node->left, inner, true);
            Declare(node->other, inner);
          },
          [&](const Names& inner) { Bind(node->other, inner); });
    }
    if (!node->otherwise.empty()) {
      node->otherwise_scope = Open(
          names, [&](Names* inner) { Declare(node->otherwise, inner); },
          [&](const Names& inner) { BindAll(node->otherwise, inner); });
    }
    --loops_;
  }

  // Blocks, macros and `with`.
  void BindScope(Node* node, const Names& names) {
    const bool is_macro = node->kind == NodeKind::kMacro || node->kind == NodeKind::kCallBlock;
    if (is_macro) {
      for (const Names* at = &names; at; at = at->parent) at->scope->captured = true;
    }
    if (node->kind == NodeKind::kMacro || node->kind == NodeKind::kSetBlock) BindTarget(node->left, names);
    if (node->kind == NodeKind::kCallBlock) Bind(node->left, names);
    if (node->kind == NodeKind::kWith) BindAll(node->defaults, names);
    Node* inside[] = {node->kind == NodeKind::kFilterBlock ? node->left : nullptr,
                      node->kind == NodeKind::kSetBlock ? node->right : nullptr};
    node->scope = Open(
        names,
        [&](Names* inner) {
          for (const Node* item : node->items) DeclareTarget(item, inner, true);
          if (is_macro) DeclareSpecials(node, inner);
          for (const Node* filter : inside) Declare(filter, inner);
          if (is_macro) Declare(node->defaults, inner);
          Declare(node->body, inner);
        },
        [&](const Names& inner) {
          for (Node* item : node->items) BindTarget(item, inner);
          if (is_macro) BindSpecials(node, inner);
          for (Node* filter : inside) Bind(filter, inner);
          if (is_macro) BindAll(node->defaults, inner);
          BindAll(node->body, inner);
        });
  }

  static bool Declares(const Node* macro, std::string_view name) {
    for (const Node* parameter : macro->items)
      if (parameter->name == name) return true;
    return false;
  }

  void DeclareSpecials(const Node* macro, Names* inner) {
    for (const char* name : {"caller", "kwargs", "varargs"})
      if (!Declares(macro, name) && MentionsAny(macro->body, name)) Parameter(inner, name);
  }

  void BindSpecials(Node* macro, const Names& inner) {
    const auto slot = [&](const char* name) {
      return !Declares(macro, name) && inner.stored.count(name) ? Find(&inner, name).slot : -1;
    };
    macro->caller_slot = slot("caller");
    macro->kwargs_slot = slot("kwargs");
    macro->varargs_slot = slot("varargs");
  }

  static bool MentionsAny(const std::vector<Node*>& list, std::string_view name) {
    for (const Node* node : list)
      if (Mentions(node, name)) return true;
    return false;
  }

  static bool Mentions(const Node* node, std::string_view name) {
    if (!node) return false;
    if (node->kind == NodeKind::kName) return node->name == name;
    for (const Node* child : {node->left, node->right, node->other, node->star, node->star_star})
      if (Mentions(child, name)) return true;
    for (const auto* list : {&node->items, &node->body, &node->otherwise, &node->defaults})
      if (MentionsAny(*list, name)) return true;
    for (const auto& named : node->named)
      if (Mentions(named.second, name)) return true;
    return false;
  }

  std::string_view source_;
  Status status_;
  int64_t copies_ = 0;
  int loops_ = 0;
  bool soft_ = false;  // directly inside an if or a conditional expression
};

}  // namespace

Status ResolveNames(Tree* tree, std::string_view source) { return Resolver(source).Run(tree); }

}  // namespace nibble::jinja
