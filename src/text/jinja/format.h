// SPDX-License-Identifier: Apache-2.0
// Floor 5. Texts with values put in: "%s" % x, "{}".format(x), and replace.
#pragma once
#include <string_view>

#include "text/jinja/args.h"

namespace nibble::jinja {

// "%s: %d" % values; a tuple gives several, a dict gives names. Conversions: d i u s r a c x X o f F e E g G
// %.
Value PercentFormat(Run& run, std::string_view format, const Value& values);

// "{} {0} {name} {x.y[z]!r:>5}".format(...). Types: none, s, d, f, F, e, E, g, G, x, X, o, b, c, %.
Value BraceFormat(Run& run, std::string_view format, const Args& args);

// str.replace, counted against the budget before the text is made. max < 0: all.
Value Replaced(Run& run, std::string_view text, std::string_view old, std::string_view with, int64_t max);

}  // namespace nibble::jinja
