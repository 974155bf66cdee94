// SPDX-License-Identifier: Apache-2.0
// Floor 5. Calls: macros, the functions that transformers gives to templates, methods.
#include <algorithm>

#include "text/jinja/methods.h"
#include "text/jinja/operators.h"
#include "text/jinja/print.h"
#include "text/jinja/pystr.h"
#include "text/jinja/renderer.h"

namespace nibble::jinja {
namespace {

enum Function : int { kRange, kNamespace, kRaiseException, kStrftimeNow, kDict, kFunctions };
constexpr const char* kNames[kFunctions] = {"range", "namespace", "raise_exception", "strftime_now", "dict"};

// What a template says when it gives up: in one line, with its quotes, which Printable would escape.
std::string OneLine(std::string_view text) {
  constexpr size_t kMost = 1000;
  std::string out;
  for (const std::string_view piece : Split(text.substr(0, kMost), "\"", -1))
    out += Printable(piece, kMost) + '"';
  out.pop_back();
  return out;
}

Value Popped(Args* args, std::string_view name) {
  const auto found = std::find_if(args->named.begin(), args->named.end(),
                                  [&](const auto& entry) { return entry.first == name; });
  if (found == args->named.end()) return {};
  Value value = std::move(found->second);
  args->named.erase(found);
  return value;
}

}  // namespace

Renderer::Renderer(jinja::Run& run, const Tree& tree, const Entries& variables) : run_(run), tree_(tree) {
  for (int id = 0; id < kFunctions; ++id) context_[kNames[id]] = Value::Function(id);
  for (const auto& [name, value] : variables) context_[name.text()] = value;
}

Args Renderer::Arguments(const Node& node, Frame& frame) {
  Args args;
  for (const Node* item : node.items) args.positional.push_back(Evaluate(*item, frame));
  for (const auto& [name, value] : node.named) args.named.emplace_back(name, Evaluate(*value, frame));
  if (node.star) {
    for (Value& v : Walked(run_, Evaluate(*node.star, frame))) args.positional.push_back(std::move(v));
  }
  if (node.star_star) {
    const Value more = Evaluate(*node.star_star, frame);
    if (!more.is(Type::kDict)) run_.Fail("** wants a dict, found {}", TypeName(more));
    for (size_t i = 0; !run_.failed() && i < more.entries().size(); ++i) {
      const auto& [name, value] = more.entries()[i];
      if (!name.is_string()) run_.Fail("** wants names that are str, found {}", TypeName(name));
      if (run_.failed()) break;
      for (const auto& given : args.named)
        if (given.first == name.text()) run_.Fail("{} is given twice", Printable(name.text()));
      run_.Scan(16 * args.named.size());
      args.named.emplace_back(name.text(), value);
    }
  }
  return args;
}

Value Renderer::Call(const Node& node, Frame& frame, const Value* caller) {
  const Node& callee = *node.left;
  Value function;
  if (callee.kind == NodeKind::kGetAttr) {  // a method is called without making a value of it
    const Value object = Evaluate(*callee.left, frame);
    if (object.is(Type::kLoop)) return LoopMethod(*object.loop(), callee.name, Arguments(node, frame));
    int id = 0;
    if (!run_.failed() && !caller && FindMethod(object, callee.name, &id) == Access::kMethod) {
      const Args args = Arguments(node, frame);
      run_.line = node.line;
      return run_.failed() ? Value::None() : CallMethod(run_, object, id, args);
    }
    run_.line = callee.line;
    function = run_.failed() ? Value::None() : GetAttr(run_, object, callee.name);
  } else {
    function = Evaluate(callee, frame);
  }
  Args args = Arguments(node, frame);
  if (run_.failed()) return Value::None();
  if (caller) args.named.emplace_back("caller", *caller);
  run_.line = node.line;
  switch (function.type()) {
    case Type::kMacro:
      return CallMacro(*function.macro(), std::move(args));
    case Type::kFunction:
      return CallFunction(function.id(), args);
    case Type::kMethod:
      return CallMethod(run_, function.self(), function.id(), args);
    case Type::kUndefined:
      return run_.Fail("{}", function.message());
    default:
      return run_.Fail("a {} cannot be called", TypeName(function));
  }
}

Value Renderer::NewMacro(const Node& node, Frame& frame) {
  run_.Take(sizeof(Macro));
  return Value::Of(macros_.emplace_back(std::make_unique<Macro>(Macro{&node, &frame})).get());
}

// Parameters and the special names of a macro's frame, as Jinja fills them.
bool Renderer::BindMacro(const Node& node, Args* args, Frame& frame) {
  const std::string name = node.kind == NodeKind::kMacro ? Printable(node.left->name) : "caller";
  const size_t given = std::min(args->positional.size(), node.items.size());
  const auto slot = [&](int i) -> Value& { return frame.slots[static_cast<size_t>(i)]; };
  for (size_t i = 0; i < node.items.size(); ++i) {
    Value& value = slot(node.items[i]->slot);
    value = i < given ? args->positional[i] : Popped(args, node.items[i]->name);
  }
  if (node.caller_slot >= 0) {
    const Value caller = Popped(args, "caller");
    slot(node.caller_slot) = caller.is_missing() ? Value::Undefined("No caller defined") : caller;
  }
  if (node.kwargs_slot >= 0) {
    Entries rest;
    for (auto& [key, value] : args->named) rest.emplace_back(Value::String(key), std::move(value));
    slot(node.kwargs_slot) = run_.Dict(std::move(rest));
  } else if (!args->named.empty()) {
    run_.Fail("{} takes no argument named {}", name, Printable(args->named[0].first));
  }
  if (node.varargs_slot >= 0) {
    slot(node.varargs_slot) =
        run_.Tuple(Values(args->positional.begin() + static_cast<ptrdiff_t>(given), args->positional.end()));
  } else if (args->positional.size() > given) {
    run_.Fail("{} takes at most {} arguments, {} given", name, node.items.size(), args->positional.size());
  }
  const size_t without_default = node.items.size() - node.defaults.size();
  for (size_t i = 0; i < node.items.size() && !run_.failed(); ++i) {
    if (!slot(node.items[i]->slot).is_missing()) continue;
    Value value = i >= without_default ? Evaluate(*node.defaults[i - without_default], frame)
                                       : Value::Undefined(fmt::format("parameter '{}' was not provided",
                                                                      Printable(node.items[i]->name)));
    slot(node.items[i]->slot) = std::move(value);
  }
  return !run_.failed();
}

Value Renderer::CallMacro(const Macro& macro, Args args) {
  if (run_.calls >= run_.limits().calls)
    return run_.Fail("macros call each other more than {} deep", run_.limits().calls);
  ++run_.calls;
  std::string text;
  {
    Entered frame(*this, *macro.node->scope, macro.frame);
    std::string* out = std::exchange(out_, &text);
    if (BindMacro(*macro.node, &args, *frame)) Execute(macro.node->body, *frame);
    out_ = out;
  }
  --run_.calls;
  return run_.failed() ? Value::None() : run_.String(std::move(text));
}

Value Renderer::CallFunction(int id, const Args& args) {
  switch (id) {
    case kRange:
      return MakeRange(args);
    case kNamespace:
      return MakeNamespace(args);
    case kStrftimeNow:
      return TimeNow(args);
    case kDict: {
      Entries entries;
      return CollectEntries("dict", args, &entries) ? run_.Dict(std::move(entries)) : Value::None();
    }
    default: {
      Bound b(run_, "raise_exception", args, {"message"}, 1);
      return b.ok() ? run_.Fail("{}", OneLine(b.Text(0, ""))) : Value::None();
    }
  }
}

Value Renderer::MakeRange(const Args& args) {
  Bound b(run_, "range", args, {"", "", ""}, 1);
  const int64_t first = b.Int(0, 0), second = b.Int(1, 0), step = b.Int(2, 1);
  if (run_.failed()) return Value::None();
  if (step == 0) return run_.Fail("range: the step is 0");
  constexpr int64_t kMost = int64_t{1} << 53;  // far from where sums of these leave 64 bits
  for (const int64_t v : {first, second, step})
    if (v < -kMost || v > kMost) return run_.Fail("range: {} is too large", v);
  const Value range = b.has(1) ? Value::Range(first, second, step) : Value::Range(0, first, 1);
  if (range.range().size() > run_.limits().range)
    return run_.Fail("range of {} numbers, at most {} are allowed", range.range().size(),
                     run_.limits().range);
  return range;
}

// What dict() and namespace() take: a dict or pairs, then names.
bool Renderer::CollectEntries(std::string_view callee, const Args& args, Entries* entries) {
  if (args.positional.size() > 1) run_.Fail("{} takes at most one argument without a name", callee);
  for (size_t i = 0; i < args.positional.size() && !run_.failed(); ++i) {
    const Value& from = args.positional[i];
    if (from.is(Type::kDict)) {
      if (run_.AllowItems(2 * from.entries().size())) *entries = from.entries();
      continue;
    }
    if (!CanWalk(from)) run_.Fail("{} of a {}", callee, TypeName(from));
    for (const Value& pair : run_.failed() ? Values() : Walked(run_, from)) {
      const Values two = CanWalk(pair) ? Walked(run_, pair) : Values();
      if (two.size() != 2) run_.Fail("{} wants pairs", callee);
      if (run_.failed()) break;
      jinja::Assign(run_, entries, two[0], two[1]);
    }
  }
  for (const auto& [name, value] : args.named) {
    if (run_.failed()) break;
    jinja::Assign(run_, entries, Value::String(name), value);
  }
  return !run_.failed();
}

Value Renderer::MakeNamespace(const Args& args) {
  auto entries = std::make_unique<Entries>();
  if (!CollectEntries("namespace", args, entries.get())) return Value::None();
  for (const auto& [name, value] : *entries) {
    if (name.is_string() && name.text().starts_with('_'))
      return run_.Fail("namespace: {} begins with _", Printable(name.text()));
  }
  if (!run_.Take(sizeof(Entries) + entries->size() * 2 * sizeof(Value))) return Value::None();
  return Value::Of(namespaces_.emplace_back(std::move(entries)).get());
}

Value Renderer::TimeNow(const Args& args) {
  constexpr size_t kMostFormat = 256, kMostText = 4096;
  const Bound b(run_, "strftime_now", args, {"format"}, 1);
  if (!b.ok()) return Value::None();
  if (!b[0].is_string()) return run_.Fail("strftime_now: wanted a str, found {}", TypeName(b[0]));
  const std::string& format = b[0].text();
  if (format.size() > kMostFormat || format.find('\0') != std::string::npos)
    return run_.Fail("strftime_now: a format of {} bytes, or one with a zero in it", format.size());
  std::tm local{};
  localtime_r(&run_.now, &local);
  std::string text(kMostText, '\0');
  text.resize(std::strftime(text.data(), text.size(), format.c_str(), &local));
  if (text.empty() && !format.empty())
    return run_.Fail("strftime_now: a text of more than {} bytes", kMostText);
  return run_.String(std::move(text));
}

Value Renderer::LoopMethod(LoopState& loop, std::string_view name, const Args& args) {
  if (run_.failed()) return Value::None();
  if (name == "cycle" && args.named.empty()) {
    if (args.positional.empty()) return run_.Fail("loop.cycle needs something to cycle through");
    return args.positional[static_cast<size_t>(loop.index0) % args.positional.size()];
  }
  if (name == "changed" && args.named.empty()) {
    Value now = run_.Tuple(args.positional);
    if (!loop.changed.is_missing() && Equal(run_, loop.changed, now)) return Value::Bool(false);
    loop.changed = std::move(now);
    return Value::Bool(true);
  }
  return run_.Fail("loop has no method {}", Printable(name));
}

}  // namespace nibble::jinja
