// SPDX-License-Identifier: Apache-2.0
// Floor 5. Patterns of tokenizer.json, matched by PCRE2 (JIT) in time linear in the text or not at all.
#pragma once
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

struct pcre2_real_code_8;

namespace nibble {

struct Span {  // bytes [begin, end) of some text
  size_t begin = 0, end = 0;
  size_t size() const { return end - begin; }
  std::string_view In(std::string_view text) const { return text.substr(begin, end - begin); }
};

class Regex {
 public:
  // Oniguruma syntax, the part that regex_syntax.h accepts. kUnsupported also when it can match nothing at
  // all.
  static Result<Regex> Compile(std::string_view pattern);
  static Result<Regex> Literal(std::string_view text);
  // \w+|[^\w\s]+ and \w+ of the reference's second regex library (whose \w is a little different).
  static const Regex& WordOrSymbolRun();
  static const Regex& WordRun();

  // All matches from left to right, not overlapping. REQUIRES: text is UTF-8. Thread-safe.
  // kInvalidArgument when the text makes the pattern try more than kStepsPerByte steps a byte, so the time is
  // O(text) for every pattern and every text.
  Status FindAll(std::string_view text, std::vector<Span>* matches) const;
  bool MatchesAll(std::string_view text) const;  // one match, the whole text

  static constexpr size_t kStepsPerByte = 64;

 private:
  struct Free {
    void operator()(pcre2_real_code_8* code) const;
  };
  static Result<Regex> CompileTranslated(std::string_view pattern, std::string_view translated);
  std::string pattern_;
  std::unique_ptr<pcre2_real_code_8, Free> code_;
};

}  // namespace nibble
