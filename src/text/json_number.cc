// SPDX-License-Identifier: Apache-2.0
// Floor 5. Digit by digit: as long as the digits so far are those of a bound, the next is held by it; after
// the first that differs, anything goes.
#include "text/json_number.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <vector>

namespace nibble {
namespace {

using NodeId = Grammar::NodeId;

constexpr size_t kMostDigits =
    96;  // of a bound: 30 before the point, 20 zeros and 17 digits behind it, and room

// The bounds of a magnitude.
struct Magnitudes {
  std::optional<NumberBound> min, max;  // not negative
};

// Whole part + 1.
std::string Next(std::string digits) {
  for (size_t i = digits.size(); i-- > 0;) {
    if (digits[i] != '9') {
      ++digits[i];
      return digits;
    }
    digits[i] = '0';
  }
  return "1" + digits;
}

int CompareWhole(const std::string& a, const std::string& b) {
  if (a.size() != b.size()) return a.size() < b.size() ? -1 : 1;
  return a.compare(b);
}

class Numbers {
 public:
  Numbers(NumberKind kind, Grammar* grammar) : kind_(kind), g_(*grammar) {}

  NodeId Add(const NumberRange& range) {
    if (!range.min && !range.max) return Unbounded();
    std::vector<NodeId> choices;
    Magnitudes positive{range.min, range.max}, negative{range.max, range.min};
    if (positive.min && positive.min->value.negative) positive.min.reset();
    if (!(range.max && range.max->value.negative)) choices.push_back(Between(positive));
    // Below zero: the magnitudes swap, and start above zero.
    const bool below = !range.min || range.min->value.negative;
    if (below) {
      if (negative.min && negative.min->value.negative) {
        negative.min->value.negative = false;
      } else {
        negative.min = NumberBound{{}, true};
      }
      if (negative.max) negative.max->value.negative = false;
      choices.push_back(g_.Sequence({g_.Literal("-"), Between(negative)}));
    }
    return g_.Choice(choices);
  }

 private:
  NodeId Digit(int first, int last) {
    return g_.Chars({{static_cast<char32_t>('0' + first), static_cast<char32_t>('0' + last)}});
  }
  NodeId Digits() { return g_.Repeat(Digit(0, 9), 0, Grammar::kUnbounded); }
  NodeId AnyFraction() {
    if (kind_ == NumberKind::kInteger) return g_.Literal("");
    return g_.Optional(g_.Sequence({g_.Literal("."), g_.Repeat(Digit(0, 9), 1, Grammar::kUnbounded)}));
  }
  NodeId AnyWhole() { return g_.Choice({g_.Literal("0"), g_.Sequence({Digit(1, 9), Digits()})}); }

  NodeId Unbounded() {
    const NodeId sign = g_.Optional(g_.Literal("-"));
    if (kind_ == NumberKind::kInteger) return g_.Sequence({sign, AnyWhole()});
    const NodeId exponent =
        g_.Sequence({g_.Chars({{'E', 'E'}, {'e', 'e'}}), g_.Optional(g_.Chars({{'+', '+'}, {'-', '-'}})),
                     g_.Repeat(Digit(0, 9), 1, Grammar::kUnbounded)});
    return g_.Sequence({sign, AnyWhole(), AnyFraction(), g_.Optional(exponent)});
  }

  // Magnitudes of the range: a whole part that is that of a bound, with a fraction that the bound holds, or
  // one between them with any.
  NodeId Between(const Magnitudes& range) {
    const NumberBound min = range.min.value_or(NumberBound{});
    const std::string& low = min.value.whole;
    if (!range.max) {
      return g_.Choice({g_.Sequence({g_.Literal(low), Fraction(&min, nullptr)}),
                        g_.Sequence({WholeFrom(Next(low)), AnyFraction()})});
    }
    const std::string& high = range.max->value.whole;
    const int order = CompareWhole(low, high);
    if (order > 0) return g_.Nothing();
    if (order == 0) return g_.Sequence({g_.Literal(low), Fraction(&min, &*range.max)});
    std::vector<NodeId> choices = {g_.Sequence({g_.Literal(low), Fraction(&min, nullptr)}),
                                   g_.Sequence({g_.Literal(high), Fraction(nullptr, &*range.max)})};
    const std::string first = Next(low);
    if (CompareWhole(first, high) < 0) {
      choices.push_back(g_.Sequence({WholeBetween(first, high), AnyFraction()}));
    }
    return g_.Choice(choices);
  }

