// SPDX-License-Identifier: Apache-2.0
// Floor 5. Expressions.
#include "text/jinja/filters.h"
#include "text/jinja/operators.h"
#include "text/jinja/print.h"
#include "text/jinja/renderer.h"

namespace nibble::jinja {

Value Renderer::Evaluate(const Node& node, Frame& frame) {
  const Deeper deeper(run_);
  if (!run_.Step()) return Value::None();
  switch (node.kind) {
    case NodeKind::kConst:
      return node.value;
    case NodeKind::kName:
      return Name(node, frame);
    case NodeKind::kTuple:
    case NodeKind::kList:
      return Items(node, frame);
    case NodeKind::kDict:
      return DictLiteral(node, frame);
    case NodeKind::kGetAttr:
    case NodeKind::kGetItem:
      return Subscript(node, frame);
    case NodeKind::kCall:
      return Call(node, frame, nullptr);
    case NodeKind::kFilter:
      return Filtered(node, frame, Evaluate(*node.left, frame));
    case NodeKind::kTest: {
      const Value input = Evaluate(*node.left, frame);
      const Args args = Arguments(node, frame);
      run_.line = node.line;
      return Value::Bool(!run_.failed() && CallTest(run_, node.name, input, args));
    }
    case NodeKind::kNot:
      return Value::Bool(!Truthy(Evaluate(*node.left, frame)));
    case NodeKind::kNegate:
      return Negated(run_, Evaluate(*node.left, frame));
    case NodeKind::kPlus:
      return Plus(run_, Evaluate(*node.left, frame));
    case NodeKind::kAnd: {
      Value left = Evaluate(*node.left, frame);
      return Truthy(left) ? Evaluate(*node.right, frame) : left;
    }
    case NodeKind::kOr: {
      Value left = Evaluate(*node.left, frame);
      return Truthy(left) ? left : Evaluate(*node.right, frame);
    }
    case NodeKind::kBinary: {
      const Value left = Evaluate(*node.left, frame), right = Evaluate(*node.right, frame);
      run_.line = node.line;
      return run_.failed() ? Value::None() : Arithmetic(run_, node.op, left, right);
    }
    case NodeKind::kConcat:
      return Concatenated(node, frame);
    case NodeKind::kCompare:
      return Compared(node, frame);
    case NodeKind::kConditional:
      return Conditional(node, frame);
    default:
      return run_.Fail("a statement stands as an expression");
  }
}

Value Renderer::Name(const Node& node, Frame& frame) {
  Frame* at = &frame;
  for (int hops = node.hops; hops > 0; --hops) at = at->parent;
  const Value& v = at->slots[static_cast<size_t>(node.slot)];
  return v.is_missing() ? Value::Undefined(fmt::format("'{}' is undefined", Printable(node.name))) : v;
}

Value Renderer::Items(const Node& node, Frame& frame) {
  Values items;
  for (const Node* item : node.items) items.push_back(Evaluate(*item, frame));
  if (run_.failed()) return Value::None();
  return node.kind == NodeKind::kList ? run_.List(std::move(items)) : run_.Tuple(std::move(items));
}

Value Renderer::DictLiteral(const Node& node, Frame& frame) {
  Entries entries;
  for (size_t i = 0; i < node.items.size() && !run_.failed(); i += 2) {
    const Value key = Evaluate(*node.items[i], frame);
    const Value value = Evaluate(*node.items[i + 1], frame);
    if (!run_.failed()) jinja::Assign(run_, &entries, key, value);
  }
  return run_.failed() ? Value::None() : run_.Dict(std::move(entries));
}

Value Renderer::Concatenated(const Node& node, Frame& frame) {
  std::string text;
  for (const Node* item : node.items) {
    text += Str(run_, Evaluate(*item, frame));
    if (run_.failed()) return Value::None();
    if (text.size() > run_.limits().string_bytes) break;  // String says so
  }
  return run_.String(std::move(text));
}

Value Renderer::Compared(const Node& node, Frame& frame) {
  Value left = Evaluate(*node.left, frame);
  for (size_t i = 0; i < node.items.size(); ++i) {
    Value right = Evaluate(*node.items[i], frame);
    run_.line = node.line;
    if (run_.failed() || !Compare(run_, node.ops[i], left, right)) return Value::Bool(false);
    left = std::move(right);
  }
  return Value::Bool(true);
}

Value Renderer::Conditional(const Node& node, Frame& frame) {
  if (Truthy(Evaluate(*node.right, frame))) return Evaluate(*node.left, frame);
  if (node.other) return Evaluate(*node.other, frame);
  return Value::Undefined(fmt::format("the if expression on line {} was false and has no else", node.line));
}

Value Renderer::Subscript(const Node& node, Frame& frame) {
  const Value object = Evaluate(*node.left, frame);
  if (run_.failed()) return Value::None();
  if (node.kind == NodeKind::kGetAttr) {
    run_.line = node.line;
    return object.is(Type::kLoop) ? LoopAttribute(*object.loop(), node.name)
                                  : GetAttr(run_, object, node.name);
  }
  if (node.right->kind == NodeKind::kSlice) {
    Value bounds[3];
    for (size_t i = 0; i < 3; ++i)
      if (const Node* bound = node.right->items[i]) bounds[i] = Evaluate(*bound, frame);
    run_.line = node.line;
    return run_.failed() ? Value::None() : GetSlice(run_, object, bounds[0], bounds[1], bounds[2]);
  }
  const Value key = Evaluate(*node.right, frame);
  if (run_.failed()) return Value::None();
  run_.line = node.line;
  if (object.is(Type::kLoop) && key.is_string()) return LoopAttribute(*object.loop(), key.text());
  return GetItem(run_, object, key);
}

Value Renderer::Filtered(const Node& node, Frame& frame, const Value& input) {
  const Args args = Arguments(node, frame);
  run_.line = node.line;
  return run_.failed() ? Value::None() : CallFilter(run_, node.name, input, args);
}

// A chain that stands in a block: its innermost filter has no operand and takes `input`.
Value Renderer::FilterChain(const Node& node, Frame& frame, const Value& input) {
  const Deeper deeper(run_);
  if (run_.failed()) return Value::None();
  return Filtered(node, frame, node.left ? FilterChain(*node.left, frame, input) : input);
}

Value Renderer::LoopAttribute(LoopState& loop, std::string_view name) {
  const auto peek = [&] {
    if (loop.after.is_missing() && !NextItem(loop, loop.condition, &loop.after)) loop.after = Value();
    return !loop.after.is_missing();
  };
  const auto length = [&] {
    if (loop.length < 0) {
      if (loop.filtered) {  // all the conditions are evaluated now
        Values rest;
        for (Value item; NextItem(loop, loop.condition, &item);) rest.push_back(item);
        loop.items = std::move(rest);
        loop.next = 0;
        loop.filtered = false;
      }
      const auto left = static_cast<int64_t>(loop.items.size() - loop.next);
      loop.length = loop.index0 + 1 + left + !loop.after.is_missing();
    }
    return loop.length;
  };
  if (name == "index") return Value::Int(loop.index0 + 1);
  if (name == "index0") return Value::Int(loop.index0);
  if (name == "first") return Value::Bool(loop.index0 == 0);
  if (name == "last") return Value::Bool(!peek());
  if (name == "length") return Value::Int(length());
  if (name == "revindex") return Value::Int(length() - loop.index0);
  if (name == "revindex0") return Value::Int(length() - loop.index0 - 1);
  if (name == "depth") return Value::Int(1);
  if (name == "depth0") return Value::Int(0);
  if (name == "previtem")
    return loop.before.is_missing() ? Value::Undefined("there is no previous item") : loop.before;
  if (name == "nextitem") return peek() ? loop.after : Value::Undefined("there is no next item");
  return Value::Undefined(fmt::format("'LoopContext object' has no attribute '{}'", Printable(name)));
}

}  // namespace nibble::jinja
