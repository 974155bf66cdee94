// SPDX-License-Identifier: Apache-2.0
// Floor 5. The lexer. Linear: every marker is searched for once from where the last one ended.
#include "text/jinja/lexer.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>

#include "base/printable.h"
#include "base/utf8.h"
#include "text/jinja/pystr.h"
#include "text/unicode.h"

namespace nibble::jinja {
namespace {

bool IsDigitChar(char c) { return c >= '0' && c <= '9'; }

// \r\n and \r become \n; one newline at the end goes.
std::string Normalized(Text text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\r') {
      out += text[i];
    } else {
      out += '\n';
      if (i + 1 < text.size() && text[i + 1] == '\n') ++i;
    }
  }
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

class Lexer {
 public:
  Lexer(Text text, Text source, const Limits& limits, Trimming trimming)
      : s_(Normalized(text)), source_(source), limits_(limits), trimming_(trimming) {}

  Result<std::vector<Token>> Run() {
    while (status_.ok() && pos_ < s_.size()) Root();
    Add(TokenKind::kEnd, {});
    if (!status_.ok()) return status_;
    return std::move(tokens_);
  }

 private:
  void Fail(std::string what) {
    if (status_.ok()) status_ = Error(Code::kInvalidArgument, "{}, line {}: {}", source_, line_, what);
    pos_ = s_.size();
  }

  Token& Add(TokenKind kind, std::string text) {
    // More than any tree of that many nodes has: what follows would be refused by the parser.
    if (tokens_.size() > 8 * limits_.nodes) Fail("too many tokens");
    return tokens_.emplace_back(Token{kind, line_, std::move(text)});
  }

  // Moves to `end` and counts the lines on the way.
  void Advance(size_t end) {
    line_ += static_cast<int>(std::count(s_.begin() + static_cast<ptrdiff_t>(pos_),
                                         s_.begin() + static_cast<ptrdiff_t>(end), '\n'));
    if (end > pos_) line_starting_ = s_[end - 1] == '\n';
    pos_ = end;
  }

  size_t SkipSpace(size_t pos) const {
    while (pos < s_.size()) {
      size_t next = pos;
      if (!IsSpace(NextChar(s_, &next))) break;
      pos = next;
    }
    return pos;
  }

  bool At(size_t pos, Text what) const { return Text(s_).substr(std::min(pos, s_.size())).starts_with(what); }

  // The end of "{%- raw -%}" at `pos`, 0 when it is something else.
  size_t RawBegin(size_t pos) const {
    pos += 2;
    if (At(pos, "-") || At(pos, "+")) ++pos;
    pos = SkipSpace(pos);
    if (!At(pos, "raw")) return 0;
    pos = SkipSpace(pos + 3);
    if (At(pos, "-%}")) return SkipSpace(pos + 3);
    return At(pos, "%}") ? pos + 2 : 0;
  }

  // Text up to the marker at `at`, with what the marker strips from its end.
  void AddText(size_t at, bool strips_line_start) {
    Text text = Text(s_).substr(pos_, at - pos_);
    const char sign = at + 2 < s_.size() ? s_[at + 2] : '\0';
    if (sign == '-') {
      text = Strip(text, std::nullopt, Ends::kRight);
    } else if (sign != '+' && trimming_.lstrip_blocks && strips_line_start) {
      const size_t newline = text.rfind('\n');
      const size_t start = newline == Text::npos ? 0 : newline + 1;
      if ((start > 0 || line_starting_) && Strip(text.substr(start)).empty()) text = text.substr(0, start);
    }
    if (!text.empty()) Add(TokenKind::kText, std::string(text));
    Advance(at);
  }

  void Root() {
    size_t at = pos_;
    for (; at < s_.size(); ++at) {
      at = s_.find('{', at);
      if (at == std::string::npos || At(at, "{{") || At(at, "{%") || At(at, "{#")) break;
    }
    if (at >= s_.size()) {
      Add(TokenKind::kText, s_.substr(pos_));
      return Advance(s_.size());
    }
    const char kind = s_[at + 1];
    const size_t raw = kind == '%' ? RawBegin(at) : 0;
    AddText(at, kind != '{');
    if (raw != 0) return Raw(raw);
    const bool signed_marker = At(at + 2, "-") || At(at + 2, "+");
    if (kind == '#') return Comment(at + 2 + signed_marker);
    Add(kind == '{' ? TokenKind::kPrintBegin : TokenKind::kBlockBegin, {});
    Advance(at + 2 + signed_marker);
    Tag(kind == '%');
  }

  // Where the text goes on after an end marker ("%}" or "#}") at `at`; 0 when there is none. `pos` is of its
  // first character, which may be the sign.
  size_t EndMarker(size_t pos, Text marker) const {
    if (At(pos, "-") && At(pos + 1, marker)) return SkipSpace(pos + 3);
    if (At(pos, "+") && At(pos + 1, marker)) return pos + 3;
    if (!At(pos, marker)) return 0;
    return pos + 2 + (trimming_.trim_blocks && At(pos + 2, "\n"));
  }

