// SPDX-License-Identifier: Apache-2.0
// Floor 5. Statements.
#include <algorithm>

#include "text/jinja/filters.h"
#include "text/jinja/operators.h"
#include "text/jinja/print.h"
#include "text/jinja/renderer.h"

namespace nibble::jinja {

Renderer::Entered::Entered(Renderer& renderer, const Scope& scope, Frame* parent)
    : renderer_(renderer), frame_(std::make_unique<Frame>(scope, parent)) {
  renderer.run_.Step(static_cast<int64_t>(scope.slots.size()));
  renderer.SetUp(*frame_);
}

Renderer::Entered::~Entered() {
  if (!frame_->scope->captured) return;
  renderer_.run_.Take(sizeof(Frame) + frame_->slots.size() * sizeof(Value));
  renderer_.frames_.push_back(std::move(frame_));
}

std::string Renderer::Render() {
  std::string out;
  out_ = &out;
  Entered frame(*this, tree_.scope, nullptr);
  Execute(tree_.body, *frame);
  return run_.failed() ? std::string() : out;
}

void Renderer::SetUp(Frame& frame) {
  for (size_t i = 0; i < frame.slots.size(); ++i) {
    const Slot& slot = frame.scope->slots[i];
    if (slot.load == jinja::Load::kParameter) continue;
    Value& value = frame.slots[i] = Value();
    if (slot.load == jinja::Load::kContext) {
      if (const auto found = context_.find(slot.name); found != context_.end()) value = found->second;
    } else if (slot.load == jinja::Load::kOuter) {
      const Frame* outer = &frame;
      for (int hops = slot.outer_hops; hops > 0; --hops) outer = outer->parent;
      value = outer->slots[static_cast<size_t>(slot.outer_slot)];
    }
  }
}

void Renderer::Write(std::string_view text) {
  if (run_.AllowText(out_->size() + text.size() > run_.limits().string_bytes ? out_->size() + text.size()
                                                                             : text.size()))
    *out_ += text;
}

// Blocks print what they make as it is, so it must be a text already.
void Renderer::WriteText(std::string_view what, const Value& v) {
  if (v.is_string()) return Write(v.text());
  run_.Fail("{} makes a {}, not a str", what, TypeName(v));
}

Renderer::Flow Renderer::Execute(const Body& body, Frame& frame) {
  const Deeper deeper(run_);
  for (const Node* node : body) {
    if (!run_.Step()) return Flow::kNext;
    run_.line = node->line;
    if (const Flow flow = Statement(*node, frame); flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

Renderer::Flow Renderer::Statement(const Node& node, Frame& frame) {
  switch (node.kind) {
    case NodeKind::kText:
      Write(node.name);
      break;
    case NodeKind::kPrint: {
      const Value v = Evaluate(*node.left, frame);
      if (v.is_string()) {
        Write(v.text());
      } else {
        Write(Str(run_, v));
      }
      break;
    }
    case NodeKind::kIf:
      return If(node, frame);
    case NodeKind::kFor:
      return For(node, frame);
    case NodeKind::kSet:
      Assign(*node.left, Evaluate(*node.right, frame), frame);
      break;
    case NodeKind::kSetBlock:
      return SetBlock(node, frame);
    case NodeKind::kMacro:
      Assign(*node.left, NewMacro(node, frame), frame);
      break;
    case NodeKind::kCallBlock:
      CallBlock(node, frame);
      break;
    case NodeKind::kFilterBlock:
      return FilterBlock(node, frame);
    case NodeKind::kWith:
      return With(node, frame);
    case NodeKind::kGeneration: {
      Entered inner(*this, *node.scope, &frame);
      return Execute(node.body, *inner);
    }
    case NodeKind::kBreak:
      return Flow::kBreak;
    case NodeKind::kContinue:
      return Flow::kContinue;
    default:
      run_.Fail("an expression stands as a statement");
  }
  return Flow::kNext;
}

Renderer::Flow Renderer::If(const Node& node, Frame& frame) {
  if (Truthy(Evaluate(*node.left, frame))) return run_.failed() ? Flow::kNext : Execute(node.body, frame);
  for (const Node* other : node.items) {
    if (run_.failed()) return Flow::kNext;
    run_.line = other->line;
    if (Truthy(Evaluate(*other->left, frame))) return Execute(other->body, frame);
  }
  return run_.failed() ? Flow::kNext : Execute(node.otherwise, frame);
}

bool Renderer::NextItem(LoopState& loop, Frame* condition, Value* item) {
  while (loop.next < loop.items.size() && !run_.failed()) {
    *item = loop.items[loop.next++];
    if (!loop.filtered) return true;
    if (!run_.Turn()) return false;
    Assign(*loop.node->left, *item, *condition);
    if (Truthy(Evaluate(*loop.node->other, *condition))) return true;
  }
  return false;
}

// The turns of a loop. *completed: whether one came to its end without break or continue; Jinja renders
// `else` when none did, not when there was none.
Renderer::Flow Renderer::Turns(LoopState& loop, Frame& frame, Frame* condition, bool* completed) {
  const Node& node = *loop.node;
  for (Value item;;) {
    if (!loop.after.is_missing()) {
      item = std::exchange(loop.after, Value());
    } else if (!NextItem(loop, condition, &item)) {
      break;
    }
    if (!run_.Turn()) break;
    ++loop.index0;
    loop.before = std::exchange(loop.current, item);
    SetUp(frame);
    Assign(*node.left, item, frame);
    if (node.loop_slot >= 0) frame.slots[static_cast<size_t>(node.loop_slot)] = Value::Of(&loop);
    const Flow flow = Execute(node.body, frame);
    if (flow == Flow::kBreak) break;
    if (flow == Flow::kNext) *completed = true;
  }
  std::fill(frame.slots.begin(), frame.slots.end(), Value());
  return Flow::kNext;
}

Renderer::Flow Renderer::For(const Node& node, Frame& frame) {
  const Value iterable = Evaluate(*node.right, frame);
  if (run_.failed()) return Flow::kNext;
  bool completed = false;
  {
    LoopState* loop = loops_.emplace_back(std::make_unique<LoopState>()).get();
    run_.Take(sizeof(LoopState));
    loop->node = &node;
    loop->items = Walked(run_, iterable);
    loop->filtered = node.other != nullptr;
    Entered inner(*this, *node.scope, &frame);
    std::unique_ptr<Entered> condition;
    if (loop->filtered) condition = std::make_unique<Entered>(*this, *node.condition_scope, &frame);
    loop->condition = condition ? &**condition : nullptr;
    if (!run_.failed()) Turns(*loop, *inner, loop->condition, &completed);
    loop->condition = nullptr;
    loop->items.clear();
  }
  if (completed || node.otherwise.empty() || run_.failed()) return Flow::kNext;
  Entered inner(*this, *node.otherwise_scope, &frame);
  return Execute(node.otherwise, *inner);
}

Renderer::Flow Renderer::SetBlock(const Node& node, Frame& frame) {
  Entered inner(*this, *node.scope, &frame);
  std::string text;
  std::string* out = std::exchange(out_, &text);
  const Flow flow = Execute(node.body, *inner);
  out_ = out;
  if (flow != Flow::kNext || run_.failed()) return flow;
  Value value = run_.String(std::move(text));
  if (node.right) value = FilterChain(*node.right, *inner, value);
  Assign(*node.left, value, frame);
  return Flow::kNext;
}

Renderer::Flow Renderer::FilterBlock(const Node& node, Frame& frame) {
  Entered inner(*this, *node.scope, &frame);
  std::string text;
  std::string* out = std::exchange(out_, &text);
  const Flow flow = Execute(node.body, *inner);
  out_ = out;
  if (flow != Flow::kNext || run_.failed()) return flow;
  WriteText("a filter block", FilterChain(*node.left, *inner, run_.String(std::move(text))));
  return Flow::kNext;
}

Renderer::Flow Renderer::With(const Node& node, Frame& frame) {
  Values values;
  for (const Node* value : node.defaults) values.push_back(Evaluate(*value, frame));
  Entered inner(*this, *node.scope, &frame);
  for (size_t i = 0; i < values.size() && !run_.failed(); ++i) Assign(*node.items[i], values[i], *inner);
  return run_.failed() ? Flow::kNext : Execute(node.body, *inner);
}

void Renderer::CallBlock(const Node& node, Frame& frame) {
  const Value caller = NewMacro(node, frame);
  WriteText("a call block", Call(*node.left, frame, &caller));
}

void Renderer::Assign(const Node& target, const Value& value, Frame& frame) {
  if (run_.failed()) return;
  switch (target.kind) {
    case NodeKind::kName:
      frame.slots[static_cast<size_t>(target.slot)] = value;  // a target is always of its own scope
      return;
    case NodeKind::kNamespaceRef: {
      const Value object = Evaluate(*target.left, frame);
      if (!object.is(Type::kNamespace)) {
        run_.Fail("{} is no namespace, so its {} cannot be set", Printable(target.left->name),
                  Printable(target.name));
      } else if (target.name.starts_with('_')) {
        run_.Fail("{} cannot be set: it begins with _", Printable(target.name));
      } else if (run_.Take(2 * sizeof(Value))) {
        jinja::Assign(run_, object.names(), Value::String(target.name), value);
      }
      return;
    }
    default: {
      if (!CanWalk(value)) {
        run_.Fail("a {} cannot be unpacked", TypeName(value));
        return;
      }
      const Values items = Walked(run_, value);
      if (items.size() != target.items.size() && !run_.failed())
        run_.Fail("{} values for {} names", items.size(), target.items.size());
      for (size_t i = 0; i < target.items.size() && !run_.failed(); ++i)
        Assign(*target.items[i], items[i], frame);
    }
  }
}

}  // namespace nibble::jinja
