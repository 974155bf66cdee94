// SPDX-License-Identifier: Apache-2.0
// Floor 5. The tests of Jinja: `value is name(arguments)`.
#include <algorithm>

#include "base/printable.h"
#include "text/jinja/filters.h"
#include "text/jinja/operators.h"
#include "text/jinja/print.h"
#include "text/jinja/pystr.h"

namespace nibble::jinja {
namespace {

// Tests without arguments, which never fail.
struct Predicate {
  std::string_view name;
  bool (*holds)(const Value&);
};

bool IsCallable(const Value& v) {
  return v.is(Type::kMethod) || v.is(Type::kFunction) || v.is(Type::kMacro) || v.is(Type::kLoop) ||
         v.is_undefined();
}

bool IsSequence(const Value& v) {  // has a length and subscripts
  return v.is_string() || v.is_list() || v.is(Type::kDict) || v.is(Type::kRange) || v.is_undefined();
}

constexpr Predicate kPredicates[] = {
    {"defined", [](const Value& v) { return !v.is_undefined(); }},
    {"undefined", [](const Value& v) { return v.is_undefined(); }},
    {"none", [](const Value& v) { return v.is_none(); }},
    {"boolean", [](const Value& v) { return v.is(Type::kBool); }},
    {"true", [](const Value& v) { return v.is(Type::kBool) && v.boolean(); }},
    {"false", [](const Value& v) { return v.is(Type::kBool) && !v.boolean(); }},
    {"integer", [](const Value& v) { return v.is(Type::kInt); }},
    {"float", [](const Value& v) { return v.is(Type::kFloat); }},
    {"number", [](const Value& v) { return v.is_number(); }},
    {"string", [](const Value& v) { return v.is_string(); }},
    {"mapping", [](const Value& v) { return v.is(Type::kDict); }},
    {"sequence", IsSequence},
    {"iterable", CanWalk},
    {"callable", IsCallable},
    {"escaped", [](const Value&) { return false; }},  // nothing is: there is no automatic escaping
};

struct Comparison {
  std::string_view name;
  Operator op;
};

constexpr Comparison kComparisons[] = {
    {"==", Operator::kEq},       {"eq", Operator::kEq},          {"equalto", Operator::kEq},
    {"!=", Operator::kNe},       {"ne", Operator::kNe},          {">", Operator::kGt},
    {"gt", Operator::kGt},       {"greaterthan", Operator::kGt}, {"ge", Operator::kGe},
    {">=", Operator::kGe},       {"<", Operator::kLt},           {"lt", Operator::kLt},
    {"lessthan", Operator::kLt}, {"<=", Operator::kLe},          {"le", Operator::kLe},
    {"in", Operator::kIn},
};

constexpr std::string_view kOthers[] = {"odd",   "even",   "divisibleby", "lower",
                                        "upper", "sameas", "filter",      "test"};

template <size_t n, class T>
const T* FindIn(const T (&table)[n], std::string_view name) {
  for (const T& entry : table)
    if (entry.name == name) return &entry;
  return nullptr;
}

bool SameObject(const Value& a, const Value& b) {
  if (a.type() != b.type()) return false;
  if (a.is_none()) return true;
  if (a.is_integral()) return a.integer() == b.integer();
  return a.identity() != nullptr && a.identity() == b.identity();
}

bool RemainderIs(Run& run, const Value& v, const Value& divisor, int64_t wanted) {
  const Value rest = Arithmetic(run, Operator::kMod, v, divisor);
  return !run.failed() && Equal(run, rest, Value::Int(wanted));
}

bool Other(Run& run, std::string_view name, const Value& input, const Args& args) {
  const bool one = name == "divisibleby" || name == "sameas";
  const Bound b(run, name, args, {one ? (name == "sameas" ? "other" : "num") : ""}, one);
  if (!b.ok()) return false;
  if (!one && b.has(0)) return run.Fail("the test {} takes no arguments", name), false;
  if (name == "odd") return RemainderIs(run, input, Value::Int(2), 1);
  if (name == "even") return RemainderIs(run, input, Value::Int(2), 0);
  if (name == "divisibleby") return RemainderIs(run, input, b[0], 0);
  if (name == "sameas") return SameObject(input, b[0]);
  if (name == "lower") return IsLower(Str(run, input));
  if (name == "upper") return IsUpper(Str(run, input));
  if (!Hashable(input)) return run.Fail("a {} cannot be a name", TypeName(input)), false;
  return input.is_string() && (name == "filter" ? IsFilter(input.text()) : IsTest(input.text()));
}

}  // namespace

bool IsTest(std::string_view name) {
  return FindIn(kPredicates, name) || FindIn(kComparisons, name) ||
         std::find(std::begin(kOthers), std::end(kOthers), name) != std::end(kOthers);
}

bool CallTest(Run& run, std::string_view name, const Value& input, const Args& args) {
  if (!run.Step()) return false;
  if (const Predicate* predicate = FindIn(kPredicates, name)) {
    if (!args.positional.empty() || !args.named.empty())
      return run.Fail("the test {} takes no arguments", name), false;
    return predicate->holds(input);
  }
  if (const Comparison* comparison = FindIn(kComparisons, name)) {
    const Bound b(run, name, args, {""}, 1);
    return b.ok() && Compare(run, comparison->op, input, b[0]);
  }
  if (!IsTest(name)) return run.Fail("no test named {}", Printable(name)), false;
  return Other(run, name, input, args);
}

}  // namespace nibble::jinja
