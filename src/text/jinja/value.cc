// SPDX-License-Identifier: Apache-2.0
// Floor 5. Making and taking apart the values of a template.
#include "text/jinja/value.h"

#include <algorithm>

namespace nibble::jinja {
namespace {

int Deepest(const Values& items) {
  int depth = 0;
  for (const Value& v : items) depth = std::max(depth, v.depth());
  return depth + 1;
}

}  // namespace

Value Value::Bool(bool b) {
  Value v(Type::kBool);
  v.integer_ = b;
  return v;
}

Value Value::Int(int64_t i) {
  Value v(Type::kInt);
  v.integer_ = i;
  return v;
}

Value Value::Float(double d) {
  Value v(Type::kFloat);
  v.real_ = d;
  return v;
}

Value Value::String(std::string text) {
  Value v(Type::kString);
  v.heap_ = std::make_shared<std::string>(std::move(text));
  return v;
}

Value Value::List(Values items) {
  Value v(Type::kList);
  v.depth_ = Deepest(items);
  v.heap_ = std::make_shared<Heap<Values>>(Heap<Values>{std::move(items)});
  return v;
}

Value Value::Tuple(Values items) {
  Value v = List(std::move(items));
  v.type_ = Type::kTuple;
  return v;
}

Value Value::View(const char* name, Values items) {
  Value v = List(std::move(items));
  v.type_ = Type::kView;
  v.name_ = name;
  return v;
}

Value Value::Dict(Entries entries) {
  Value v(Type::kDict);
  for (const auto& [key, value] : entries) v.depth_ = std::max({v.depth_, key.depth(), value.depth()});
  ++v.depth_;
  v.heap_ = std::make_shared<Heap<Entries>>(Heap<Entries>{std::move(entries)});
  return v;
}

Value Value::Range(int64_t start, int64_t stop, int64_t step) {
  Value v(Type::kRange);
  v.heap_ = std::make_shared<Bounds>(Bounds{start, stop, step});
  return v;
}

Value Value::Iterator(Values items) {
  Value v(Type::kIterator);
  v.depth_ = Deepest(items);
  v.heap_ = std::make_shared<Walk>(Walk{std::move(items)});
  return v;
}

Value Value::Method(const Value& self, int id) {
  Value v = List({self});
  v.type_ = Type::kMethod;
  v.integer_ = id;
  return v;
}

Value Value::Function(int id) {
  Value v(Type::kFunction);
  v.integer_ = id;
  return v;
}

Value Value::Undefined(std::string message) {
  Value v = String(std::move(message));
  v.type_ = Type::kUndefined;
  return v;
}

Value Value::Of(Entries* names) {
  Value v(Type::kNamespace);
  v.pointer_ = names;
  return v;
}

Value Value::Of(Macro* macro) {
  Value v(Type::kMacro);
  v.pointer_ = macro;
  return v;
}

Value Value::Of(LoopState* loop) {
  Value v(Type::kLoop);
  v.pointer_ = loop;
  return v;
}

// Recursion: a Json document is at most 512 deep.
Result<Value> Value::FromJson(JsonRef json) {
  switch (json.type()) {
    case JsonType::kNull:
      return None();
    case JsonType::kBool:
      return Bool(*json.Bool());
    case JsonType::kInt:
      return Int(*json.Int(INT64_MIN, INT64_MAX));
    case JsonType::kUint: {
      NIBBLE_ASSIGN(const int64_t value, json.Int(INT64_MIN, INT64_MAX));
      return Int(value);
    }
    case JsonType::kDouble:
      return Float(*json.Number());
    case JsonType::kString:
      return String(std::string(*json.String()));
    case JsonType::kArray: {
      Values items;
      for (size_t i = 0; i < json.size(); ++i) {
        NIBBLE_ASSIGN(Value item, FromJson(json[i]));
        items.push_back(std::move(item));
      }
      return List(std::move(items));
    }
    case JsonType::kObject: {
      Entries entries;
      for (size_t i = 0; i < json.size(); ++i) {
        NIBBLE_ASSIGN(Value item, FromJson(json[i]));
        entries.emplace_back(String(std::string(json.KeyAt(i))), std::move(item));
      }
      return Dict(std::move(entries));
    }
  }
  return None();
}

const Values& Value::items() const { return static_cast<const Heap<Values>*>(heap_.get())->data; }

int64_t Value::Bounds::size() const {
  if (step > 0 ? start >= stop : start <= stop) return 0;
  const auto span = step > 0 ? static_cast<uint64_t>(stop) - static_cast<uint64_t>(start)
                             : static_cast<uint64_t>(start) - static_cast<uint64_t>(stop);
  const auto stride = step > 0 ? static_cast<uint64_t>(step) : uint64_t{0} - static_cast<uint64_t>(step);
  return static_cast<int64_t>(std::min<uint64_t>((span - 1) / stride + 1, INT64_MAX));
}

Values Value::TakeRest() const {
  auto* walk = static_cast<Walk*>(heap_.get());
  Values rest(walk->items.begin() + static_cast<ptrdiff_t>(walk->next), walk->items.end());
  walk->next = walk->items.size();
  return rest;
}

bool Value::TakeNext(Value* out) const {
  auto* walk = static_cast<Walk*>(heap_.get());
  if (walk->next == walk->items.size()) return false;
  *out = walk->items[walk->next++];
  return true;
}

const char* TypeName(const Value& v) {
  switch (v.type()) {
    case Type::kMissing:
    case Type::kUndefined:
      return "Undefined";
    case Type::kNone:
      return "NoneType";
    case Type::kBool:
      return "bool";
    case Type::kInt:
      return "int";
    case Type::kFloat:
      return "float";
    case Type::kString:
      return "str";
    case Type::kList:
      return "list";
    case Type::kTuple:
      return "tuple";
    case Type::kDict:
      return "dict";
    case Type::kRange:
      return "range";
    case Type::kView:
      return v.view_name();
    case Type::kIterator:
      return "generator";
    case Type::kNamespace:
      return "Namespace";
    case Type::kMethod:
      return "builtin_function_or_method";
    case Type::kFunction:
      return "function";
    case Type::kMacro:
      return "Macro";
    case Type::kLoop:
      return "LoopContext";
  }
  return "";
}

const Value* Find(const Value& v, std::string_view key) {
  if (!v.is(Type::kDict)) return nullptr;
  for (const auto& [name, value] : v.entries())
    if (name.is_string() && name.text() == key) return &value;
  return nullptr;
}

}  // namespace nibble::jinja
