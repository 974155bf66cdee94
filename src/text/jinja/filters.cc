// SPDX-License-Identifier: Apache-2.0
// Floor 5. The filters on single values: text, numbers, JSON, defaults. Those on lists are in
// filters_lists.cc.
#include "text/jinja/filters.h"

#include <algorithm>
#include <cmath>

#include "base/printable.h"
#include "text/jinja/filters_lists.h"
#include "text/jinja/format.h"
#include "text/jinja/numbers.h"
#include "text/jinja/operators.h"
#include "text/jinja/print.h"
#include "text/jinja/pystr.h"

namespace nibble::jinja {
namespace {

Value Unusable(Run& run, std::string_view filter, const Value& v) {
  if (v.is_undefined()) return run.Fail("{}", v.message());
  return run.Fail("{} of a {}", filter, TypeName(v));
}

template <std::string (*map)(Text)>
Value MapText(Run& run, const Value& input, const Args& args) {
  if (!Bound(run, "the filter", args, {}).ok()) return Value::None();
  const std::string text = Str(run, input);
  return run.AllowText(text.size()) ? run.String(map(text)) : Value::None();
}

std::string Escaped(Text s) {
  std::string out;
  for (const char c : s) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '\'':
        out += "&#39;";
        break;
      case '"':
        out += "&#34;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string Unchanged(Text s) { return std::string(s); }

Value ToJsonFilter(Run& run, const Value& input, const Args& args) {
  Bound b(run, "tojson", args, {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style;
  style.ascii = b.Flag(0, false);
  style.sort_keys = b.Flag(3, false);
  if (b.has(1) && !b[1].is_none()) {
    if (b[1].is_string()) {
      style.indent = b[1].text();
    } else {
      const int64_t width = b.Int(1, 0);
      if (!run.AllowText(static_cast<size_t>(std::max<int64_t>(width, 0)))) return Value::None();
      style.indent = std::string(static_cast<size_t>(std::max<int64_t>(width, 0)), ' ');
    }
    style.between = ',';
  }
  if (b.has(2) && !b[2].is_none()) {
    const Values two = CanWalk(b[2]) ? Walked(run, b[2]) : Values();
    if (two.size() != 2 || !two[0].is_string() || !two[1].is_string())
      return run.Fail("tojson: separators are two str");
    style.between = two[0].text();
    style.after_key = two[1].text();
  }
  return run.failed() ? Value::None() : run.String(ToJson(run, input, style));
}

Value Trim(Run& run, const Value& input, const Args& args) {
  const Bound b(run, "trim", args, {"chars"});
  if (b.has(0) && !b[0].is_none() && !b[0].is_string()) return Unusable(run, "trim", b[0]);
  const std::string text = Str(run, input);
  if (!b.has(0) || b[0].is_none()) return run.String(std::string(Strip(text)));
  if (!run.Step(static_cast<int64_t>(b[0].text().size()) * static_cast<int64_t>(text.size()) / 64))
    return Value::None();
  return run.String(std::string(Strip(text, b[0].text())));
}

Value ReplaceFilter(Run& run, const Value& input, const Args& args) {
  Bound b(run, "replace", args, {"old", "new", "count"}, 2);
  const int64_t max = b.has(2) && b[2].is_none() ? -1 : b.Int(2, -1);
  const std::string text = Str(run, input), old = b.Text(0, ""), with = b.Text(1, "");
  return run.failed() ? Value::None() : Replaced(run, text, old, with, max);
}

Value Default(Run& run, const Value& input, const Args& args) {
  const Bound b(run, "default", args, {"default_value", "boolean"});
  if (!b.ok()) return Value::None();
  if (!input.is_undefined() && !(b.Flag(1, false) && !Truthy(input))) return input;
  return b.has(0) ? b[0] : run.String({});
}

Value ToInt(Run& run, const Value& input, const Args& args) {
  Bound b(run, "int", args, {"default", "base"});
  const Value fallback = b.has(0) ? b[0] : Value::Int(0);
  const int64_t base = b.Int(1, 10);
  if (run.failed()) return Value::None();
  if (input.is_integral()) return Value::Int(input.integer());
  double real = 0;
  if (input.is_string()) {
    int64_t value = 0;
    const Parsed parsed = ParseInteger(input.text(), base, &value);
    if (parsed == Parsed::kNumber) return Value::Int(value);
    if (parsed == Parsed::kTooLarge) return run.Fail("int: {} leaves 64 bits", Printable(input.text()));
    const auto number = ParseReal(input.text());
    if (!number) return fallback;
    real = *number;
  } else if (input.is(Type::kFloat)) {
    real = input.real();
  } else if (input.is_undefined()) {
    return Unusable(run, "int", input);
  } else {
    return fallback;
  }
  if (!std::isfinite(real)) {  // Python's int(inf) is an OverflowError that the filter catches only for text
    return input.is_string() || std::isnan(real) ? fallback : run.Fail("int: infinity has no integer");
  }
  if (std::fabs(real) >= 9223372036854775808.0) return run.Fail("int: {} leaves 64 bits", real);
  return Value::Int(static_cast<int64_t>(real));
}

Value ToFloat(Run& run, const Value& input, const Args& args) {
  const Bound b(run, "float", args, {"default"});
  if (!b.ok()) return Value::None();
  if (input.is(Type::kFloat)) return input;
  if (input.is_integral()) return Value::Float(static_cast<double>(input.integer()));
  if (input.is_undefined()) return Unusable(run, "float", input);
  if (input.is_string())
    if (const auto number = ParseReal(input.text())) return Value::Float(*number);
  return b.has(0) ? b[0] : Value::Float(0);
}

Value Absolute(Run& run, const Value& input, const Args& args) {
  if (!Bound(run, "abs", args, {}).ok()) return Value::None();
  if (input.is(Type::kFloat)) return Value::Float(std::fabs(input.real()));
  if (!input.is_integral()) return Unusable(run, "abs", input);
  return input.integer() < 0 ? Negated(run, input) : Value::Int(input.integer());
}

Value Round(Run& run, const Value& input, const Args& args) {
  Bound b(run, "round", args, {"precision", "method"});
  const int64_t digits = b.Int(0, 0);
  const std::string method = b.Text(1, "common");
  if (run.failed()) return Value::None();
  if (!input.is_number()) return Unusable(run, "round", input);
  if (method == "common") {
    if (input.is(Type::kFloat)) return Value::Float(RoundReal(input.real(), digits));
    if (digits >= 0) return Value::Int(input.integer());
    return run.Fail("round of an int to tens is not supported");
  }
  if (method != "ceil" && method != "floor") return run.Fail("round: the method is common, ceil or floor");
  if (digits < 0 || digits > 22)  // 10^22 is the largest power of ten that a double holds exactly
    return run.Fail("round: {} digits, wanted 0 to 22 with {}", digits, method);
  const double unit = std::pow(10.0, static_cast<double>(digits));
  const double value = input.is(Type::kFloat) ? input.real() : static_cast<double>(input.integer());
  const double scaled = value * unit;
  if (!std::isfinite(scaled)) return run.Fail("round: {} has no integer", scaled);
  // + 0.0: Python's ceil and floor are integers, which have no -0.
  return Value::Float(((method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) + 0.0) / unit);
}

Value FormatFilter(Run& run, const Value& input, const Args& args) {
  const std::string format = Str(run, input);
  if (!args.positional.empty() && !args.named.empty())
    return run.Fail("format takes values by position or by name, not both");
  if (args.named.empty()) return PercentFormat(run, format, run.Tuple(args.positional));
  Entries entries;
  for (const auto& [name, value] : args.named) entries.emplace_back(Value::String(name), value);
  return PercentFormat(run, format, run.Dict(std::move(entries)));
}

Value Indent(Run& run, const Value& input, const Args& args) {
  Bound b(run, "indent", args, {"width", "first", "blank"});
  if (!input.is_string()) return Unusable(run, "indent", input);
  const int64_t width = b.has(0) && b[0].is_string() ? 0 : b.Int(0, 4);
  if (!b.ok() || run.failed() || !run.AllowText(static_cast<size_t>(std::max<int64_t>(width, 0))))
    return Value::None();
  const std::string pad = b.has(0) && b[0].is_string()
                              ? b[0].text()
                              : std::string(static_cast<size_t>(std::max<int64_t>(width, 0)), ' ');
  const bool first = b.Flag(1, false), blank = b.Flag(2, false);
  std::string out;
  bool is_first = true;
  std::string ended = input.text();
  ended += '\n';
  for (const Text line : SplitLines(ended)) {
    if (!is_first) out += '\n';
    if (is_first ? first : (blank || !line.empty())) out += pad;
    is_first = false;
    out += line;
    if (out.size() > run.limits().string_bytes || !run.Step()) break;
  }
  return run.String(std::move(out));
}

Value Attr(Run& run, const Value& input, const Args& args) {
  Bound b(run, "attr", args, {"name"}, 1);
  if (!b.ok()) return Value::None();
  if (!b[0].is_string()) return run.Fail("attr: wanted a str, found {}", TypeName(b[0]));
  // Attributes alone, no entries: of a dict only its methods.
  if (input.is(Type::kDict) || input.is_undefined()) {
    if (input.is_undefined()) return run.Fail("{}", input.message());
    return GetAttr(run, Value::Dict({}), b[0].text());
  }
  return GetAttr(run, input, b[0].text());
}

struct FilterEntry {
  std::string_view name;
  Value (*call)(Run&, const Value&, const Args&);
};

constexpr FilterEntry kFilters[] = {
    {"abs", Absolute},
    {"attr", Attr},
    {"capitalize", MapText<Capitalize>},
    {"d", Default},
    {"default", Default},
    {"e", MapText<Escaped>},
    {"escape", MapText<Escaped>},
    {"float", ToFloat},
    {"forceescape", MapText<Escaped>},
    {"format", FormatFilter},
    {"indent", Indent},
    {"int", ToInt},
    {"lower", MapText<Lower>},
    {"replace", ReplaceFilter},
    {"round", Round},
    {"safe", MapText<Unchanged>},
    {"string", MapText<Unchanged>},
    {"title", MapText<TitleWords>},
    {"tojson", ToJsonFilter},
    {"trim", Trim},
    {"upper", MapText<Upper>},
};

}  // namespace

bool IsFilter(std::string_view name) {
  const auto named = [name](const FilterEntry& entry) { return entry.name == name; };
  return std::any_of(std::begin(kFilters), std::end(kFilters), named) || IsListFilter(name);
}

Value CallFilter(Run& run, std::string_view name, const Value& input, const Args& args) {
  if (!run.Step()) return Value::None();
  for (const FilterEntry& entry : kFilters)
    if (entry.name == name) return entry.call(run, input, args);
  if (IsListFilter(name)) return CallListFilter(run, name, input, args);
  return run.Fail("no filter named {}", Printable(name));
}

}  // namespace nibble::jinja