  NodeId WholeFrom(const std::string& low) {  // low > 0, and up
    const auto more = static_cast<int>(low.size());
    return g_.Choice({SameLength(low, std::string(low.size(), '9')),
                      g_.Sequence({Digit(1, 9), g_.Repeat(Digit(0, 9), more, Grammar::kUnbounded)})});
  }
  NodeId WholeBetween(const std::string& low, const std::string& high) {  // 0 < low <= n < high
    std::vector<NodeId> choices;
    for (size_t size = low.size(); size <= high.size(); ++size) {
      const std::string first = size == low.size() ? low : "1" + std::string(size - 1, '0');
      if (size < high.size()) {
        choices.push_back(SameLength(first, std::string(size, '9')));
      } else if (first < high) {
        choices.push_back(SameLength(first, Previous(high)));
      }
    }
    return g_.Choice(choices);
  }
  static std::string Previous(std::string digits) {  // > 0, of the same length unless it ends in "1000"
    for (size_t i = digits.size(); i-- > 0;) {
      if (digits[i] != '0') {
        --digits[i];
        return digits;
      }
      digits[i] = '9';
    }
    return digits;
  }

  // first <= digits <= last, all of one length.
  NodeId SameLength(const std::string& first, const std::string& last) {
    size_t same = 0;
    while (same < first.size() && first[same] == last[same]) ++same;
    const NodeId prefix = g_.Literal(first.substr(0, same));
    if (same == first.size()) return prefix;
    const int a = first[same] - '0', b = last[same] - '0', rest = static_cast<int>(first.size() - same) - 1;
    std::vector<NodeId> choices = {g_.Sequence({Digit(a, a), AtLeast(first.substr(same + 1))}),
                                   g_.Sequence({Digit(b, b), AtMost(last.substr(same + 1))})};
    if (b - a > 1) choices.push_back(g_.Sequence({Digit(a + 1, b - 1), g_.Repeat(Digit(0, 9), rest, rest)}));
    return g_.Sequence({prefix, g_.Choice(choices)});
  }
  NodeId AtLeast(const std::string& digits) { return Held(digits, '9'); }
  NodeId AtMost(const std::string& digits) { return Held(digits, '0'); }
  // As many digits as given, equal to those or, from the first that differs, on the side of `towards`.
  NodeId Held(const std::string& digits, char towards) {
    NodeId rest = g_.Literal("");
    for (size_t i = digits.size(); i-- > 0;) {
      const int d = digits[i] - '0', after = static_cast<int>(digits.size() - i) - 1;
      std::vector<NodeId> choices = {g_.Sequence({Digit(d, d), rest})};
      const NodeId any = g_.Repeat(Digit(0, 9), after, after);
      if (towards == '9' && d < 9) choices.push_back(g_.Sequence({Digit(d + 1, 9), any}));
      if (towards == '0' && d > 0) choices.push_back(g_.Sequence({Digit(0, d - 1), any}));
      rest = g_.Choice(choices);
    }
    return rest;
  }

  // Nothing, or a point and digits, such that the fraction lies within bounds that have this whole part.
  NodeId Fraction(const NumberBound* min, const NumberBound* max) {
    std::vector<NodeId> choices;
    if (MayStop(min, max, 0)) choices.push_back(g_.Literal(""));
    if (kind_ == NumberKind::kAny) {
      std::vector<NodeId> digits;
      AddDigits(min, max, 0, &digits);
      choices.push_back(g_.Sequence({g_.Literal("."), g_.Choice(digits)}));
    }
    return g_.Choice(choices);
  }

