// SPDX-License-Identifier: Apache-2.0
// Floor 5. Truth, equality, order and arithmetic. Integers have 64 bits; what leaves them is an error where
// Python would go on with longer ones.
#include "text/jinja/operators.h"

#include <algorithm>
#include <cmath>

#include "text/jinja/format.h"
#include "text/jinja/pystr.h"

namespace nibble::jinja {
namespace {

using Wide = long double;  // holds every int64_t and every double

Wide Exact(const Value& v) { return v.is(Type::kFloat) ? Wide{v.real()} : static_cast<Wide>(v.integer()); }
double AsDouble(const Value& v) { return v.is(Type::kFloat) ? v.real() : static_cast<double>(v.integer()); }

const char* Symbol(Operator op) {
  constexpr const char* kSymbols[] = {
      "+", "-", "*", "/", "//", "%", "**", "==", "!=", "<", "<=", ">", ">=", "in", "not in"};
  return kSymbols[static_cast<size_t>(op)];
}

template <class T>
bool Holds(Operator op, const T& a, const T& b) {
  switch (op) {
    case Operator::kLt:
      return a < b;
    case Operator::kLe:
      return a <= b;
    case Operator::kGt:
      return a > b;
    default:
      return a >= b;
  }
}

Value Overflow(Run& run, Operator op) { return run.Fail("{} leaves 64 bits", Symbol(op)); }

int64_t FloorDivide(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }

// REQUIRES b is neither 0 nor -1.
int64_t FloorRemainder(int64_t a, int64_t b) {
  const int64_t r = a % b;  // a quotient times b may leave 64 bits
  return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}

// Python's float %: the sign of the divisor.
double FloorMod(double a, double b) {
  double r = std::fmod(a, b);
  if (r != 0) {
    if ((b < 0) != (r < 0)) r += b;
  } else {
    r = std::copysign(0.0, b);
  }
  return r;
}

double FloorQuotient(double a, double b) {
  const double r = FloorMod(a, b);
  const double quotient = (a - r) / b;
  if (quotient == 0) return std::copysign(0.0, a / b);
  const double floor = std::floor(quotient);
  return quotient - floor > 0.5 ? floor + 1 : floor;
}

Value IntegerPower(Run& run, int64_t base, int64_t exponent) {
  if (exponent < 0) {
    if (base == 0) return run.Fail("0 cannot be raised to a negative power");
    return Value::Float(std::pow(static_cast<double>(base), static_cast<double>(exponent)));
  }
  int64_t result = 1;
  bool wrapped = false;  // of the base: matters when it is used once more
  for (;;) {
    if (exponent & 1) {
      if (wrapped || __builtin_mul_overflow(result, base, &result)) return Overflow(run, Operator::kPow);
    }
    exponent >>= 1;
    if (exponent == 0) return Value::Int(result);
    wrapped = __builtin_mul_overflow(base, base, &base) || wrapped;
  }
}

Value Integers(Run& run, Operator op, int64_t a, int64_t b) {
  int64_t r = 0;
  if (b == 0 && (op == Operator::kDiv || op == Operator::kFloorDiv || op == Operator::kMod))
    return run.Fail("{} {} 0: division by zero", a, Symbol(op));
  switch (op) {
    case Operator::kAdd:
      return __builtin_add_overflow(a, b, &r) ? Overflow(run, op) : Value::Int(r);
    case Operator::kSub:
      return __builtin_sub_overflow(a, b, &r) ? Overflow(run, op) : Value::Int(r);
    case Operator::kMul:
      return __builtin_mul_overflow(a, b, &r) ? Overflow(run, op) : Value::Int(r);
    case Operator::kDiv:
      return Value::Float(static_cast<double>(static_cast<Wide>(a) / static_cast<Wide>(b)));
    case Operator::kFloorDiv:
      if (a == INT64_MIN && b == -1) return Overflow(run, op);
      return Value::Int(FloorDivide(a, b));
    case Operator::kMod:
      return Value::Int(b == -1 ? 0 : FloorRemainder(a, b));
    default:
      return IntegerPower(run, a, b);
  }
}

Value Reals(Run& run, Operator op, double a, double b) {
  if (b == 0 && (op == Operator::kDiv || op == Operator::kFloorDiv || op == Operator::kMod))
    return run.Fail("float division by zero");
  switch (op) {
    case Operator::kAdd:
      return Value::Float(a + b);
    case Operator::kSub:
      return Value::Float(a - b);
    case Operator::kMul:
      return Value::Float(a * b);
    case Operator::kDiv:
      return Value::Float(a / b);
    case Operator::kFloorDiv:
      return Value::Float(FloorQuotient(a, b));
    case Operator::kMod:
      return Value::Float(FloorMod(a, b));
    default:
      break;
  }
  const double r = std::pow(a, b);
  if (std::isfinite(a) && std::isfinite(b) && !std::isfinite(r))
    return run.Fail("{} ** {} is no finite number", a, b);
  return Value::Float(r);
}

Value Unsupported(Run& run, Operator op, const Value& a, const Value& b) {
  for (const Value* v : {&a, &b})
    if (v->is_undefined()) return run.Fail("{}", v->message());
  return run.Fail("{} of {} and {}", Symbol(op), TypeName(a), TypeName(b));
}

Value Repeated(Run& run, const Value& v, int64_t times) {
  times = std::max<int64_t>(times, 0);
  const size_t size = v.is_string() ? v.text().size() : v.items().size();
  if (size > 0 && static_cast<uint64_t>(times) > run.limits().bytes / size)
    return run.Fail("{} times {} {}", times, size, v.is_string() ? "bytes" : "items");
  const size_t total = size * static_cast<size_t>(times);
  if (v.is_string()) {
    if (!run.AllowText(total)) return Value::None();
    std::string text;
    text.reserve(total);
    while (text.size() < total) text += v.text();
    return run.String(std::move(text));
  }
  if (!run.AllowItems(total)) return Value::None();
  Values items;
  items.reserve(total);
  while (items.size() < total) items.insert(items.end(), v.items().begin(), v.items().end());
  return v.is(Type::kList) ? run.List(std::move(items)) : run.Tuple(std::move(items));
}

Value Joined(Run& run, const Value& a, const Value& b) {
  if (a.is_string()) {
    if (!run.AllowText(a.text().size() + b.text().size())) return Value::None();
    return run.String(a.text() + b.text());
  }
  if (!run.AllowItems(a.items().size() + b.items().size())) return Value::None();
  Values items = a.items();
  items.insert(items.end(), b.items().begin(), b.items().end());
  return a.is(Type::kList) ? run.List(std::move(items)) : run.Tuple(std::move(items));
}

bool EqualItems(Run& run, const Values& a, const Values& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i)
    if (!Equal(run, a[i], b[i])) return false;
  return true;
}

bool EqualEntries(Run& run, const Entries& a, const Entries& b) {
  if (a.size() != b.size()) return false;
  for (const auto& [key, value] : a) {
    const Value* other = Lookup(run, b, key);
    if (!other || !Equal(run, value, *other)) return false;
  }
  return true;
}

}  // namespace

