// SPDX-License-Identifier: Apache-2.0
// Floor 5. A template's source as tokens, with the whitespace rules that transformers sets: trim_blocks and
// lstrip_blocks on, one newline at the end dropped.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/jinja/limits.h"

namespace nibble::jinja {

enum class TokenKind : uint8_t {
  kText,        // text: what is printed as it is
  kPrintBegin,  // {{
  kPrintEnd,
  kBlockBegin,  // {%
  kBlockEnd,
  kName,      // text
  kString,    // text, escapes resolved
  kInteger,   // integer
  kFloat,     // real
  kOperator,  // text: one of + - * / // % ** ~ [ ] ( ) { } == != > >= < <= = . : | , ;
  kEnd
};

struct Token {
  TokenKind kind;
  int line;
  std::string text;
  int64_t integer = 0;
  double real = 0;

  bool Is(TokenKind k, std::string_view t) const { return kind == k && text == t; }
};

// The whitespace that the environment removes. Other values than these serve tests alone.
struct Trimming {
  bool trim_blocks = true;    // a newline right after %} or #}
  bool lstrip_blocks = true;  // blanks between the start of a line and {% or {#
};

// kInvalidArgument: "SOURCE, line N: what". The last token is kEnd.
Result<std::vector<Token>> Tokenize(std::string_view text, std::string_view source, const Limits& limits,
                                    Trimming trimming = {});

}  // namespace nibble::jinja
