// SPDX-License-Identifier: Apache-2.0
// Floor 5. JSON numbers between bounds as a grammar, exact to the digit.
#pragma once
#include <optional>
#include <string>

#include "base/json.h"
#include "base/result.h"
#include "text/grammar.h"

namespace nibble {

// A number as it is written, without exponent: digits without leading zeros ("0" for none), digits without
// trailing zeros.
struct Decimal {
  bool negative = false;
  std::string whole = "0", fraction;
  static Result<Decimal> From(JsonRef number);
};
int Compare(const Decimal& a, const Decimal& b);  // below 0, 0, above 0

struct NumberBound {
  Decimal value;
  bool open = false;  // the bound itself is outside
};
struct NumberRange {
  std::optional<NumberBound> min, max;
};

enum class NumberKind : uint8_t { kInteger, kAny };

// Integers have no fraction and no exponent; numbers with a bound have no exponent. Minus zero is left out
// where there are bounds.
Grammar::NodeId AddNumber(const NumberRange& range, NumberKind kind, Grammar* grammar);

}  // namespace nibble