bool Truthy(const Value& v) {
  switch (v.type()) {
    case Type::kMissing:
    case Type::kUndefined:
    case Type::kNone:
      return false;
    case Type::kBool:
    case Type::kInt:
      return v.integer() != 0;
    case Type::kFloat:
      return v.real() != 0;
    case Type::kString:
      return !v.text().empty();
    default:
      return LengthOf(v) != 0;  // -1 for what has no length, which is true
  }
}

bool Equal(Run& run, const Value& a, const Value& b) {
  if (!run.Step()) return false;
  if (a.is_number() && b.is_number()) {
    if (a.is_integral() && b.is_integral()) return a.integer() == b.integer();
    return Exact(a) == Exact(b);
  }
  if (a.type() != b.type()) return false;
  switch (a.type()) {
    case Type::kString:
      return run.Scan(std::min(a.text().size(), b.text().size())) && a.text() == b.text();
    case Type::kList:
    case Type::kTuple:
      return a.identity() == b.identity() || EqualItems(run, a.items(), b.items());
    case Type::kDict:
      return a.identity() == b.identity() || EqualEntries(run, a.entries(), b.entries());
    case Type::kRange:
      return a.range().size() == b.range().size() &&
             (a.range().size() == 0 || (a.range().start == b.range().start &&
                                        (a.range().size() == 1 || a.range().step == b.range().step)));
    case Type::kFunction:
      return a.id() == b.id();
    case Type::kMissing:
    case Type::kUndefined:
    case Type::kNone:
      return true;
    default:
      return a.identity() == b.identity();
  }
}

