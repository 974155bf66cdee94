// SPDX-License-Identifier: Apache-2.0
// Floor 5. Binding arguments to a signature.
#include "text/jinja/args.h"

#include "base/check.h"
#include "text/jinja/operators.h"
#include "text/jinja/print.h"

namespace nibble::jinja {

Bound::Bound(Run& run, std::string_view callee, const Args& args,
             std::initializer_list<std::string_view> names, size_t required)
    : run_(run), callee_(callee) {
  NIBBLE_CHECK(names.size() <= values_.size(), "a signature longer than Bound");
  if (args.positional.size() > names.size()) {
    run.Fail("{} takes at most {} arguments, {} given", callee, names.size(), args.positional.size());
  }
  for (size_t i = 0; i < std::min(args.positional.size(), names.size()); ++i) values_[i] = args.positional[i];
  for (const auto& [name, value] : args.named) {
    size_t i = 0;
    while (i < names.size() && names.begin()[i] != name) ++i;
    if (i == names.size()) {
      run.Fail("{} takes no argument named {}", callee, Printable(name));
    } else if (has(i)) {
      run.Fail("{} is given {} twice", callee, Printable(name));
    } else {
      values_[i] = value;
    }
  }
  for (size_t i = 0; i < required; ++i)
    if (!has(i)) run.Fail("{} needs {} arguments, {} given", callee, required, i);
  ok_ = !run.failed();
}

int64_t Bound::Int(size_t i, int64_t fallback) {
  if (!has(i)) return fallback;
  if (values_[i].is_integral()) return values_[i].integer();
  if (values_[i].is_undefined()) {
    run_.Fail("{}", values_[i].message());
  } else {
    run_.Fail("{}: wanted an integer, found {}", callee_, TypeName(values_[i]));
  }
  return fallback;
}

bool Bound::Flag(size_t i, bool fallback) const { return has(i) ? Truthy(values_[i]) : fallback; }

std::string Bound::Text(size_t i, std::string_view fallback) {
  return has(i) ? Str(run_, values_[i]) : std::string(fallback);
}

}  // namespace nibble::jinja