  void Comment(size_t from) {
    const size_t close = s_.find("#}", from);
    if (from == s_.size()) return Advance(from);  // Jinja lets nothing at all stand for the rest
    if (close == std::string::npos) return Fail("a comment without #}");
    const bool has_sign = close > from && (s_[close - 1] == '-' || s_[close - 1] == '+');
    Advance(EndMarker(close - has_sign, "#}"));
  }

  void Raw(size_t from) {
    Advance(from);
    for (size_t at = s_.find("{%", from); at != std::string::npos; at = s_.find("{%", at + 2)) {
      size_t pos = at + 2;
      if (At(pos, "-") || At(pos, "+")) ++pos;
      pos = SkipSpace(pos);
      if (!At(pos, "endraw")) continue;
      const size_t end = EndMarker(SkipSpace(pos + 6), "%}");
      if (end == 0) continue;
      AddText(at, true);
      return Advance(end);
    }
    if (from < s_.size()) Fail("raw without endraw");
  }

  // Tokens up to the end of the tag.
  void Tag(bool block) {
    brackets_.clear();
    while (status_.ok()) {
      if (brackets_.empty()) {
        size_t end = 0;
        if (block) {
          end = EndMarker(pos_, "%}");
        } else if (At(pos_, "-}}")) {
          end = SkipSpace(pos_ + 3);
        } else if (At(pos_, "}}")) {
          end = pos_ + 2;
        }
        if (end != 0) {
          Add(block ? TokenKind::kBlockEnd : TokenKind::kPrintEnd, {});
          return Advance(end);
        }
      }
      if (const size_t end = SkipSpace(pos_); end > pos_) {
        Advance(end);
        continue;
      }
      if (pos_ >= s_.size()) return;  // the parser says what is missing
      One();
    }
  }

  void One() {
    const char c = s_[pos_];
    if (c == '\'' || c == '"') return Quoted();
    if (IsDigitChar(c)) return Number();
    size_t end = pos_;
    while (end < s_.size()) {
      size_t next = end;
      const char32_t code = NextChar(s_, &next);
      if (code != '_' && !(code < 0x80 ? std::isalnum(static_cast<int>(code)) : unicode::IsWord(code))) break;
      end = next;
    }
    if (end == pos_) return Operator();
    Add(TokenKind::kName, s_.substr(pos_, end - pos_));
    Advance(end);
  }

  void Operator() {
    static constexpr Text kTwo[] = {"//", "**", "==", "!=", ">=", "<="};
    size_t size = 1;
    for (const Text op : kTwo)
      if (At(pos_, op)) size = 2;
    const char c = s_[pos_];
    if (size == 1 && Text("+-/*%~[](){}><=.:|,;").find(c) == Text::npos)
      return Fail(fmt::format("unexpected character '{}'", Printable(Text(s_).substr(pos_, 1))));
    if (c == '(' || c == '[' || c == '{') {
      brackets_ += c == '(' ? ')' : c == '[' ? ']' : '}';
    } else if (c == ')' || c == ']' || c == '}') {
      if (brackets_.empty()) return Fail(fmt::format("unexpected '{}'", c));
      if (brackets_.back() != c)
        return Fail(fmt::format("unexpected '{}', wanted '{}'", c, brackets_.back()));
      brackets_.pop_back();
    }
    if (brackets_.size() > static_cast<size_t>(limits_.nesting))
      return Fail(fmt::format("brackets nested more than {} deep", limits_.nesting));
    Add(TokenKind::kOperator, s_.substr(pos_, size));
    Advance(pos_ + size);
  }

  // Digits that single underscores may part; the end of them, `pos` when there are none.
  template <class IsDigit>
  size_t Digits(size_t pos, IsDigit is_digit) const {
    size_t end = pos;
    for (size_t i = pos; i < s_.size(); ++i) {
      if (is_digit(s_[i])) {
        end = i + 1;
      } else if (s_[i] != '_' || i != end || i == pos) {
        break;
      }
    }
    return end;
  }

  bool Fraction(size_t whole, size_t* end) const {
    *end = whole;
    if (At(whole, "."))
      *end = Digits(whole + 1, IsDigitChar) > whole + 1 ? Digits(whole + 1, IsDigitChar) : whole;
    bool is_float = *end > whole;
    if (At(*end, "e") || At(*end, "E")) {
      const size_t sign = *end + 1 + (At(*end + 1, "+") || At(*end + 1, "-"));
      const size_t exponent = Digits(sign, IsDigitChar);
      if (exponent > sign) {
        *end = exponent;
        is_float = true;
      }
    }
    return is_float;
  }

