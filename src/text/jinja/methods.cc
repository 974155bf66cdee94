// SPDX-License-Identifier: Apache-2.0
// Floor 5. The methods that templates call on text, lists and dicts.
#include "text/jinja/methods.h"

#include <algorithm>

#include "base/utf8.h"
#include "text/jinja/format.h"
#include "text/jinja/operators.h"
#include "text/jinja/print.h"
#include "text/jinja/pystr.h"

namespace nibble::jinja {
namespace {

using Signature = std::initializer_list<std::string_view>;

// The text of argument i. Fails when it is none: Python's str methods convert nothing.
std::optional<Text> TextAt(Run& run, const Bound& b, size_t i) {
  if (b[i].is_string()) return b[i].text();
  if (!b[i].is_missing()) run.Fail("wanted a str, found {}", TypeName(b[i]));
  return std::nullopt;
}

// As TextAt, but None counts as not given.
std::optional<Text> TextOrNone(Run& run, const Bound& b, size_t i) {
  return b[i].is_none() ? std::nullopt : TextAt(run, b, i);
}

template <Ends ends>
Value StripText(Run& run, const Value& self, const Args& args) {
  const Bound b(run, "strip", args, {""});
  const auto chars = TextOrNone(run, b, 0);
  if (run.failed()) return Value::None();
  if (chars && !run.Step(static_cast<int64_t>(chars->size()) * static_cast<int64_t>(self.text().size()) / 64))
    return Value::None();
  return run.String(std::string(Strip(self.text(), chars, ends)));
}

template <std::string (*map)(Text)>
Value Mapped(Run& run, const Value& self, const Args& args) {
  if (!Bound(run, "the method", args, {}).ok()) return Value::None();
  return run.AllowText(self.text().size()) ? run.String(map(self.text())) : Value::None();
}

template <bool (*test)(Text)>
Value Tested(Run& run, const Value& self, const Args& args) {
  if (!Bound(run, "the method", args, {}).ok()) return Value::None();
  return run.Scan(self.text().size()) ? Value::Bool(test(self.text())) : Value::None();
}

Value Texts(Run& run, const std::vector<Text>& parts) {
  Values items;
  for (const Text part : parts) {
    items.push_back(run.String(std::string(part)));
    if (!run.Step()) return Value::None();
  }
  return run.List(std::move(items));
}

template <bool from_right>
Value SplitText(Run& run, const Value& self, const Args& args) {
  Bound b(run, "split", args, {"sep", "maxsplit"});
  const auto separator = TextOrNone(run, b, 0);
  const int64_t max = b.Int(1, -1);
  if (separator && separator->empty()) run.Fail("split: the separator is empty");
  if (!run.AllowText(self.text().size())) return Value::None();
  return Texts(run,
               from_right ? SplitRight(self.text(), separator, max) : Split(self.text(), separator, max));
}

Value Lines(Run& run, const Value& self, const Args& args) {
  const Bound b(run, "splitlines", args, {"keepends"});
  return run.AllowText(self.text().size()) ? Texts(run, SplitLines(self.text(), b.Flag(0, false)))
                                           : Value::None();
}

// text[start:end] as the optional arguments of find, count and startswith mean it; nullopt when `start` lies
// behind the text, where even "" is not found.
std::optional<Text> Part(Run& run, const Value& self, const Bound& b, int64_t* first) {
  *first = 0;
  if (b[1].is_missing() && b[2].is_missing()) return self.text();
  if (!run.Scan(self.text().size())) return std::nullopt;
  const int64_t size = Length(self.text());
  int64_t bounds[2] = {0, size};
  for (size_t i = 0; i < 2; ++i) {
    const Value& v = b[i + 1];
    if (v.is_missing() || v.is_none()) continue;
    if (!v.is_integral()) run.Fail("slice indices must be integers, not {}", TypeName(v));
    bounds[i] = v.integer() < 0 ? std::max<int64_t>(v.integer() + size, 0) : v.integer();
  }
  if (bounds[0] > size) return std::nullopt;
  *first = bounds[0];
  const int64_t end = std::clamp(bounds[1], bounds[0], size);
  if (bounds[1] < bounds[0]) return std::nullopt;
  const size_t begin = OffsetOf(self.text(), *first);
  return Text(self.text()).substr(begin, OffsetOf(Text(self.text()).substr(begin), end - *first));
}

template <bool at_end>
Value HasEnd(Run& run, const Value& self, const Args& args) {
  const Bound b(run, "startswith", args, {"", "", ""}, 1);
  if (!b.ok()) return Value::None();
  int64_t first = 0;
  const auto part = Part(run, self, b, &first);
  const Values one{b[0]};
  for (const Value& end : b[0].is(Type::kTuple) ? b[0].items() : one) {
    if (!end.is_string())
      return run.Fail("startswith: wanted a str or a tuple of str, found {}", TypeName(end));
    if (!run.Scan(end.text().size())) return Value::None();
    if (part && (at_end ? part->ends_with(end.text()) : part->starts_with(end.text())))
      return Value::Bool(true);
  }
  return Value::Bool(false);
}

template <bool last, bool must>
Value FindText(Run& run, const Value& self, const Args& args) {
  const Bound b(run, "find", args, {"", "", ""}, 1);
  const auto what = TextAt(run, b, 0);
  if (run.failed() || !run.Scan(self.text().size())) return Value::None();
  int64_t first = 0;
  const auto part = Part(run, self, b, &first);
  const size_t at = !part ? Text::npos : last ? SearchBack(*part, *what) : Search(*part, *what);
  if (at != Text::npos) return Value::Int(first + Length(part->substr(0, at)));
  return must ? run.Fail("index: the text is not there") : Value::Int(-1);
}

Value CountText(Run& run, const Value& self, const Args& args) {
  const Bound b(run, "count", args, {"", "", ""}, 1);
  const auto what = TextAt(run, b, 0);
  int64_t first = 0;
  if (run.failed() || !run.Scan(self.text().size())) return Value::None();
  const auto part = Part(run, self, b, &first);
  return Value::Int(part ? Count(*part, *what) : 0);
}

Value ReplaceText(Run& run, const Value& self, const Args& args) {
  Bound b(run, "replace", args, {"", "", ""}, 2);
  const auto old = TextAt(run, b, 0), with = TextAt(run, b, 1);
  const int64_t max = b.Int(2, -1);
  return run.failed() ? Value::None() : Replaced(run, self.text(), *old, *with, max);
}

Value JoinTexts(Run& run, const Value& self, const Args& args) {
  const Bound b(run, "join", args, {""}, 1);
  if (!b.ok()) return Value::None();
  std::string out;
  bool first = true;
  for (const Value& v : Walked(run, b[0])) {
    if (!v.is_string()) return run.Fail("join: wanted str, found {}", TypeName(v));
    if (!first) out += self.text();
    first = false;
    out += v.text();
    if (!run.AllowText(out.size() / 64) || out.size() > run.limits().string_bytes) break;
  }
  return run.String(std::move(out));
}

Value FormatMethod(Run& run, const Value& self, const Args& args) {
  return BraceFormat(run, self.text(), args);
}

template <int side>  // -1: text left, 0: centre, 1: text right
Value Justified(Run& run, const Value& self, const Args& args) {
  Bound b(run, "ljust", args, {"", ""}, 1);
  const int64_t width = b.Int(0, 0);
  const auto given = TextAt(run, b, 1);
  const Text fill = given.value_or(" ");
  if (!run.failed() && Length(fill) != 1) run.Fail("the fill text must be one character");
  if (run.failed() || !run.Scan(self.text().size())) return Value::None();
  const int64_t pad = std::max<int64_t>(width - Length(self.text()), 0);
  if (!run.AllowText(static_cast<size_t>(std::min<int64_t>(pad, INT32_MAX)) * fill.size()))
    return Value::None();
  const int64_t left = side < 0 ? 0 : side > 0 ? pad : pad / 2 + (pad & width & 1);
  std::string out;
  for (int64_t i = 0; i < left; ++i) out += fill;
  out += self.text();
  for (int64_t i = left; i < pad; ++i) out += fill;
  return run.String(std::move(out));
}

Value ZeroFilled(Run& run, const Value& self, const Args& args) {
  Bound b(run, "zfill", args, {""}, 1);
  if (!run.Scan(self.text().size())) return Value::None();
  const int64_t pad = std::max<int64_t>(b.Int(0, 0) - Length(self.text()), 0);
  if (run.failed() || !run.AllowText(static_cast<size_t>(pad))) return Value::None();
  const bool sign = self.text().starts_with('-') || self.text().starts_with('+');
  return run.String(self.text().substr(0, sign) + std::string(static_cast<size_t>(pad), '0') +
                    self.text().substr(sign));
}

template <bool suffix>
Value WithoutEnd(Run& run, const Value& self, const Args& args) {
  const Bound b(run, "removeprefix", args, {""}, 1);
  const auto end = TextAt(run, b, 0);
  if (run.failed() || !run.Scan(end->size())) return Value::None();
  const Text text = self.text();
  if (suffix ? !text.ends_with(*end) : !text.starts_with(*end)) return self;
  return run.String(
      std::string(suffix ? text.substr(0, text.size() - end->size()) : text.substr(end->size())));
}

template <bool last>
Value Partition(Run& run, const Value& self, const Args& args) {
  const Bound b(run, "partition", args, {""}, 1);
  const auto separator = TextAt(run, b, 0);
  if (separator && separator->empty()) run.Fail("partition: the separator is empty");
  if (run.failed() || !run.Scan(self.text().size())) return Value::None();
  const Text text = self.text();
  const size_t at = last ? SearchBack(text, *separator) : Search(text, *separator);
  Text parts[3] = {last ? Text() : text, Text(), last ? text : Text()};
  if (at != Text::npos) {
    parts[0] = text.substr(0, at);
    parts[1] = *separator;
    parts[2] = text.substr(at + separator->size());
  }
  Values items;
  for (const Text part : parts) items.push_back(run.String(std::string(part)));
  return run.Tuple(std::move(items));
}

Value CountItem(Run& run, const Value& self, const Args& args) {
  const Bound b(run, "count", args, {""}, 1);
  if (!b.ok()) return Value::None();
  const Values items = Walked(run, self);
  return Value::Int(
      std::count_if(items.begin(), items.end(), [&](const Value& v) { return Equal(run, v, b[0]); }));
}

Value IndexOfItem(Run& run, const Value& self, const Args& args) {
  const Bound b(run, "index", args, {""}, 1);
  const Values items = Walked(run, self);
  for (size_t i = 0; b.ok() && i < items.size(); ++i)
    if (Equal(run, items[i], b[0])) return Value::Int(static_cast<int64_t>(i));
  return run.Fail("index: the value is not in the list");
}

Value Same(Run& run, const Value& self, const Args& args) {
  return Bound(run, "copy", args, {}).ok() ? self : Value::None();
}

Value DictGet(Run& run, const Value& self, const Args& args) {
  const Bound b(run, "get", args, {"", ""}, 1);
  if (!b.ok()) return Value::None();
  if (!Hashable(b[0])) return run.Fail("a {} cannot be a key", TypeName(b[0]));
  if (const Value* found = Lookup(run, self.entries(), b[0])) return *found;
  return b.has(1) ? b[1] : Value::None();
}

Value DictKeys(Run& run, const Value& self, const Args& args) {
  if (!Bound(run, "keys", args, {}).ok()) return Value::None();
  return run.View("dict_keys", Walked(run, self));
}

Value DictValues(Run& run, const Value& self, const Args& args) {
  if (!Bound(run, "values", args, {}).ok()) return Value::None();
  Values values;
  for (const auto& entry : self.entries()) values.push_back(entry.second);
  return run.View("dict_values", std::move(values));
}

Value DictItems(Run& run, const Value& self, const Args& args) {
  if (!Bound(run, "items", args, {}).ok()) return Value::None();
  Values pairs;
  for (const auto& [key, value] : self.entries()) pairs.push_back(run.Tuple({key, value}));
  return run.View("dict_items", std::move(pairs));
}

struct MethodEntry {
  Type type;
  std::string_view name;
  Value (*call)(Run&, const Value&, const Args&);  // nullptr: forbidden
};

constexpr MethodEntry kMethods[] = {
    {Type::kString, "strip", StripText<Ends::kBoth>},
    {Type::kString, "lstrip", StripText<Ends::kLeft>},
    {Type::kString, "rstrip", StripText<Ends::kRight>},
    {Type::kString, "upper", Mapped<Upper>},
    {Type::kString, "lower", Mapped<Lower>},
    {Type::kString, "title", Mapped<Title>},
    {Type::kString, "capitalize", Mapped<Capitalize>},
    {Type::kString, "swapcase", Mapped<SwapCase>},
    {Type::kString, "split", SplitText<false>},
    {Type::kString, "rsplit", SplitText<true>},
    {Type::kString, "splitlines", Lines},
    {Type::kString, "startswith", HasEnd<false>},
    {Type::kString, "endswith", HasEnd<true>},
    {Type::kString, "find", FindText<false, false>},
    {Type::kString, "rfind", FindText<true, false>},
    {Type::kString, "index", FindText<false, true>},
    {Type::kString, "rindex", FindText<true, true>},
    {Type::kString, "count", CountText},
    {Type::kString, "replace", ReplaceText},
    {Type::kString, "join", JoinTexts},
    {Type::kString, "format", FormatMethod},
    {Type::kString, "ljust", Justified<-1>},
    {Type::kString, "center", Justified<0>},
    {Type::kString, "rjust", Justified<1>},
    {Type::kString, "zfill", ZeroFilled},
    {Type::kString, "removeprefix", WithoutEnd<false>},
    {Type::kString, "removesuffix", WithoutEnd<true>},
    {Type::kString, "partition", Partition<false>},
    {Type::kString, "rpartition", Partition<true>},
    {Type::kString, "isalpha", Tested<IsAlpha>},
    {Type::kString, "isdigit", Tested<IsDigit>},
    {Type::kString, "isdecimal", Tested<IsDigit>},
    {Type::kString, "isalnum", Tested<IsAlnum>},
    {Type::kString, "isspace", Tested<IsSpace>},
    {Type::kString, "islower", Tested<IsLower>},
    {Type::kString, "isupper", Tested<IsUpper>},
    {Type::kList, "count", CountItem},
    {Type::kList, "index", IndexOfItem},
    {Type::kList, "copy", Same},
    {Type::kList, "append", nullptr},
    {Type::kList, "clear", nullptr},
    {Type::kList, "extend", nullptr},
    {Type::kList, "insert", nullptr},
    {Type::kList, "pop", nullptr},
    {Type::kList, "remove", nullptr},
    {Type::kList, "reverse", nullptr},
    {Type::kList, "sort", nullptr},
    {Type::kTuple, "count", CountItem},
    {Type::kTuple, "index", IndexOfItem},
    {Type::kRange, "count", CountItem},
    {Type::kRange, "index", IndexOfItem},
    {Type::kDict, "get", DictGet},
    {Type::kDict, "keys", DictKeys},
    {Type::kDict, "values", DictValues},
    {Type::kDict, "items", DictItems},
    {Type::kDict, "copy", Same},
    {Type::kDict, "clear", nullptr},
    {Type::kDict, "pop", nullptr},
    {Type::kDict, "popitem", nullptr},
    {Type::kDict, "setdefault", nullptr},
    {Type::kDict, "update", nullptr},
};

}  // namespace

Access FindMethod(const Value& object, std::string_view name, int* id) {
  if (name.starts_with("__")) return Access::kForbidden;
  for (const MethodEntry& entry : kMethods) {
    if (entry.type != object.type() || entry.name != name) continue;
    *id = static_cast<int>(&entry - kMethods);
    return entry.call ? Access::kMethod : Access::kForbidden;
  }
  return Access::kNone;
}

Value CallMethod(Run& run, const Value& self, int id, const Args& args) {
  return kMethods[id].call(run, self, args);
}

}  // namespace nibble::jinja
