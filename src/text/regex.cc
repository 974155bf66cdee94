// SPDX-License-Identifier: Apache-2.0
// Floor 5. PCRE2 with a budget: a callout behind every choice counts how often matching came by and how far
// it jumped, so work that backtracking or rescanning does is bounded by a multiple of the text.
#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/regex.h"

#include <pcre2.h>

#include "base/check.h"
#include "base/printable.h"
#include "base/utf8.h"
#include "text/regex_syntax.h"
#include "text/unicode.h"

namespace nibble {
namespace {

constexpr size_t kJitStackStart = size_t{32} << 10;
constexpr size_t kJitStackMost = size_t{64} << 20;  // (?:ab)+ over 64 MiB of text stays below
constexpr size_t kMaxLiteralBytes = 256;            // a literal is compared at every place of the text

struct Budget {
  size_t left;
  size_t start;  // where the match under trial began at the previous callout
  size_t last;   // where the previous callout was
};

int CountChoice(pcre2_callout_block* block, void* data) {
  auto* budget = static_cast<Budget*>(data);
  const size_t here = block->current_position;
  const size_t from = block->start_match == budget->start ? budget->last : block->start_match;
  const size_t cost = 1 + (here > from ? here - from : from - here);
  budget->start = block->start_match;
  budget->last = here;
  if (cost > budget->left) return PCRE2_ERROR_CALLOUT;
  budget->left -= cost;
  return 0;
}

// What a match needs besides the pattern; one a thread, for all patterns.
struct Scratch {
  pcre2_match_data* match = nullptr;
  pcre2_match_context* context = nullptr;
  pcre2_jit_stack* stack = nullptr;

  Scratch() = default;
  // Makes what is missing; false: no memory.
  bool Ready() {
    if (stack != nullptr) return true;
    if (match == nullptr) match = pcre2_match_data_create(1, nullptr);
    if (context == nullptr) context = pcre2_match_context_create(nullptr);
    if (match == nullptr || context == nullptr) return false;
    stack = pcre2_jit_stack_create(kJitStackStart, kJitStackMost, nullptr);
    if (stack == nullptr) return false;
    pcre2_jit_stack_assign(context, nullptr, stack);
    // The budget bounds the work; PCRE2's own limits would stop long texts that are within it.
    pcre2_set_match_limit(context, UINT32_MAX);
    pcre2_set_depth_limit(context, UINT32_MAX);
    return true;
  }
  ~Scratch() {
    pcre2_match_data_free(match);
    pcre2_match_context_free(context);
    pcre2_jit_stack_free(stack);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
};

std::string PcreMessage(int error) {
  unsigned char text[128];
  pcre2_get_error_message(error, text, sizeof text);
  return reinterpret_cast<const char*>(text);
}

constexpr std::string_view kRustWord = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{200C}\\x{200D}";

}  // namespace

void Regex::Free::operator()(pcre2_real_code_8* code) const { pcre2_code_free(code); }

Result<Regex> Regex::Compile(std::string_view pattern) {
  NIBBLE_ASSIGN(const std::string translated, TranslatePattern(pattern));
  return CompileTranslated(pattern, translated);
}

Result<Regex> Regex::Literal(std::string_view text) {
  if (text.empty() || text.size() > kMaxLiteralBytes) {
    return Error(Code::kUnsupported, "a string pattern of {} bytes; 1 to {} are supported", text.size(),
                 kMaxLiteralBytes);
  }
  return CompileTranslated(text, QuotePattern(text));
}

Result<Regex> Regex::CompileTranslated(std::string_view pattern, std::string_view translated) {
  int error = 0;
  size_t offset = 0;
  // Start optimizations search ahead for letters that a match needs, which repeats work on some texts.
  const uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_NO_START_OPTIMIZE | PCRE2_NEVER_BACKSLASH_C;
  pcre2_compile_context* context = pcre2_compile_context_create(nullptr);
  if (context == nullptr) return Error(Code::kOutOfMemory, "no memory for a pattern");
  pcre2_set_newline(context, PCRE2_NEWLINE_LF);
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                                   options, &error, &offset, context);
  pcre2_compile_context_free(context);
  if (code == nullptr) {
    return Error(Code::kUnsupported, "pattern \"{}\": {}", Printable(pattern, 200), PcreMessage(error));
  }
  Regex regex;
  regex.pattern_ = pattern;
  regex.code_.reset(code);
  uint32_t may_be_empty = 0;
  pcre2_pattern_info(code, PCRE2_INFO_MATCHEMPTY, &may_be_empty);
  if (may_be_empty != 0) {
    return Error(Code::kUnsupported, "pattern \"{}\": can match the empty string", Printable(pattern, 200));
  }
  // Without JIT (a hardened kernel may forbid it) the interpreter gives the same matches, slower.
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
  return regex;
}

const Regex& Regex::WordOrSymbolRun() {
  static const Regex compiled = [] {
    const std::string word(kRustWord);
    auto regex = CompileTranslated("\\w+|[^\\w\\s]+", "[" + word + "]+|[^" + word + "\\p{White_Space}]+");
    NIBBLE_CHECK(regex.ok(), "a fixed pattern");
    return *std::move(regex);
  }();
  return compiled;
}

const Regex& Regex::WordRun() {
  static const Regex compiled = [] {
    auto regex = CompileTranslated("\\w+", "[" + std::string(kRustWord) + "]+");
    NIBBLE_CHECK(regex.ok(), "a fixed pattern");
    return *std::move(regex);
  }();
  return compiled;
}

Status Regex::FindAll(std::string_view text, std::vector<Span>* matches) const {
  thread_local Scratch scratch;
  if (!scratch.Ready()) return Error(Code::kOutOfMemory, "no memory to look for a pattern");
  matches->clear();
  std::string copy;
  const std::string_view subject = unicode::AliasForPatterns(text, &copy) ? copy : text;
  Budget budget = {kStepsPerByte * text.size() + 4096, 0, 0};
  pcre2_set_callout(scratch.context, CountChoice, &budget);
  for (size_t pos = 0; pos < subject.size();) {
    const int n = pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(subject.data()), subject.size(), pos,
                              PCRE2_NO_UTF_CHECK, scratch.match, scratch.context);
    if (n == PCRE2_ERROR_NOMATCH) break;
    if (n == PCRE2_ERROR_CALLOUT) {
      return Error(Code::kInvalidArgument,
                   "pattern \"{}\" needs more than {} steps a byte on this text of {} bytes",
                   Printable(pattern_, 200), kStepsPerByte, text.size());
    }
    if (n < 0) {
      return Error(Code::kInvalidArgument, "pattern \"{}\" on a text of {} bytes: {}",
                   Printable(pattern_, 200), text.size(), PcreMessage(n));
    }
    const size_t* found = pcre2_get_ovector_pointer(scratch.match);
    matches->push_back({found[0], found[1]});
    pos = found[1];
  }
  return Status();
}

bool Regex::MatchesAll(std::string_view text) const {
  std::vector<Span> matches;
  return FindAll(text, &matches).ok() && matches.size() == 1 && matches[0].size() == text.size();
}

}  // namespace nibble
