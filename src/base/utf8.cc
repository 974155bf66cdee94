// SPDX-License-Identifier: Apache-2.0
// Floor 0. UTF-8 by Table 3-7 of the Unicode Standard: the second byte decides, the rest are 80..BF.
#include "base/utf8.h"

namespace nibble {
namespace {

unsigned ByteAt(std::string_view s, size_t i) { return static_cast<unsigned char>(s[i]); }

struct Lead {
  int bytes;              // length of the character; 0: cannot start one
  unsigned second_first;  // range of the second byte
  unsigned second_last;
};

Lead ClassifyLead(unsigned b) {
  if (b < 0x80) return {1, 0, 0};
  if (b < 0xC2) return {0, 0, 0};
  if (b < 0xE0) return {2, 0x80, 0xBF};
  if (b == 0xE0) return {3, 0xA0, 0xBF};
  if (b == 0xED) return {3, 0x80, 0x9F};
  if (b < 0xF0) return {3, 0x80, 0xBF};
  if (b == 0xF0) return {4, 0x90, 0xBF};
  if (b < 0xF4) return {4, 0x80, 0xBF};
  if (b == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

}  // namespace

Utf8Step ScanUtf8(std::string_view bytes, size_t pos) {
  const Lead lead = ClassifyLead(ByteAt(bytes, pos));
  if (lead.bytes == 0) return {Utf8Step::kInvalid, 1};
  for (int i = 1; i < lead.bytes; ++i) {
    if (pos + i >= bytes.size()) return {Utf8Step::kTruncated, i};
    const unsigned b = ByteAt(bytes, pos + i);
    const unsigned first = i == 1 ? lead.second_first : 0x80;
    const unsigned last = i == 1 ? lead.second_last : 0xBF;
    if (b < first || b > last) return {Utf8Step::kInvalid, i};
  }
  return {Utf8Step::kValid, lead.bytes};
}

size_t FindInvalidUtf8(std::string_view bytes) {
  for (size_t pos = 0; pos < bytes.size();) {
    const Utf8Step step = ScanUtf8(bytes, pos);
    if (step.kind != Utf8Step::kValid) return pos;
    pos += static_cast<size_t>(step.bytes);
  }
  return std::string_view::npos;
}

void AppendLossyUtf8(std::string_view bytes, std::string* out) {
  for (size_t pos = 0; pos < bytes.size();) {
    const Utf8Step step = ScanUtf8(bytes, pos);
    const auto n = static_cast<size_t>(step.bytes);
    out->append(step.kind == Utf8Step::kValid ? bytes.substr(pos, n) : kReplacementChar);
    pos += n;
  }
}

char32_t NextChar(std::string_view text, size_t* pos) {
  const unsigned b = ByteAt(text, *pos);
  if (b < 0x80) {
    *pos += 1;
    return b;
  }
  const int n = b < 0xE0 ? 2 : b < 0xF0 ? 3 : 4;
  char32_t c = b & (0x7Fu >> n);
  for (int i = 1; i < n; ++i) c = (c << 6) | (ByteAt(text, *pos + i) & 0x3F);
  *pos += static_cast<size_t>(n);
  return c;
}

char32_t PreviousChar(std::string_view text, size_t* pos) {
  size_t start = *pos - 1;
  while (start > 0 && (ByteAt(text, start) & 0xC0) == 0x80) --start;
  *pos = start;
  size_t walk = start;
  return NextChar(text, &walk);
}

void AppendUtf8(char32_t c, std::string* out) {
  if (c < 0x80) {
    out->push_back(static_cast<char>(c));
  } else if (c < 0x800) {
    out->push_back(static_cast<char>(0xC0 | (c >> 6)));
    out->push_back(static_cast<char>(0x80 | (c & 0x3F)));
  } else if (c < 0x10000) {
    out->push_back(static_cast<char>(0xE0 | (c >> 12)));
    out->push_back(static_cast<char>(0x80 | ((c >> 6) & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (c & 0x3F)));
  } else {
    out->push_back(static_cast<char>(0xF0 | (c >> 18)));
    out->push_back(static_cast<char>(0x80 | ((c >> 12) & 0x3F)));
    out->push_back(static_cast<char>(0x80 | ((c >> 6) & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (c & 0x3F)));
  }
}

}  // namespace nibble
