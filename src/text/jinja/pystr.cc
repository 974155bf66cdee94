// SPDX-License-Identifier: Apache-2.0
// Floor 5. Python's str methods. Letters and case come from utf8proc, whose Unicode is Python's or newer.
#include "text/jinja/pystr.h"

#include <utf8proc.h>

#include <algorithm>

#include "base/utf8.h"
#include "text/jinja/case_tables.h"

namespace nibble::jinja {
namespace {

utf8proc_category_t Category(char32_t c) { return utf8proc_category(static_cast<utf8proc_int32_t>(c)); }

char32_t Simple(utf8proc_int32_t (*map)(utf8proc_int32_t), char32_t c) {
  return static_cast<char32_t>(map(static_cast<utf8proc_int32_t>(c)));
}

const SpecialCase* FindSpecial(char32_t c) {
  const SpecialCase* at = std::lower_bound(std::begin(kSpecialCases), std::end(kSpecialCases), c,
                                           [](const SpecialCase& s, char32_t x) { return s.c < x; });
  return at != std::end(kSpecialCases) && at->c == c ? at : nullptr;
}

void AppendAll(const char32_t (&chars)[3], std::string* out) {
  for (const char32_t c : chars)
    if (c != 0) AppendUtf8(c, out);
}

void AppendUpper(char32_t c, std::string* out) {
  if (const SpecialCase* special = FindSpecial(c)) return AppendAll(special->upper, out);
  AppendUtf8(Simple(utf8proc_toupper, c), out);
}

void AppendTitle(char32_t c, std::string* out) {
  if (const SpecialCase* special = FindSpecial(c)) return AppendAll(special->title, out);
  AppendUtf8(Simple(utf8proc_totitle, c), out);
}

constexpr char32_t kSigma = 0x3A3, kFinalSigma = 0x3C2, kDottedI = 0x130, kDotAbove = 0x307;

bool IsCased(char32_t c) {
  const utf8proc_category_t k = Category(c);
  return k == UTF8PROC_CATEGORY_LU || k == UTF8PROC_CATEGORY_LL || k == UTF8PROC_CATEGORY_LT ||
         Simple(utf8proc_toupper, c) != c || Simple(utf8proc_tolower, c) != c;
}

bool IsCaseIgnorable(char32_t c) {
  const utf8proc_category_t k = Category(c);
  return k == UTF8PROC_CATEGORY_MN || k == UTF8PROC_CATEGORY_ME || k == UTF8PROC_CATEGORY_CF ||
         k == UTF8PROC_CATEGORY_LM || k == UTF8PROC_CATEGORY_SK || c == '\'' || c == '.' || c == ':' ||
         c == 0xB7 || c == 0x2019;
}

// A capital sigma ends a word when a cased letter stands before it and none after it.
bool IsFinalSigma(Text s, size_t begin, size_t end) {
  size_t pos = begin;
  bool before = false;
  while (pos > 0) {
    const char32_t c = PreviousChar(s, &pos);
    if (IsCaseIgnorable(c)) continue;
    before = IsCased(c);
    break;
  }
  if (!before) return false;
  pos = end;
  while (pos < s.size()) {
    const char32_t c = NextChar(s, &pos);
    if (!IsCaseIgnorable(c)) return !IsCased(c);
  }
  return true;
}

// `s` is the whole text, whose character at [begin, end) is `c`.
void AppendLower(Text s, size_t begin, size_t end, char32_t c, std::string* out) {
  if (c == kSigma) return AppendUtf8(IsFinalSigma(s, begin, end) ? kFinalSigma : kSigma + 0x20, out);
  if (c == kDottedI) {
    out->push_back('i');
    return AppendUtf8(kDotAbove, out);
  }
  AppendUtf8(Simple(utf8proc_tolower, c), out);
}

bool IsLetter(char32_t c) {
  const utf8proc_category_t k = Category(c);
  return k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_LO;
}

bool IsNumber(char32_t c) {
  const utf8proc_category_t k = Category(c);
  return k == UTF8PROC_CATEGORY_ND || k == UTF8PROC_CATEGORY_NL || k == UTF8PROC_CATEGORY_NO;
}

template <class Predicate>
bool All(Text s, Predicate p) {
  for (size_t pos = 0; pos < s.size();)
    if (!p(NextChar(s, &pos))) return false;
  return !s.empty();
}

bool IsLineEnd(char32_t c) {
  return (c >= '\n' && c <= '\r') || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

constexpr size_t kShort = 16;  // bytes of a text that are sought one by one at every place

// Knuth, Morris and Pratt: how many bytes of `s` are read to the end of the first match. at(t, i): byte i in
// the direction of the search.
template <class At>
size_t EndOfMatch(Text s, Text part, At at) {
  std::vector<size_t> shorter(part.size(),
                              0);  // of part's first i + 1 bytes: the longest beginning that ends them too
  for (size_t i = 1, n = 0; i < part.size(); ++i) {
    while (n > 0 && at(part, i) != at(part, n)) n = shorter[n - 1];
    n += at(part, i) == at(part, n);
    shorter[i] = n;
  }
  for (size_t i = 0, n = 0; i < s.size(); ++i) {
    while (n > 0 && at(s, i) != at(part, n)) n = shorter[n - 1];
    n += at(s, i) == at(part, n);
    if (n == part.size()) return i + 1;
  }
  return Text::npos;
}

}  // namespace

bool IsSpace(char32_t c) {
  return (c >= 9 && c <= 13) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

int64_t Length(Text s) {
  return std::count_if(s.begin(), s.end(), [](char c) { return (c & 0xC0) != 0x80; });
}

size_t OffsetOf(Text s, int64_t index) {
  size_t pos = 0;
  while (index-- > 0) NextChar(s, &pos);
  return pos;
}

size_t Search(Text s, Text part, size_t from) {
  if (part.size() <= kShort || from > s.size()) return s.find(part, from);
  const size_t end = EndOfMatch(s.substr(from), part, [](Text t, size_t i) { return t[i]; });
  return end == Text::npos ? end : from + end - part.size();
}

size_t SearchBack(Text s, Text part) {
  if (part.size() <= kShort) return s.rfind(part);
  const size_t end = EndOfMatch(s, part, [](Text t, size_t i) { return t[t.size() - 1 - i]; });
  return end == Text::npos ? end : s.size() - end;
}

Text Strip(Text s, std::optional<Text> chars, Ends ends) {
  const auto drop = [&](Text c, char32_t code) {
    return chars ? chars->find(c) != Text::npos : IsSpace(code);
  };
  while (ends != Ends::kRight && !s.empty()) {
    size_t pos = 0;
    const char32_t c = NextChar(s, &pos);
    if (!drop(s.substr(0, pos), c)) break;
    s.remove_prefix(pos);
  }
  while (ends != Ends::kLeft && !s.empty()) {
    size_t pos = s.size();
    const char32_t c = PreviousChar(s, &pos);
    if (!drop(s.substr(pos), c)) break;
    s = s.substr(0, pos);
  }
  return s;
}

std::string Upper(Text s) {
  std::string out;
  for (size_t pos = 0; pos < s.size();) AppendUpper(NextChar(s, &pos), &out);
  return out;
}

std::string Lower(Text s) {
  std::string out;
  for (size_t pos = 0; pos < s.size();) {
    const size_t begin = pos;
    const char32_t c = NextChar(s, &pos);
    AppendLower(s, begin, pos, c, &out);
  }
  return out;
}

std::string Capitalize(Text s) {
  std::string out;
  for (size_t pos = 0; pos < s.size();) {
    const size_t begin = pos;
    const char32_t c = NextChar(s, &pos);
    begin == 0 ? AppendTitle(c, &out) : AppendLower(s, begin, pos, c, &out);
  }
  return out;
}

std::string Title(Text s) {
  std::string out;
  bool in_word = false;
  for (size_t pos = 0; pos < s.size();) {
    const size_t begin = pos;
    const char32_t c = NextChar(s, &pos);
    in_word ? AppendLower(s, begin, pos, c, &out) : AppendTitle(c, &out);
    in_word = IsCased(c);
  }
  return out;
}

std::string TitleWords(Text s) {
  std::string out;
  const auto divides = [](char32_t c) {
    return IsSpace(c) || (c < 0x80 && Text("-({[<").find(static_cast<char>(c)) != Text::npos);
  };
  for (size_t pos = 0; pos < s.size();) {
    size_t begin = pos;
    char32_t c = NextChar(s, &pos);
    if (divides(c)) {
      AppendUtf8(c, &out);
      continue;
    }
    AppendUpper(c, &out);
    const size_t rest = pos;
    size_t end = pos;
    while (end < s.size()) {
      begin = end;
      c = NextChar(s, &end);
      if (!divides(c)) continue;
      end = begin;
      break;
    }
    out += Lower(s.substr(rest, end - rest));
    pos = end;
  }
  return out;
}

std::string SwapCase(Text s) {
  std::string out;
  for (size_t pos = 0; pos < s.size();) {
    const size_t begin = pos;
    const char32_t c = NextChar(s, &pos);
    const utf8proc_category_t k = Category(c);
    if (k == UTF8PROC_CATEGORY_LU) {
      AppendLower(s, begin, pos, c, &out);
    } else if (k == UTF8PROC_CATEGORY_LL) {
      AppendUpper(c, &out);
    } else {
      AppendUtf8(c, &out);
    }
  }
  return out;
}

std::vector<Text> Split(Text s, std::optional<Text> separator, int64_t max) {
  std::vector<Text> parts;
  if (!separator) s = Strip(s, std::nullopt, Ends::kLeft);
  while (separator || !s.empty()) {
    size_t begin = Text::npos, end = 0;
    if (max < 0 || static_cast<int64_t>(parts.size()) < max) {
      if (separator) {
        begin = Search(s, *separator);
        end = begin + separator->size();
      } else {
        for (size_t pos = 0; pos < s.size() && begin == Text::npos;) {
          const size_t at = pos;
          if (IsSpace(NextChar(s, &pos))) begin = at, end = pos;
        }
      }
    }
    if (begin == Text::npos) {
      parts.push_back(s);  // without a separator trailing blanks stay when `max` was reached
      break;
    }
    parts.push_back(s.substr(0, begin));
    s.remove_prefix(end);
    if (!separator) s = Strip(s, std::nullopt, Ends::kLeft);
  }
  return parts;
}

std::vector<Text> SplitRight(Text s, std::optional<Text> separator, int64_t max) {
  std::vector<Text> parts;
  if (!separator) s = Strip(s, std::nullopt, Ends::kRight);
  while (separator || !s.empty()) {
    size_t begin = Text::npos, end = 0;
    if (max < 0 || static_cast<int64_t>(parts.size()) < max) {
      if (separator) {
        begin = SearchBack(s, *separator);
        end = begin + separator->size();
      } else {
        for (size_t pos = s.size(); pos > 0 && begin == Text::npos;) {
          const size_t at = pos;
          if (IsSpace(PreviousChar(s, &pos))) begin = pos, end = at;
        }
      }
    }
    if (begin == Text::npos) {
      parts.push_back(s);
      break;
    }
    parts.push_back(s.substr(end));
    s = s.substr(0, begin);
    if (!separator) s = Strip(s, std::nullopt, Ends::kRight);
  }
  std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<Text> SplitLines(Text s, bool keep_ends) {
  std::vector<Text> lines;
  size_t start = 0;
  for (size_t pos = 0; pos < s.size();) {
    const size_t at = pos;
    const char32_t c = NextChar(s, &pos);
    if (!IsLineEnd(c)) continue;
    if (c == '\r' && pos < s.size() && s[pos] == '\n') ++pos;
    lines.push_back(s.substr(start, (keep_ends ? pos : at) - start));
    start = pos;
  }
  if (start < s.size()) lines.push_back(s.substr(start));
  return lines;
}

int64_t Count(Text s, Text part) {
  if (part.empty()) return Length(s) + 1;
  int64_t n = 0;
  for (size_t pos = Search(s, part); pos != Text::npos; pos = Search(s, part, pos + part.size())) ++n;
  return n;
}

std::string Replace(Text s, Text old, Text with, int64_t max) {
  std::string out;
  size_t pos = 0;
  if (old.empty()) {  // between all characters, and at both ends
    for (int64_t n = 0; max < 0 || n < max; ++n) {
      out += with;
      if (pos == s.size()) return out;
      const size_t at = pos;
      NextChar(s, &pos);
      out += s.substr(at, pos - at);
    }
    return out += s.substr(pos);
  }
  for (int64_t n = 0; max < 0 || n < max; ++n) {
    const size_t at = Search(s, old, pos);
    if (at == Text::npos) break;
    out += s.substr(pos, at - pos);
    out += with;
    pos = at + old.size();
  }
  return out += s.substr(pos);
}

bool IsAlpha(Text s) { return All(s, IsLetter); }
bool IsAlnum(Text s) {
  return All(s, [](char32_t c) { return IsLetter(c) || IsNumber(c); });
}
bool IsDigit(Text s) {
  return All(s, [](char32_t c) { return Category(c) == UTF8PROC_CATEGORY_ND; });
}
bool IsSpace(Text s) {
  return All(s, [](char32_t c) { return IsSpace(c); });
}

bool IsLower(Text s) {
  bool any = false;
  for (size_t pos = 0; pos < s.size();) {
    const utf8proc_category_t k = Category(NextChar(s, &pos));
    if (k == UTF8PROC_CATEGORY_LU || k == UTF8PROC_CATEGORY_LT) return false;
    any = any || k == UTF8PROC_CATEGORY_LL;
  }
  return any;
}

bool IsUpper(Text s) {
  bool any = false;
  for (size_t pos = 0; pos < s.size();) {
    const utf8proc_category_t k = Category(NextChar(s, &pos));
    if (k == UTF8PROC_CATEGORY_LL || k == UTF8PROC_CATEGORY_LT) return false;
    any = any || k == UTF8PROC_CATEGORY_LU;
  }
  return any;
}

bool IsPrintable(char32_t c) {
  if (c == ' ') return true;
  switch (Category(c)) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
      return false;
    default:
      return true;
  }
}

}  // namespace nibble::jinja
