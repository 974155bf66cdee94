// SPDX-License-Identifier: Apache-2.0
// Floor 5. A template's source as a syntax tree whose names are resolved to slots.
#pragma once
#include <string_view>

#include "text/jinja/ast.h"
#include "text/jinja/lexer.h"

namespace nibble::jinja {

// kInvalidArgument: "SOURCE, line N: what".
Result<Tree> Parse(std::string_view text, std::string_view source, const Limits& limits,
                   Trimming trimming = {});

}  // namespace nibble::jinja
