// SPDX-License-Identifier: Apache-2.0
// Floor 5. Filters on lists and dicts.
#include "text/jinja/filters_lists.h"

#include <algorithm>

#include "base/printable.h"
#include "base/utf8.h"
#include "text/jinja/filters.h"
#include "text/jinja/operators.h"
#include "text/jinja/print.h"
#include "text/jinja/pystr.h"

namespace nibble::jinja {
namespace {

Values WalkedOrFail(Run& run, std::string_view filter, const Value& v) {
  if (CanWalk(v)) return Walked(run, v);
  run.Fail("{} of a {}", filter, TypeName(v));
  return {};
}

// ---- attribute="a.b.0" ----
using Path = Values;  // names and indices

Path MakePath(Run& run, const Value& attribute) {
  Path path;
  if (attribute.is_missing() || attribute.is_none()) return path;
  if (!attribute.is_string()) return {attribute};
  for (const Text part : Split(attribute.text(), ".", -1)) {
    int64_t index = 0;
    const bool digits = IsDigit(part) && part.size() < 10 &&
                        std::all_of(part.begin(), part.end(), [](char c) { return c >= '0' && c <= '9'; });
    for (const char c : digits ? part : Text()) index = index * 10 + (c - '0');
    path.push_back(digits ? Value::Int(index) : run.String(std::string(part)));
  }
  return path;
}

Value Follow(Run& run, const Path& path, Value item, const Value& fallback = {}) {
  for (const Value& part : path) {
    if (!run.Step()) return Value::None();
    item = GetItem(run, item, part);
    if (!fallback.is_missing() && !fallback.is_none() && item.is_undefined()) item = fallback;
  }
  return item;
}

// What sort, unique, min, max and groupby compare.
Value Key(Run& run, const Path& path, const Value& item, bool case_sensitive, const Value& fallback = {}) {
  Value key = Follow(run, path, item, fallback);
  if (case_sensitive || !key.is_string() || run.failed()) return key;
  return run.AllowText(key.text().size()) ? run.String(Lower(key.text())) : Value::None();
}

struct Keyed {
  Value key, item;
};

std::vector<Keyed> WithKeys(Run& run, const Values& items, const Path& path, bool case_sensitive,
                            const Value& fallback = {}) {
  std::vector<Keyed> out;
  for (const Value& item : items) {
    if (run.failed()) break;
    out.push_back({Key(run, path, item, case_sensitive, fallback), item});
  }
  return out;
}

// sorted(): stable, also in reverse. Insertion into runs would need fewer comparisons, but these are counted.
void SortKeyed(Run& run, std::vector<Keyed>* items, bool reverse) {
  // With values that have no order (NaN, or a failure) std::stable_sort still ends and stays in bounds.
  std::stable_sort(items->begin(), items->end(), [&](const Keyed& a, const Keyed& b) {
    return !run.failed() &&
           (reverse ? Ordered(run, Operator::kLt, b.key, a.key) : Ordered(run, Operator::kLt, a.key, b.key));
  });
}

Value ItemsOf(Run& run, const std::vector<Keyed>& keyed) {
  Values items;
  for (const Keyed& k : keyed) items.push_back(k.item);
  return run.failed() ? Value::None() : run.List(std::move(items));
}

Value Sort(Run& run, const Value& input, const Args& args) {
  const Bound b(run, "sort", args, {"reverse", "case_sensitive", "attribute"});
  const Values items = WalkedOrFail(run, "sort", input);
  if (run.failed()) return Value::None();
  const bool case_sensitive = b.Flag(1, false);
  std::vector<Path> paths;  // "a,b" sorts by a, then by b
  if (b[2].is_string()) {
    for (const Text part : Split(b[2].text(), ",", -1))
      paths.push_back(MakePath(run, run.String(std::string(part))));
  } else {
    paths.push_back(MakePath(run, b[2]));
  }
  std::vector<Keyed> keyed;
  for (const Value& item : items) {
    Values keys;
    for (const Path& path : paths) keys.push_back(Key(run, path, item, case_sensitive));
    if (run.failed()) return Value::None();
    keyed.push_back({run.List(std::move(keys)), item});
  }
  SortKeyed(run, &keyed, b.Flag(0, false));
  return ItemsOf(run, keyed);
}

Value DictSort(Run& run, const Value& input, const Args& args) {
  Bound b(run, "dictsort", args, {"case_sensitive", "by", "reverse"});
  const std::string by = b.Text(1, "key");
  if (by != "key" && by != "value") return run.Fail("dictsort: by is key or value");
  if (!input.is(Type::kDict))
    return input.is_undefined() ? run.Fail("{}", input.message())
                                : run.Fail("dictsort of a {}", TypeName(input));
  Values pairs;
  for (const auto& [key, value] : input.entries()) pairs.push_back(run.Tuple({key, value}));
  std::vector<Keyed> keyed = WithKeys(run, pairs, {Value::Int(by == "value")}, b.Flag(0, false));
  SortKeyed(run, &keyed, b.Flag(2, false));
  return ItemsOf(run, keyed);
}

Value Unique(Run& run, const Value& input, const Args& args) {
  const Bound b(run, "unique", args, {"case_sensitive", "attribute"});
  const Values items = WalkedOrFail(run, "unique", input);
  Values out, seen;
  for (const Keyed& k : WithKeys(run, items, MakePath(run, b[1]), b.Flag(0, false))) {
    if (!Hashable(k.key)) run.Fail("unique: a {} cannot be compared by hash", TypeName(k.key));
    const bool known = std::any_of(seen.begin(), seen.end(),
                                   [&](const Value& v) { return !run.failed() && Equal(run, v, k.key); });
    if (run.failed()) return Value::None();
    if (known) continue;
    seen.push_back(k.key);
    out.push_back(k.item);
  }
  return run.Iterator(std::move(out));
}

template <bool largest>
Value Extreme(Run& run, const Value& input, const Args& args) {
  const Bound b(run, largest ? "max" : "min", args, {"case_sensitive", "attribute"});
  const Values items = WalkedOrFail(run, largest ? "max" : "min", input);
  if (run.failed()) return Value::None();
  if (items.empty()) return Value::Undefined("no item: the sequence was empty");
  const std::vector<Keyed> keyed = WithKeys(run, items, MakePath(run, b[1]), b.Flag(0, false));
  const Keyed* best = keyed.data();
  for (const Keyed& k : keyed) {
    if (&k == keyed.data() || run.failed()) continue;
    if (Ordered(run, largest ? Operator::kGt : Operator::kLt, k.key, best->key)) best = &k;
  }
  return run.failed() ? Value::None() : best->item;
}

Value GroupBy(Run& run, const Value& input, const Args& args) {
  const Bound b(run, "groupby", args, {"attribute", "default", "case_sensitive"}, 1);
  const Values items = WalkedOrFail(run, "groupby", input);
  if (run.failed()) return Value::None();
  const Path path = MakePath(run, b[0]);
  std::vector<Keyed> keyed = WithKeys(run, items, path, b.Flag(2, false), b[1]);
  SortKeyed(run, &keyed, false);
  Values groups;
  for (size_t i = 0; i < keyed.size() && !run.failed();) {
    Values group;
    const size_t first = i;
    for (; i < keyed.size() && Equal(run, keyed[i].key, keyed[first].key); ++i)
      group.push_back(keyed[i].item);
    if (i == first) return run.Fail("groupby: a key that does not equal itself");
    groups.push_back(run.Tuple({Follow(run, path, group[0], b[1]), run.List(group)}));
  }
  return run.failed() ? Value::None() : run.List(std::move(groups));
}

// ---- walking ----
Value LengthFilter(Run& run, const Value& input, const Args& args) {
  if (!Bound(run, "length", args, {}).ok()) return Value::None();
  if (input.is_string() && !run.Scan(input.text().size())) return Value::None();
  const int64_t n = LengthOf(input);
  return n < 0 ? run.Fail("length of a {}", TypeName(input)) : Value::Int(n);
}

Value First(Run& run, const Value& input, const Args& args) {
  if (!Bound(run, "first", args, {}).ok()) return Value::None();
  Value item;
  if (input.is(Type::kIterator)) {
    if (input.TakeNext(&item)) return item;
  } else if (input.is_list() ? !input.items().empty() : input.is_string() && !input.text().empty()) {
    return GetItem(run, input, Value::Int(0));
  } else if (const Values items = WalkedOrFail(run, "first", input); !items.empty()) {
    return items[0];
  }
  return run.failed() ? Value::None() : Value::Undefined("no first item, sequence was empty");
}

Value Last(Run& run, const Value& input, const Args& args) {
  if (!Bound(run, "last", args, {}).ok()) return Value::None();
  if (input.is(Type::kIterator)) return run.Fail("last of a generator");  // reversed() needs a sequence
  if (input.is_list() && !input.items().empty()) return input.items().back();
  const Values items = WalkedOrFail(run, "last", input);
  if (run.failed()) return Value::None();
  return items.empty() ? Value::Undefined("no last item, sequence was empty") : items.back();
}

Value Join(Run& run, const Value& input, const Args& args) {
  Bound b(run, "join", args, {"d", "attribute"});
  const std::string between = b.Text(0, "");
  const Values items = WalkedOrFail(run, "join", input);
  const Path path = MakePath(run, b[1]);
  std::string out;
  bool first = true;
  for (const Value& item : items) {
    if (!first) out += between;
    first = false;
    out += Str(run, Follow(run, path, item));
    if (run.failed() || out.size() > run.limits().string_bytes) break;
  }
  return run.String(std::move(out));
}

Value ToList(Run& run, const Value& input, const Args& args) {
  if (!Bound(run, "list", args, {}).ok()) return Value::None();
  Values items = WalkedOrFail(run, "list", input);
  return run.failed() ? Value::None() : run.List(std::move(items));
}

Value ItemsFilter(Run& run, const Value& input, const Args& args) {
  if (!Bound(run, "items", args, {}).ok()) return Value::None();
  Values pairs;
  if (!input.is_undefined()) {
    if (!input.is(Type::kDict)) return run.Fail("items of a {}", TypeName(input));
    for (const auto& [key, value] : input.entries()) pairs.push_back(run.Tuple({key, value}));
  }
  return run.Iterator(std::move(pairs));
}

Value Reverse(Run& run, const Value& input, const Args& args) {
  if (!Bound(run, "reverse", args, {}).ok()) return Value::None();
  if (input.is_string()) {
    const std::string& text = input.text();
    std::string out;
    if (!run.AllowText(text.size())) return Value::None();
    for (size_t pos = text.size(); pos > 0;) {
      const size_t end = pos;
      PreviousChar(text, &pos);
      out += text.substr(pos, end - pos);
    }
    return run.String(std::move(out));
  }
  Values items = WalkedOrFail(run, "reverse", input);
  std::reverse(items.begin(), items.end());
  if (run.failed()) return Value::None();
  return input.is(Type::kIterator) ? run.List(std::move(items)) : run.Iterator(std::move(items));
}

Value Sum(Run& run, const Value& input, const Args& args) {
  const Bound b(run, "sum", args, {"attribute", "start"});
  const Values items = WalkedOrFail(run, "sum", input);
  const Path path = MakePath(run, b[0]);
  Value sum = b.has(1) ? b[1] : Value::Int(0);
  if (sum.is_string()) return run.Fail("sum of str");
  for (const Value& item : items) {
    if (run.failed()) break;
    const Value v = Follow(run, path, item);
    sum = run.failed() ? Value::None() : Arithmetic(run, Operator::kAdd, sum, v);
  }
  return run.failed() ? Value::None() : sum;
}

Value Batch(Run& run, const Value& input, const Args& args) {
  Bound b(run, "batch", args, {"linecount", "fill_with"}, 1);
  const int64_t size = b.Int(0, 1);
  Values rows, row;
  for (const Value& item : WalkedOrFail(run, "batch", input)) {
    if (static_cast<int64_t>(row.size()) == size) rows.push_back(run.List(std::exchange(row, {})));
    row.push_back(item);
  }
  if (!row.empty()) {
    const bool fills = b.has(1) && !b[1].is_none() && static_cast<int64_t>(row.size()) < size;
    if (fills && run.AllowItems(static_cast<size_t>(size))) row.resize(static_cast<size_t>(size), b[1]);
    rows.push_back(run.List(std::move(row)));
  }
  return run.Iterator(std::move(rows));
}

Value SliceFilter(Run& run, const Value& input, const Args& args) {
  Bound b(run, "slice", args, {"slices", "fill_with"}, 1);
  const int64_t slices = b.Int(0, 1);
  const Values items = WalkedOrFail(run, "slice", input);
  if (!run.failed() && slices == 0) run.Fail("slice into 0 parts");
  if (run.failed() || !run.AllowItems(static_cast<size_t>(std::max<int64_t>(slices, 0))))
    return Value::None();
  Values out;
  const int64_t size = static_cast<int64_t>(items.size());
  for (int64_t i = 0, at = 0; i < slices && run.Step(); ++i) {
    const bool longer = i < size % slices;
    const int64_t n = size / slices + longer;
    Values part(items.begin() + at, items.begin() + at + n);
    if (b.has(1) && !b[1].is_none() && !longer) part.push_back(b[1]);
    out.push_back(run.List(std::move(part)));
    at += n;
  }
  return run.Iterator(std::move(out));
}

// ---- map and select ----
Value Map(Run& run, const Value& input, const Args& args) {
  Values out;
  if (!Truthy(input)) return run.Iterator({});
  const Values items = WalkedOrFail(run, "map", input);
  if (run.failed()) return Value::None();
  if (args.positional.empty()) {
    const Bound b(run, "map", args, {"", "attribute", "default"});
    if (!b.ok() || !b.has(1)) return run.Fail("map wants a filter or an attribute");
    const Path path = MakePath(run, b[1]);
    for (const Value& item : items) {
      if (run.failed()) break;
      out.push_back(Follow(run, path, item, b[2]));
    }
    return run.Iterator(std::move(out));
  }
  const Value name = args.positional[0];
  if (!name.is_string()) return run.Fail("map: a filter's name is a str, not {}", TypeName(name));
  const Args rest{Values(args.positional.begin() + 1, args.positional.end()), args.named};
  for (const Value& item : items) {
    const Deeper deeper(run);  // map('map', 'map', ...)
    if (run.failed()) break;
    out.push_back(CallFilter(run, name.text(), item, rest));
  }
  return run.Iterator(std::move(out));
}

template <bool wanted, bool by_attribute>
Value Select(Run& run, const Value& input, const Args& args) {
  if (!Truthy(input)) return run.Iterator({});
  const Values items = WalkedOrFail(run, "select", input);
  Path path;
  size_t used = 0;
  if (by_attribute) {
    if (args.positional.empty()) return run.Fail("selectattr wants an attribute");
    path = MakePath(run, args.positional[used++]);
  }
  Value name;
  if (used < args.positional.size()) name = args.positional[used++];
  if (!name.is_missing() && !name.is_string())
    return run.Fail("select: a test's name is a str, not {}", TypeName(name));
  const Args rest{Values(args.positional.begin() + static_cast<ptrdiff_t>(used), args.positional.end()),
                  args.named};
  Values out;
  for (const Value& item : items) {
    if (run.failed()) break;
    const Value v = Follow(run, path, item);
    const bool holds = name.is_missing() ? Truthy(v) : !run.failed() && CallTest(run, name.text(), v, rest);
    if (holds == wanted) out.push_back(item);
  }
  return run.Iterator(std::move(out));
}

struct FilterEntry {
  std::string_view name;
  Value (*call)(Run&, const Value&, const Args&);
};

constexpr FilterEntry kFilters[] = {
    {"batch", Batch},
    {"count", LengthFilter},
    {"dictsort", DictSort},
    {"first", First},
    {"groupby", GroupBy},
    {"items", ItemsFilter},
    {"join", Join},
    {"last", Last},
    {"length", LengthFilter},
    {"list", ToList},
    {"map", Map},
    {"max", Extreme<true>},
    {"min", Extreme<false>},
    {"reject", Select<false, false>},
    {"rejectattr", Select<false, true>},
    {"reverse", Reverse},
    {"select", Select<true, false>},
    {"selectattr", Select<true, true>},
    {"slice", SliceFilter},
    {"sort", Sort},
    {"sum", Sum},
    {"unique", Unique},
};

}  // namespace

bool IsListFilter(std::string_view name) {
  return std::any_of(std::begin(kFilters), std::end(kFilters),
                     [name](const FilterEntry& entry) { return entry.name == name; });
}

Value CallListFilter(Run& run, std::string_view name, const Value& input, const Args& args) {
  for (const FilterEntry& entry : kFilters)
    if (entry.name == name) return entry.call(run, input, args);
  return run.Fail("no filter named {}", Printable(name));
}

}  // namespace nibble::jinja
