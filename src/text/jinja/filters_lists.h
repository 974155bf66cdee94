// SPDX-License-Identifier: Apache-2.0
// Floor 5. The filters on lists and dicts. Those that are generators in Jinja (map, select, ...) give
// iterators, whose items are all computed at once.
#pragma once
#include <string_view>

#include "text/jinja/args.h"

namespace nibble::jinja {

bool IsListFilter(std::string_view name);
Value CallListFilter(Run& run, std::string_view name, const Value& input, const Args& args);

}  // namespace nibble::jinja