  void Number() {
    const auto plain = [this](size_t begin, size_t end) {
      std::string digits = s_.substr(begin, end - begin);
      std::erase(digits, '_');
      return digits;
    };
    size_t end = 0;
    const bool after_point = pos_ > 0 && s_[pos_ - 1] == '.';
    if (!after_point && Fraction(Digits(pos_, IsDigitChar), &end)) {
      Add(TokenKind::kFloat, {}).real = std::strtod(plain(pos_, end).c_str(), nullptr);
      return Advance(end);
    }
    int base = 10;
    size_t begin = pos_;
    if (s_[pos_] == '0' && pos_ + 2 < s_.size()) {
      const char letter = static_cast<char>(s_[pos_ + 1] | 0x20);
      base = letter == 'x' ? 16 : letter == 'o' ? 8 : letter == 'b' ? 2 : 10;
      const auto fits = [base](char c) {
        const int value = IsDigitChar(c)                           ? c - '0'
                          : (c | 0x20) >= 'a' && (c | 0x20) <= 'f' ? (c | 0x20) - 'a' + 10
                                                                   : 99;
        return value < base;
      };
      const size_t first = pos_ + 2 + At(pos_ + 2, "_");
      end = base == 10 ? 0 : Digits(first, fits);
      if (base != 10 && end > first)
        begin = pos_ + 2;
      else
        base = 10;
    }
    if (base == 10) {
      const auto zero = [](char c) { return c == '0'; };
      end = s_[pos_] == '0' ? Digits(pos_, zero) : Digits(pos_, IsDigitChar);
    }
    const std::string digits = plain(begin, end);
    int64_t value = 0;
    const auto [stop, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
    if (error != std::errc()) return Fail(fmt::format("the integer {} leaves 64 bits", Printable(digits)));
    Add(TokenKind::kInteger, {}).integer = value;
    Advance(end);
  }

  void Quoted() {
    const char quote = s_[pos_];
    std::string out;
    size_t i = pos_ + 1;
    while (i < s_.size() && s_[i] != quote) {
      if (s_[i] != '\\') {
        out += s_[i++];
      } else if (!Escape(&i, &out)) {
        return;
      }
    }
    if (i >= s_.size()) return Fail("a text without its closing quote");
    Add(TokenKind::kString, std::move(out));
    Advance(i + 1);
  }

  // Python's escapes at s_[*i], a backslash. What it does not know stays as it is.
  bool Escape(size_t* i, std::string* out) {
    const char c = *i + 1 < s_.size() ? s_[*i + 1] : '\0';
    *i += 2;
    static constexpr Text kNames = "\\'\"abfnrtv", kMeant = "\\'\"\a\b\f\n\r\t\v";
    if (c == '\n') return true;
    if (const size_t at = kNames.find(c); at != Text::npos) {
      *out += kMeant[at];
      return true;
    }
    if (c >= '0' && c <= '7') return Octal(i, out);
    const int digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (digits == 0) {
      if (c == 'N') return Fail("\\N{...} in a text is not supported"), false;
      *out += '\\';
      --*i;  // the character may be more than one byte
      return true;
    }
    uint32_t code = 0;
    const char* begin = s_.data() + std::min(*i, s_.size());
    const char* end = s_.data() + std::min(*i + static_cast<size_t>(digits), s_.size());
    const auto [stop, error] = std::from_chars(begin, end, code, 16);
    if (error != std::errc() || stop != begin + digits)
      return Fail(fmt::format("\\{} without its {} digits", c, digits)), false;
    if (code >= 0x110000 || (code >= 0xD800 && code < 0xE000))
      return Fail("an escape that is no character"), false;
    AppendUtf8(code, out);
    *i += static_cast<size_t>(digits);
    return true;
  }

  bool Octal(size_t* i, std::string* out) {
    char32_t code = 0;
    const size_t begin = *i - 1;
    for (*i = begin; *i < s_.size() && *i < begin + 3 && s_[*i] >= '0' && s_[*i] <= '7'; ++*i)
      code = code * 8 + static_cast<char32_t>(s_[*i] - '0');
    AppendUtf8(code, out);
    return true;
  }

  std::string s_;
  Text source_;
  const Limits& limits_;
  Trimming trimming_;
  std::vector<Token> tokens_;
  std::string brackets_;  // the closing ones that are awaited
  size_t pos_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  Status status_;
};

}  // namespace

Result<std::vector<Token>> Tokenize(std::string_view text, std::string_view source, const Limits& limits,
                                    Trimming trimming) {
  if (text.size() > limits.source_bytes) {
    return Error(Code::kInvalidArgument, "{}: {} bytes, at most {} are allowed", source, text.size(),
                 limits.source_bytes);
  }
  if (const size_t bad = FindInvalidUtf8(text); bad != std::string::npos)
    return Error(Code::kInvalidArgument, "{}: byte {} is not UTF-8", source, bad);
  return Lexer(text, source, limits, trimming).Run();
}

}  // namespace nibble::jinja
