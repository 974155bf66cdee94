// SPDX-License-Identifier: Apache-2.0
// Floor 5. For each scope two walks: one declares what its own statements mention (nested scopes are not
// entered), the other gives names their slots and opens the nested scopes. Recursion: a tree is at most
// Limits::chain deep.
#include "text/jinja/scopes.h"

#include <algorithm>
#include <string>
#include <unordered_map>

#include "base/printable.h"
#include "text/jinja/filters.h"

namespace nibble::jinja {
namespace {

constexpr int64_t kMaxCopies =
    20'000'000;  // entries below copied at branches: each `if` copies those before it

// What is known of a name in a scope.
struct Binding {
  bool known = false, stored = false;
  Load load = Load::kUnset;
  int outer_hops = 0, outer_slot = 0;  // kOuter
};

// The names of a scope by number, as far as a walk has come. Copies of it walk the branches of an `if`.
struct Names {
  Scope* scope = nullptr;
  const Names* parent = nullptr;
  std::unordered_map<int, int>* slots = nullptr;  // of names by number, for all copies together
  std::vector<Binding> bindings;

  const Binding& at(int id) const {
    static const Binding nothing;
    return static_cast<size_t>(id) < bindings.size() ? bindings[static_cast<size_t>(id)] : nothing;
  }
};

struct Place {
  int hops = 0, slot = -1;
};

class Resolver {
 public:
  explicit Resolver(std::string_view source) : source_(source) {}

  Status Run(Tree* tree) {
    std::unordered_map<int, int> slots;
    Names names{.scope = &tree->scope, .slots = &slots};
    Declare(tree->body, &names);
    Finish(names);
    BindAll(tree->body, names);
    return status_;
  }

 private:
  void Fail(int line, std::string what) {
    if (status_.ok()) status_ = Error(Code::kInvalidArgument, "{}, line {}: {}", source_, line, what);
  }

  // ---- names of one scope ----
  int Id(const std::string& name) { return ids_.emplace(name, static_cast<int>(ids_.size())).first->second; }

  Binding& At(Names* names, int id) {
    if (static_cast<size_t>(id) >= names->bindings.size()) {
      copies_ += id;
      names->bindings.resize(static_cast<size_t>(id) + 1);
    }
    return names->bindings[static_cast<size_t>(id)];
  }

  static Place Find(const Names* names, int id) {
    for (int hops = 0; names; names = names->parent, ++hops)
      if (names->at(id).known) return {hops, names->slots->at(id)};
    return {};
  }
  Place Find(const Names* names, const std::string& name) { return Find(names, Id(name)); }

  void Define(Names* names, int id, const std::string& name, Load load, Place outer = {}) {
    const auto slot = static_cast<int>(names->scope->slots.size());
    if (names->slots->emplace(id, slot).second) names->scope->slots.push_back({name, Load::kUnset});
    Binding& binding = At(names, id);
    binding = {true, binding.stored, load, outer.hops, outer.slot};
  }

  void Loaded(Names* names, const std::string& name) {
    const int id = Id(name);
    if (Find(names, id).slot < 0) Define(names, id, name, Load::kContext);
  }

  void Parameter(Names* names, const std::string& name) {
    const int id = Id(name);
    At(names, id).stored = true;
    Define(names, id, name, Load::kParameter);
  }

  void Stored(Names* names, const std::string& name) {
    const int id = Id(name);
    At(names, id).stored = true;
    if (names->at(id).known) return;
    Place outer = Find(names->parent, id);
    ++outer.hops;
    Define(names, id, name, outer.slot < 0 ? Load::kUnset : Load::kOuter, outer);
  }

  // What only some branches set has outside the value it had before.
  void Merge(Names* names, const std::vector<Names>& branches) {
    for (const Names& branch : branches) {
      for (size_t i = 0; i < branch.bindings.size(); ++i) {
        const Binding& from = branch.bindings[i];
        Binding& to = At(names, static_cast<int>(i));
        if (to.stored || !from.known) continue;
        to = {true, false, from.load, from.outer_hops, from.outer_slot};
      }
    }
    for (size_t i = 0; i < names->bindings.size(); ++i) {
      const int id = static_cast<int>(i);
      const bool stored =
          std::any_of(branches.begin(), branches.end(), [id](const Names& b) { return b.at(id).stored; });
      Binding& binding = names->bindings[i];
      if (!stored || binding.stored) continue;
      Place outer = Find(names->parent, id);
      binding = {true, true, outer.slot < 0 ? Load::kContext : Load::kOuter, outer.hops + 1, outer.slot};
    }
  }

  void Finish(const Names& names) {
    for (const auto& [id, slot] : *names.slots) {
      const Binding& binding = names.at(id);
      Slot& to = names.scope->slots[static_cast<size_t>(slot)];
      to.load = binding.load;
      to.outer_hops = binding.outer_hops;
      to.outer_slot = binding.outer_slot;
    }
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
    copies_ += 6 * static_cast<int64_t>(names->bindings.size());
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
    std::unordered_map<int, int> slots;
    Names inner{.scope = scope.get(), .parent = &names, .slots = &slots};
    declare(&inner);
    Finish(inner);
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
          if (inner.at(Id("loop")).stored) node->loop_slot = Find(&inner, "loop").slot;
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
      return !Declares(macro, name) && inner.at(Id(name)).stored ? Find(&inner, name).slot : -1;
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
  std::unordered_map<std::string, int> ids_;
  int64_t copies_ = 0;
  int loops_ = 0;
  bool soft_ = false;  // directly inside an if or a conditional expression
};

}  // namespace

Status ResolveNames(Tree* tree, std::string_view source) { return Resolver(source).Run(tree); }

}  // namespace nibble::jinja
