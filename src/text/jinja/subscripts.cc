// SPDX-License-Identifier: Apache-2.0
// Floor 5. Length, walking, keys, attributes, items and slices.
#include <algorithm>

#include "base/utf8.h"
#include "text/jinja/methods.h"
#include "text/jinja/operators.h"
#include "text/jinja/print.h"
#include "text/jinja/pystr.h"

namespace nibble::jinja {
namespace {

// What a slice of `size` items takes, clipped as Python clips.
struct Clip {
  int64_t start, stop, step;
};

bool IndexOr(Run& run, const Value& v, int64_t fallback, int64_t* out) {
  *out = fallback;
  if (v.is_missing() || v.is_none()) return true;
  if (!v.is_integral()) {
    run.Fail("slice indices must be integers, not {}", TypeName(v));
    return false;
  }
  *out = v.integer();
  return true;
}

bool MakeClip(Run& run, int64_t size, const Value& start, const Value& stop, const Value& step, Clip* c) {
  if (!IndexOr(run, step, 1, &c->step)) return false;
  if (c->step == 0) {
    run.Fail("slice step is 0");
    return false;
  }
  c->step = std::clamp(c->step, -size - 1, size + 1);  // takes the same, and its products stay small
  const int64_t low = c->step > 0 ? 0 : -1, high = c->step > 0 ? size : size - 1;
  const auto clip = [&](int64_t i) { return std::clamp(i < 0 ? i + size : i, low, high); };
  if (!IndexOr(run, start, 0, &c->start) || !IndexOr(run, stop, 0, &c->stop)) return false;
  const bool open_start = start.is_missing() || start.is_none(),
             open_stop = stop.is_missing() || stop.is_none();
  c->start = open_start ? (c->step > 0 ? low : high) : clip(c->start);
  c->stop = open_stop ? (c->step > 0 ? high : low) : clip(c->stop);
  return true;
}

Value SliceText(Run& run, const std::string& text, const Clip& c) {
  if (!run.Scan(text.size())) return Value::None();
  if (c.step == 1) {
    if (c.start >= c.stop) return run.String({});
    const size_t begin = OffsetOf(text, c.start);
    const size_t bytes = OffsetOf(Text(text).substr(begin), c.stop - c.start);
    return run.String(text.substr(begin, bytes));
  }
  std::vector<Text> chars;
  for (size_t pos = 0; pos < text.size();) {
    const size_t at = pos;
    NextChar(text, &pos);
    chars.push_back(Text(text).substr(at, pos - at));
  }
  std::string out;
  const Value::Bounds picked{c.start, c.stop, c.step};
  for (int64_t i = 0, n = picked.size(); i < n; ++i) out += chars[static_cast<size_t>(c.start + i * c.step)];
  return run.String(std::move(out));
}

// "'dict object' has no attribute 'x'", as Jinja says it.
Value NothingThere(Run& run, const Value& object, const Value& key) {
  const std::string what = object.is_none() ? "None" : fmt::format("'{} object'", TypeName(object));
  if (key.is_string())
    return Value::Undefined(fmt::format("{} has no attribute '{}'", what, Printable(key.text())));
  return Value::Undefined(fmt::format("{} has no element {}", what, Printable(Repr(run, key))));
}

Value Forbidden(const Value& object, std::string_view name) {
  return Value::Undefined(
      fmt::format("access to attribute '{}' of '{}' object is unsafe", Printable(name), TypeName(object)));
}

// obj[key] alone; missing where Python would raise KeyError, IndexError or TypeError.
Value Item(Run& run, const Value& object, const Value& key) {
  if (object.is(Type::kDict)) {
    if (!Hashable(key)) return {};
    const Value* found = Lookup(run, object.entries(), key);
    return found ? *found : Value();
  }
  if (!key.is_integral()) return {};
  int64_t i = key.integer();
  if (object.is_string()) {
    const std::string& text = object.text();
    if (!run.Scan(text.size())) return {};
    const int64_t size = Length(text);
    if (i < 0) i += size;
    if (i < 0 || i >= size) return {};
    size_t end = OffsetOf(text, i);
    const size_t begin = end;
    NextChar(text, &end);
    return run.String(text.substr(begin, end - begin));
  }
  if (object.is_list()) {
    const auto size = static_cast<int64_t>(object.items().size());
    if (i < 0) i += size;
    return i < 0 || i >= size ? Value() : object.items()[static_cast<size_t>(i)];
  }
  if (object.is(Type::kRange)) {
    const Value::Bounds& r = object.range();
    if (i < 0) i += r.size();
    return i < 0 || i >= r.size() ? Value() : Value::Int(r.start + i * r.step);
  }
  return {};
}

Value Attribute(Run& run, const Value& object, std::string_view name) {
  if (object.is(Type::kNamespace)) {
    const Value* found = Lookup(run, *object.names(), Value::String(std::string(name)));
    return found ? *found : Value();
  }
  int id = 0;
  switch (FindMethod(object, name, &id)) {
    case Access::kMethod:
      return Value::Method(object, id);
    case Access::kForbidden:
      return Forbidden(object, name);
    case Access::kNone:
      break;
  }
  return {};
}

size_t FindKey(Run& run, const Entries& entries, const Value& key) {
  run.Scan(entries.size());
  size_t i = 0;
  for (; i < entries.size(); ++i) {
    const Value& name = entries[i].first;
    if (!name.is_string() || !key.is_string()) {
      if (Equal(run, name, key)) break;
    } else if (name.text().size() == key.text().size()) {  // others take no time
      run.Scan(key.text().size());
      if (name.text() == key.text()) break;
    }
  }
  return i;
}

}  // namespace

int64_t LengthOf(const Value& v) {
  switch (v.type()) {
    case Type::kMissing:
    case Type::kUndefined:
      return 0;
    case Type::kString:
      return Length(v.text());
    case Type::kList:
    case Type::kTuple:
    case Type::kView:
      return static_cast<int64_t>(v.items().size());
    case Type::kDict:
      return static_cast<int64_t>(v.entries().size());
    case Type::kRange:
      return v.range().size();
    default:
      return -1;
  }
}

bool CanWalk(const Value& v) {
  return v.is_undefined() || v.is_string() || v.is_list() || v.is(Type::kDict) || v.is(Type::kRange) ||
         v.is(Type::kView) || v.is(Type::kIterator);
}

Values Walked(Run& run, const Value& v) {
  Values out;
  switch (v.type()) {
    case Type::kMissing:
    case Type::kUndefined:
      break;
    case Type::kIterator:
      out = v.TakeRest();
      break;
    case Type::kList:
    case Type::kTuple:
    case Type::kView:
      if (run.AllowItems(v.items().size())) out = v.items();
      break;
    case Type::kDict:
      if (run.AllowItems(v.entries().size()))
        for (const auto& entry : v.entries()) out.push_back(entry.first);
      break;
    case Type::kRange:
      if (run.AllowItems(static_cast<size_t>(v.range().size())))
        for (int64_t i = 0, n = v.range().size(); i < n; ++i)
          out.push_back(Value::Int(v.range().start + i * v.range().step));
      break;
    case Type::kString:
      for (size_t pos = 0; pos < v.text().size() && !run.failed();) {
        const size_t at = pos;
        NextChar(v.text(), &pos);
        out.push_back(run.String(v.text().substr(at, pos - at)));
        run.Step();
      }
      break;
    default:
      run.Fail("a {} cannot be walked", TypeName(v));
  }
  return run.failed() ? Values() : out;
}

bool Hashable(const Value& v) {
  if (v.is(Type::kTuple)) return std::all_of(v.items().begin(), v.items().end(), Hashable);
  return !v.is(Type::kList) && !v.is(Type::kDict) && !v.is(Type::kView);
}

const Value* Lookup(Run& run, const Entries& entries, const Value& key) {
  const size_t i = FindKey(run, entries, key);
  return i < entries.size() ? &entries[i].second : nullptr;
}

void Assign(Run& run, Entries* entries, const Value& key, const Value& value) {
  if (!Hashable(key)) {
    run.Fail("a {} cannot be a key", TypeName(key));
    return;
  }
  const size_t i = FindKey(run, *entries, key);
  if (i == entries->size()) return entries->push_back({key, value});
  (*entries)[i].second = value;
}

Value GetAttr(Run& run, const Value& object, std::string_view name) {
  if (object.is_undefined() && name != "__class__") return run.Fail("{}", object.message());
  Value found = Attribute(run, object, name);
  if (!found.is_missing()) return found;
  const Value key = Value::String(std::string(name));
  if (found = Item(run, object, key); !found.is_missing()) return found;
  return NothingThere(run, object, key);
}

Value GetItem(Run& run, const Value& object, const Value& key) {
  if (object.is_undefined()) return run.Fail("{}", object.message());
  if (object.is(Type::kNamespace) && !key.is_string()) return NothingThere(run, object, key);
  Value found = Item(run, object, key);
  if (!found.is_missing()) return found;
  if (key.is_string()) {
    if (found = Attribute(run, object, key.text()); !found.is_missing()) return found;
  }
  return NothingThere(run, object, key);
}

Value GetSlice(Run& run, const Value& object, const Value& start, const Value& stop, const Value& step) {
  if (object.is_undefined()) return run.Fail("{}", object.message());
  Clip c;
  if (!object.is_string() && !object.is_list() && !object.is(Type::kRange))
    return run.Fail("a {} has no slices", TypeName(object));
  if (!MakeClip(run, LengthOf(object), start, stop, step, &c)) return Value::None();
  if (object.is_string()) return SliceText(run, object.text(), c);
  const Value::Bounds picked{c.start, c.stop, c.step};
  if (object.is(Type::kRange)) {
    const Value::Bounds& r = object.range();
    return Value::Range(r.start + c.start * r.step, r.start + c.stop * r.step, r.step * c.step);
  }
  if (!run.AllowItems(static_cast<size_t>(picked.size()))) return Value::None();
  Values items;
  for (int64_t i = 0, n = picked.size(); i < n; ++i)
    items.push_back(object.items()[static_cast<size_t>(c.start + i * c.step)]);
  return object.is(Type::kList) ? run.List(std::move(items)) : run.Tuple(std::move(items));
}

}  // namespace nibble::jinja
