// SPDX-License-Identifier: Apache-2.0
// Floor 5. NFC, NFD, NFKC, NFKD (Unicode Standard Annex 15). utf8proc decomposes single characters and
// composes; the canonical ordering between is ours, because utf8proc's is quadratic on long runs of marks.
#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <vector>

#include "base/check.h"
#include "base/utf8.h"
#include "text/unicode.h"
#include "text/unicode_tables.h"

namespace nibble::unicode {
namespace {

using Chars = std::vector<utf8proc_int32_t>;

template <size_t kRanges>
bool Contains(const Range (&ranges)[kRanges], utf8proc_int32_t c) {
  const auto v = static_cast<char32_t>(c);
  const Range* r = std::upper_bound(std::begin(ranges), std::end(ranges), v,
                                    [](char32_t x, const Range& range) { return x < range.first; });
  return r != std::begin(ranges) && v <= (r - 1)->last;
}

int CombiningClass(utf8proc_int32_t c) {
  if (c < 0x300) return 0;
  const int k = utf8proc_get_property(c)->combining_class;
  return k != 0 && Contains(kUnorderedMarks, c) ? 0 : k;
}

void Decompose(std::string_view text, utf8proc_option_t options, Chars* out) {
  std::array<utf8proc_int32_t, 32> parts;  // the longest decomposition (U+FDFA) has 18 characters
  for (size_t pos = 0; pos < text.size();) {
    const auto c = static_cast<utf8proc_int32_t>(NextChar(text, &pos));
    if (c < 0x80 || Contains(kNeverDecomposed, c)) {
      out->push_back(c);
      continue;
    }
    int last_class = 0;
    const utf8proc_ssize_t n = utf8proc_decompose_char(c, parts.data(), parts.size(), options, &last_class);
    NIBBLE_CHECK(n > 0 && n <= static_cast<utf8proc_ssize_t>(parts.size()),
                 "decomposition of a valid character");
    out->insert(out->end(), parts.begin(), parts.begin() + n);
  }
}

// Stable sort of every run of marks by combining class: insertion for the usual two or three, counting else.
void Reorder(Chars* chars) {
  constexpr size_t kShort = 16;
  std::array<std::vector<utf8proc_int32_t>, 256> by_class;
  for (size_t i = 0; i < chars->size();) {
    if (CombiningClass((*chars)[i]) == 0) {
      ++i;
      continue;
    }
    size_t end = i;
    while (end < chars->size() && CombiningClass((*chars)[end]) != 0) ++end;
    const auto run = chars->begin() + static_cast<std::ptrdiff_t>(i);
    const auto stop = chars->begin() + static_cast<std::ptrdiff_t>(end);
    if (end - i <= kShort) {
      for (auto k = run; k != stop; ++k) {
        for (auto j = k; j != run && CombiningClass(*(j - 1)) > CombiningClass(*j); --j)
          std::swap(*j, *(j - 1));
      }
    } else {
      for (auto k = run; k != stop; ++k) by_class[static_cast<size_t>(CombiningClass(*k))].push_back(*k);
      auto put = run;
      for (auto& marks : by_class) {
        put = std::copy(marks.begin(), marks.end(), put);
        marks.clear();
      }
    }
    i = end;
  }
}

// What the pair composes to, or 0. utf8proc composes buffers, so it is shown a buffer of two.
utf8proc_int32_t ComposePair(utf8proc_int32_t starter, utf8proc_int32_t next) {
  std::array<utf8proc_int32_t, 2> pair = {starter, next};
  const auto options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
  if (utf8proc_normalize_utf32(pair.data(), 2, options) != 1 || Contains(kNeverDecomposed, pair[0])) return 0;
  return pair[0];
}

// Canonical composition: a character joins the last starter unless one of equal or higher class stands
// between.
void Compose(Chars* chars) {
  constexpr size_t kNone = SIZE_MAX;
  size_t starter = kNone, put = 0;
  int last_class = -1;  // class of the last character kept behind the starter; -1: none was kept
  for (const utf8proc_int32_t c : *chars) {
    const int k = CombiningClass(c);
    if (c >= 0x300 && starter != kNone && last_class < k) {  // nothing below U+0300 joins
      if (const utf8proc_int32_t composed = ComposePair((*chars)[starter], c)) {
        (*chars)[starter] = composed;
        continue;
      }
    }
    last_class = k;
    if (k == 0) {
      starter = put;
      last_class = -1;
    }
    (*chars)[put++] = c;
  }
  chars->resize(put);
}

}  // namespace

std::string Normalize(std::string_view text, NormalForm form) {
  const bool ascii =
      std::all_of(text.begin(), text.end(), [](char b) { return static_cast<unsigned char>(b) < 0x80; });
  if (ascii) return std::string(text);
  const bool compat = form == NormalForm::kNfkc || form == NormalForm::kNfkd;
  const bool compose = form == NormalForm::kNfc || form == NormalForm::kNfkc;
  const int options = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | (compat ? UTF8PROC_COMPAT : 0);
  Chars chars;
  chars.reserve(text.size());
  Decompose(text, static_cast<utf8proc_option_t>(options), &chars);
  Reorder(&chars);
  if (compose) Compose(&chars);
  std::string out;
  out.reserve(text.size());
  for (const utf8proc_int32_t c : chars) AppendUtf8(static_cast<char32_t>(c), &out);
  return out;
}

}  // namespace nibble::unicode
