// SPDX-License-Identifier: Apache-2.0
// Floor 5. Character classes, lowercase, and stand-ins for characters newer than PCRE2.
#include "text/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <iterator>

#include "base/utf8.h"
#include "text/regex.h"
#include "text/unicode_tables.h"

namespace nibble::unicode {
namespace {

// The row whose range holds c, or nullptr. REQUIRES: rows sorted and disjoint.
template <class Row, size_t kRows>
const Row* FindRow(const Row (&rows)[kRows], char32_t c) {
  const Row* row = std::upper_bound(std::begin(rows), std::end(rows), c,
                                    [](char32_t v, const Row& r) { return v < r.first; });
  if (row == std::begin(rows) || c > (row - 1)->last) return nullptr;
  return row - 1;
}

utf8proc_category_t Category(char32_t c) { return utf8proc_category(static_cast<utf8proc_int32_t>(c)); }

}  // namespace

bool IsWhitespace(char32_t c) {
  return (c >= 0x9 && c <= 0xD) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

bool IsNumeric(char32_t c) {
  const utf8proc_category_t k = Category(c);
  return k == UTF8PROC_CATEGORY_ND || k == UTF8PROC_CATEGORY_NL || k == UTF8PROC_CATEGORY_NO ||
         FindRow(kNewNumbers, c) != nullptr;
}

bool IsPunctuation(char32_t c) {
  if (c < 0x80)
    return c > 0x20 && c < 0x7F && !(c >= '0' && c <= '9') && !((c | 0x20) >= 'a' && (c | 0x20) <= 'z');
  if (FindRow(kOncePunctuation, c) != nullptr) return true;
  const utf8proc_category_t k = Category(c);
  return k >= UTF8PROC_CATEGORY_PC && k <= UTF8PROC_CATEGORY_PO && FindRow(kNotYetPunctuation, c) == nullptr;
}

bool IsWord(char32_t c) {
  if (c < 0x80) return c == '_' || (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z');
  std::string one;
  AppendUtf8(c, &one);
  return Regex::WordRun().MatchesAll(one);
}

void AppendLowercase(char32_t c, std::string* out) {
  if (c == 0x130) {  // the one character whose lowercase is always two
    out->append("i\xCC\x87");
  } else if (const Lower* row = FindRow(kNewLower, c)) {
    AppendUtf8(row->lower + (c - row->first), out);
  } else {
    AppendUtf8(static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))), out);
  }
}

bool AliasForPatterns(std::string_view text, std::string* copy) {
  bool changed = false;
  for (size_t pos = 0; pos < text.size();) {
    if (static_cast<unsigned char>(text[pos]) < 0xE0) {  // no stand-in is needed below U+0800
      ++pos;
      continue;
    }
    const size_t start = pos;
    const Alias* row = FindRow(kNewerThanPatterns, NextChar(text, &pos));
    if (row == nullptr) continue;
    if (!changed) copy->assign(text);
    changed = true;
    std::string stand_in;
    AppendUtf8(row->stand_in, &stand_in);
    copy->replace(start, stand_in.size(), stand_in);
  }
  return changed;
}

}  // namespace nibble::unicode
