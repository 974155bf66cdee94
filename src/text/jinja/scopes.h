// SPDX-License-Identifier: Apache-2.0
// Floor 5. Names to slots, as Jinja's compiler sees scopes. Loops, macros, blocks and `with` open one; `if`
// does not. Whether a name that is set further down is looked up outside before that is decided here, once
// for the template, and not by what happened when it runs.
#pragma once
#include <string_view>

#include "base/result.h"
#include "text/jinja/ast.h"

namespace nibble::jinja {

// kInvalidArgument for an assignment to `loop` in a loop, and for a filter or test that nobody knows where
// Jinja's compiler would refuse it too (outside if and conditional expressions).
Status ResolveNames(Tree* tree, std::string_view source);

}  // namespace nibble::jinja
