// SPDX-License-Identifier: Apache-2.0
// Floor 5. Arguments of calls, filters and tests.
#pragma once
#include <array>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/jinja/run.h"

namespace nibble::jinja {

struct Args {
  Values positional;
  std::vector<std::pair<std::string, Value>> named;
};

// Arguments as a signature binds them; those not given are missing.
class Bound {
 public:
  // Fails when an argument is unknown, given twice, too many, or one of the first `required` is not given. A
  // name "" takes a position only.
  Bound(Run& run, std::string_view callee, const Args& args, std::initializer_list<std::string_view> names,
        size_t required = 0);
  bool ok() const { return ok_; }
  const Value& operator[](size_t i) const { return values_[i]; }
  bool has(size_t i) const { return !values_[i].is_missing(); }

  // The value, or the fallback when it is not given. Fail when it is of another type.
  int64_t Int(size_t i, int64_t fallback);
  bool Flag(size_t i, bool fallback) const;
  std::string Text(size_t i, std::string_view fallback);  // any value, as str() shows it

 private:
  Run& run_;
  std::string_view callee_;
  bool ok_ = true;
  std::array<Value, 5> values_;
};

}  // namespace nibble::jinja
