// SPDX-License-Identifier: Apache-2.0
// Floor 5. Tokens of a safetensors header: RFC 8259 strings and white space, natural numbers.
#include "io/header_scanner.h"

#include "base/checked.h"
#include "base/printable.h"

namespace nibble::io {
namespace {

void AppendUtf8(uint32_t code, std::string* out) {
  const auto put = [&](uint32_t byte) { out->push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xc0 | code >> 6);
    put(0x80 | (code & 0x3f));
  } else if (code < 0x10000) {
    put(0xe0 | code >> 12);
    put(0x80 | (code >> 6 & 0x3f));
    put(0x80 | (code & 0x3f));
  } else {
    put(0xf0 | code >> 18);
    put(0x80 | (code >> 12 & 0x3f));
    put(0x80 | (code >> 6 & 0x3f));
    put(0x80 | (code & 0x3f));
  }
}

}  // namespace

void HeaderScanner::SkipSpace() {
  while (at_ < text_.size()) {
    const char c = text_[at_];
    if (c != ' ' && c != '\n' && c != '\t' && c != '\r') return;
    ++at_;
  }
}

bool HeaderScanner::AtEnd() {
  SkipSpace();
  return at_ == text_.size();
}

Status HeaderScanner::Fail(std::string_view wanted) const {
  const std::string_view rest = text_.substr(at_, 24);
  if (rest.empty()) return Error(Code::kCorrupt, "{}: the header ends where {} was expected", path_, wanted);
  return Error(Code::kCorrupt, "{}: header byte {}: expected {}, found \"{}\"", path_, at_, wanted,
               Printable(rest));
}

bool HeaderScanner::Skip(char c) {
  SkipSpace();
  if (at_ == text_.size() || text_[at_] != c) return false;
  ++at_;
  return true;
}

Status HeaderScanner::Expect(char c) {
  if (Skip(c)) return {};
  return Fail(std::string(1, c));
}

Status HeaderScanner::String(std::string* value) {
  value->clear();
  if (!Skip('"')) return Fail("a string");
  while (at_ < text_.size()) {
    const char c = text_[at_];
    if (c == '"') {
      ++at_;
      return {};
    }
    if (static_cast<unsigned char>(c) < 0x20) return Fail("a string without control characters");
    if (c == '\\') {
      NIBBLE_RETURN_IF_ERROR(Escape(value));
    } else {
      value->push_back(c);
      ++at_;
    }
  }
  return Fail("the end of a string");
}

Status HeaderScanner::Escape(std::string* value) {
  constexpr std::string_view kFrom = "\"\\/bfnrt", kTo = "\"\\/\b\f\n\r\t";
  const char kind = at_ + 1 < text_.size() ? text_[at_ + 1] : '\0';
  if (const size_t i = kFrom.find(kind); i != std::string_view::npos) {
    value->push_back(kTo[i]);
    at_ += 2;
    return {};
  }
  if (kind != 'u') return Fail("an escape of JSON");
  uint32_t code = 0;
  NIBBLE_RETURN_IF_ERROR(HexQuad(&code));
  if (code >= 0xd800 && code < 0xdc00) {  // a pair of surrogates
    uint32_t low = 0;
    if (text_.substr(at_, 2) != "\\u") return Fail("the second half of a surrogate pair");
    NIBBLE_RETURN_IF_ERROR(HexQuad(&low));
    if (low < 0xdc00 || low >= 0xe000) return Fail("a surrogate pair");
    code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
  } else if (code >= 0xdc00 && code < 0xe000) {
    return Fail("a surrogate pair");
  }
  AppendUtf8(code, value);
  return {};
}

Status HeaderScanner::HexQuad(uint32_t* unit) {  // at the backslash of \uXXXX
  if (text_.size() - at_ < 6) return Fail("four hexadecimal digits");
  *unit = 0;
  for (const char c : text_.substr(at_ + 2, 4)) {
    const bool digit = c >= '0' && c <= '9', lower = c >= 'a' && c <= 'f', upper = c >= 'A' && c <= 'F';
    if (!digit && !lower && !upper) return Fail("four hexadecimal digits");
    *unit = *unit * 16 + static_cast<uint32_t>(digit ? c - '0' : (lower ? c - 'a' : c - 'A') + 10);
  }
  at_ += 6;
  return {};
}

Status HeaderScanner::Natural(uint64_t* value) {
  SkipSpace();
  const size_t begin = at_;
  Checked sum(0);
  while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') {
    sum = sum * 10 + static_cast<uint64_t>(text_[at_++] - '0');
  }
  const size_t digits = at_ - begin;
  const bool more = at_ < text_.size() && (text_[at_] == '.' || text_[at_] == 'e' || text_[at_] == 'E');
  if (digits == 0 || more || !sum.ok() || (digits > 1 && text_[begin] == '0')) {
    at_ = begin;
    return Fail("a whole number in [0, 2^64)");
  }
  *value = *sum.Get();
  return {};
}

}  // namespace nibble::io