bool Ordered(Run& run, Operator op, const Value& a, const Value& b) {
  if (!run.Step()) return false;
  if (a.is_number() && b.is_number()) {
    if (a.is_integral() && b.is_integral()) return Holds(op, a.integer(), b.integer());
    return Holds(op, Exact(a), Exact(b));
  }
  if (a.is_string() && b.is_string())  // the order of UTF-8 bytes is that of code points
    return run.Scan(std::min(a.text().size(), b.text().size())) && Holds(op, a.text(), b.text());
  if (a.is_list() && a.type() == b.type()) {
    const Values &x = a.items(), &y = b.items();
    for (size_t i = 0; i < std::min(x.size(), y.size()); ++i)
      if (!Equal(run, x[i], y[i])) return Ordered(run, op, x[i], y[i]);
    return Holds(op, x.size(), y.size());
  }
  Unsupported(run, op, a, b);
  return false;
}

bool Contains(Run& run, const Value& container, const Value& item) {
  if (container.is_string()) {
    if (!item.is_string()) {
      Unsupported(run, Operator::kIn, item, container);
      return false;
    }
    return run.Scan(container.text().size()) && Search(container.text(), item.text()) != Text::npos;
  }
  if (container.is(Type::kDict)) {
    if (!Hashable(item)) run.Fail("a {} cannot be a key", TypeName(item));
    return !run.failed() && Lookup(run, container.entries(), item) != nullptr;
  }
  if (container.is(Type::kIterator)) {  // is walked as far as the item
    Value next;
    while (!run.failed() && container.TakeNext(&next))
      if (Equal(run, next, item)) return true;
    return false;
  }
  const auto is_item = [&](const Value& v) {
    const bool same = v.identity() != nullptr && v.identity() == item.identity();
    return same || Equal(run, v, item);
  };
  if (container.is_list()) return std::any_of(container.items().begin(), container.items().end(), is_item);
  const Values items = Walked(run, container);
  return std::any_of(items.begin(), items.end(), is_item);
}

bool Compare(Run& run, Operator op, const Value& a, const Value& b) {
  switch (op) {
    case Operator::kEq:
      return Equal(run, a, b);
    case Operator::kNe:
      return !Equal(run, a, b);
    case Operator::kIn:
      return Contains(run, b, a);
    case Operator::kNotIn:
      return !Contains(run, b, a);
    default:
      return Ordered(run, op, a, b);
  }
}

Value Arithmetic(Run& run, Operator op, const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral()) return Integers(run, op, a.integer(), b.integer());
  if (a.is_number() && b.is_number()) return Reals(run, op, AsDouble(a), AsDouble(b));
  if (op == Operator::kAdd && a.type() == b.type() && (a.is_string() || a.is_list()))
    return Joined(run, a, b);
  if (op == Operator::kMod && a.is_string()) return PercentFormat(run, a.text(), b);
  if (op == Operator::kMul) {
    if (b.is_integral() && (a.is_string() || a.is_list())) return Repeated(run, a, b.integer());
    if (a.is_integral() && (b.is_string() || b.is_list())) return Repeated(run, b, a.integer());
  }
  return Unsupported(run, op, a, b);
}

Value Negated(Run& run, const Value& v) {
  if (v.is_integral())
    return v.integer() == INT64_MIN ? Overflow(run, Operator::kSub) : Value::Int(-v.integer());
  if (v.is(Type::kFloat)) return Value::Float(-v.real());
  return v.is_undefined() ? run.Fail("{}", v.message()) : run.Fail("- of {}", TypeName(v));
}

Value Plus(Run& run, const Value& v) {
  if (v.is_integral()) return Value::Int(v.integer());
  if (v.is(Type::kFloat)) return v;
  return v.is_undefined() ? run.Fail("{}", v.message()) : run.Fail("+ of {}", TypeName(v));
}

}  // namespace nibble::jinja