  // Whether the digits of the bounds (null: no longer held by it) up to `at` make a number within them.
  static bool MayStop(const NumberBound* min, const NumberBound* max, size_t at) {
    if (min && (at < min->value.fraction.size() || min->open)) return false;
    return !(max && at >= max->value.fraction.size() && max->open);
  }
  static int DigitAt(const NumberBound* bound, size_t at) {
    return at < bound->value.fraction.size() ? bound->value.fraction[at] - '0' : 0;
  }
  static bool Past(const NumberBound* bound, size_t at) { return at >= bound->value.fraction.size(); }

  // One digit or more from place `at` on.
  void AddDigits(const NumberBound* min, const NumberBound* max, size_t at, std::vector<NodeId>* choices) {
    const NodeId zeros = g_.Repeat(Digit(0, 0), 0, Grammar::kUnbounded);
    if (max && Past(max, at)) {  // only zeros may follow, if the bound itself is inside
      if (MayStop(min, max, std::max(at, min ? min->value.fraction.size() : 0))) {
        if (!min || Past(min, at)) choices->push_back(g_.Sequence({Digit(0, 0), zeros}));
      }
      return;
    }
    if (min && Past(min, at) && !max) {
      choices->push_back(min->open ? g_.Sequence({zeros, Digit(1, 9), Digits()})
                                   : g_.Repeat(Digit(0, 9), 1, Grammar::kUnbounded));
      return;
    }
    const int low = min ? DigitAt(min, at) : 0, high = max ? DigitAt(max, at) : 9;
    for (int d = low; d <= high; ++d) {
      const NumberBound* next_min = min && d == low ? min : nullptr;
      const NumberBound* next_max = max && d == high ? max : nullptr;
      std::vector<NodeId> rest;
      if (!next_min && !next_max) {
        rest.push_back(Digits());
      } else {
        if (MayStop(next_min, next_max, at + 1)) rest.push_back(g_.Literal(""));
        AddDigits(next_min, next_max, at + 1, &rest);
      }
      choices->push_back(g_.Sequence({Digit(d, d), g_.Choice(rest)}));
    }
  }

  const NumberKind kind_;
  Grammar& g_;
};

}  // namespace

Result<Decimal> Decimal::From(JsonRef number) {
  std::string text;
  if (number.type() == JsonType::kUint) {
    NIBBLE_ASSIGN(const uint64_t value, number.Uint());
    text = fmt::format("{}", value);
  } else if (number.type() == JsonType::kInt) {
    NIBBLE_ASSIGN(const int64_t value, number.Int(INT64_MIN, INT64_MAX));
    text = fmt::format("{}", value);
  } else {
    NIBBLE_ASSIGN(const double value, number.Number());
    if (std::fabs(value) >= 1e30 || (value != 0 && std::fabs(value) < 1e-20)) {
      return Error(Code::kInvalidArgument,
                   "{}: a bound of {}, at most 30 digits before and 20 behind the point", number.Where(),
                   value);
    }
    // The shortest decimal that reads as this double is the one that was written, up to 15 digits.
    char digits[kMostDigits];
    const auto end = std::to_chars(digits, digits + sizeof digits, value, std::chars_format::fixed).ptr;
    text.assign(digits, end);
  }
  Decimal d;
  d.negative = text[0] == '-';
  const size_t begin = d.negative ? 1 : 0, point = std::min(text.find('.'), text.size());
  d.whole = text.substr(begin, point - begin);
  if (point < text.size()) d.fraction = text.substr(point + 1);
  while (!d.fraction.empty() && d.fraction.back() == '0') d.fraction.pop_back();
  if (d.whole == "0" && d.fraction.empty()) d.negative = false;
  return d;
}

int Compare(const Decimal& a, const Decimal& b) {
  if (a.negative != b.negative) return a.negative ? -1 : 1;
  const int whole = CompareWhole(a.whole, b.whole);
  const int order = whole != 0 ? whole : a.fraction.compare(b.fraction);
  return a.negative ? -order : order;
}

Grammar::NodeId AddNumber(const NumberRange& range, NumberKind kind, Grammar* grammar) {
  return Numbers(kind, grammar).Add(range);
}

}  // namespace nibble
