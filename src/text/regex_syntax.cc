// SPDX-License-Identifier: Apache-2.0
// Floor 5. Recursive descent over a split pattern: parse, check, write the PCRE2 form. Accepted: literals,
// classes, properties, groups, alternatives, options (?i:), look-ahead of bounded length, quantifiers, where
// repetition beyond `?` applies only to something that matches in exactly one way.
#include "text/regex_syntax.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <optional>

#include "base/printable.h"
#include "base/utf8.h"

namespace nibble {
namespace {

constexpr int kMaxGroupDepth = 16;         // the parser recurses this far at most
constexpr int kMaxRepeat = 1000;           // counts in {n,m}
constexpr size_t kMaxPatternBytes = 8192;  // the longest known pattern has about 700

// \s and \w as Oniguruma has them, for use inside []. Alone its \w also takes the Latin-1 digits and
// fractions.
constexpr std::string_view kSpace = "\\p{White_Space}";
constexpr std::string_view kNotSpace = "\\P{White_Space}";
constexpr std::string_view kWord = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}";
constexpr std::string_view kWordAlone = "\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}";

std::string Escaped(char32_t c) {
  const bool plain = c < 0x80 && ((c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z'));
  return plain ? std::string(1, static_cast<char>(c)) : fmt::format("\\x{{{:X}}}", static_cast<uint32_t>(c));
}

// One piece of the translation.
struct Part {
  std::string text;
  bool choice = false;     // can match in more than one way from one place
  bool unbounded = false;  // no limit to what it reads
  std::optional<char32_t> literal = std::nullopt;
};

struct Repeat {
  int min = 1, max = 1;  // max -1: no limit
  std::string text;      // "" when there is no quantifier
};

class Translator {
 public:
  explicit Translator(std::string_view pattern) : in_(pattern) {}

  Result<std::string> Run() {
    if (in_.size() > kMaxPatternBytes) return Refuse(0, "a pattern of more than 8192 bytes");
    if (FindInvalidUtf8(in_) != std::string_view::npos) return Refuse(0, "bytes that are not UTF-8");
    NIBBLE_ASSIGN(Part all, Alternatives(0, false));
    if (pos_ < in_.size()) return Refuse(pos_, "an unmatched )");
    return std::move(all.text);
  }

 private:
  Status Refuse(size_t at, std::string_view what) const {
    return Error(Code::kUnsupported, "pattern \"{}\": byte {}: {} is not supported", Printable(in_, 200), at,
                 what);
  }
  bool End() const { return pos_ >= in_.size(); }
  char Peek() const { return End() ? '\0' : in_[pos_]; }
  bool Eat(std::string_view s) {
    if (in_.substr(pos_, s.size()) != s) return false;
    pos_ += s.size();
    return true;
  }

  Result<Part> Alternatives(int depth, bool caseless) {
    if (depth > kMaxGroupDepth) return Refuse(pos_, "a group more than 16 deep");
    Part all;
    for (;;) {
      NIBBLE_ASSIGN(const Part one, Concatenation(depth, caseless));
      all.text += one.text;
      all.choice |= one.choice;
      all.unbounded |= one.unbounded;
      if (!Eat("|")) return all;
      all.text += "|";
      all.choice = true;
    }
  }

  Result<Part> Concatenation(int depth, bool caseless) {
    Part all;
    char32_t previous = 0;
    while (!End() && Peek() != '|' && Peek() != ')') {
      const size_t start = pos_;
      NIBBLE_ASSIGN(Part part, Element(depth, caseless));
      const char32_t literal = part.literal.value_or(0);
      if (caseless && FoldsToOne(previous, literal)) return Refuse(start, "ss, st, ff, fi or fl under (?i)");
      previous = literal;
      all.text += part.text;
      all.choice |= part.choice;
      all.unbounded |= part.unbounded;
      // Behind the last element of an alternative nothing can fail, so nothing is taken back.
      const bool ends_match = depth == 0 && (End() || Peek() == '|');
      if (part.choice && !ends_match) all.text += fmt::format("(?C{})", kChoiceCallout);
    }
    return all;
  }

  // Oniguruma also folds one character to two ("ss" and U+00DF); PCRE2 does not. No pattern needs that.
  static bool FoldsToOne(char32_t first, char32_t second) {
    const char32_t a = first | 0x20, b = second | 0x20;
    return (a == 's' && (b == 's' || b == 't')) || (a == 'f' && (b == 'f' || b == 'i' || b == 'l'));
  }

  Result<Part> Literal(size_t at, char32_t c, bool caseless) const {
    if (caseless && c >= 0x80) return Refuse(at, "a character outside ASCII under (?i)");
    return Part{Escaped(c), false, false, c};
  }

  Result<Part> Element(int depth, bool caseless) {
    const size_t start = pos_;
    NIBBLE_ASSIGN(Part part, Atom(depth, caseless));
    NIBBLE_ASSIGN(const Repeat repeat, Quantifier());
    if (repeat.text.empty()) return part;
    if (anchor_) return Refuse(start, "a repeated anchor or look-ahead");
    const bool many = repeat.max != 1;
    if (many && part.unbounded)
      return Refuse(start, "a quantifier inside a repeated group (nested quantifiers)");
    if (many && part.choice) return Refuse(start, "a choice inside a repeated group");
    part.text += repeat.text;
    part.choice |= repeat.min != repeat.max;
    part.unbounded |= repeat.max < 0;
    part.literal.reset();
    return part;
  }

  Result<Repeat> Quantifier() {
    const size_t start = pos_;
    Repeat r;
    bool counted = false;
    if (Eat("*")) {
      r = {0, -1, "*"};
    } else if (Eat("+")) {
      r = {1, -1, "+"};
    } else if (Eat("?")) {
      r = {0, 1, "?"};
    } else if (Peek() == '{') {
      counted = true;
      NIBBLE_ASSIGN(r, Counts());
    } else {
      return r;
    }
    const char mark = Peek();
    if (counted && (mark == '+' || mark == '?')) return Refuse(start, "{n,m} followed by + or ?");
    if (mark == '+' || mark == '?') {
      r.text += mark;
      ++pos_;
    }
    if (!End() && (Peek() == '*' || Peek() == '+' || Peek() == '?' || Peek() == '{')) {
      return Refuse(start, "a quantifier on a quantifier");
    }
    return r;
  }

  Result<Repeat> Counts() {
    const size_t start = pos_++;
    const std::optional<int> low = Number();
    std::optional<int> high = low;
    const bool comma = Eat(",");
    if (comma) high = Number();
    if (!Eat("}") || (!low && !high)) return Refuse(start, "a { that opens no {n}, {n,}, {n,m} or {,m}");
    const int min = low.value_or(0), max = high.value_or(-1);
    if (min > kMaxRepeat || max > kMaxRepeat || (max >= 0 && max < min) || max == 0) {
      return Refuse(start, "a count that is reversed, zero or above 1000");
    }
    return Repeat{min, max, fmt::format("{{{},{}}}", min, max < 0 ? "" : fmt::format("{}", max))};
  }

  std::optional<int> Number() {
    std::optional<int> n;
    while (Peek() >= '0' && Peek() <= '9') n = std::min(n.value_or(0) * 10 + (in_[pos_++] - '0'), 1000000);
    return n;
  }

  Result<Part> Atom(int depth, bool caseless) {
    const size_t start = pos_;
    anchor_ = false;
    switch (Peek()) {
      case '(':
        return Group(depth, caseless);
      case '[': {
        if (caseless) return AsciiClass();
        NIBBLE_ASSIGN(std::string text, Class());
        return Part{std::move(text)};
      }
      case '\\':
        return Escape(caseless);
      case '.':
        ++pos_;
        return Part{"[^\\x{A}]"};
      case '^':
      case '$':
        anchor_ = true;
        return Part{in_[pos_++] == '^' ? "(?m:^)" : "(?m:$)"};
      case '*':
      case '+':
      case '?':
      case '{':
        return Refuse(start, "a quantifier with nothing before it");
      default: {
        const char32_t c = NextChar(in_, &pos_);
        return Literal(start, c, caseless);
      }
    }
  }

  Result<Part> Group(int depth, bool caseless) {
    const size_t start = pos_++;
    std::string open = "(?:";
    bool look_ahead = false;
    if (Peek() == '?') {
      if (Eat("?:")) {
      } else if (Eat("?i:")) {
        open = "(?i:";
        caseless = true;
      } else if (Eat("?>")) {
        open = "(?>";
      } else if (Eat("?=") || Eat("?!")) {
        open = std::string("(?") + in_[pos_ - 1];
        look_ahead = true;
      } else if (Eat("?<=") || Eat("?<!")) {
        return Refuse(start, "look-behind");
      } else {
        return Refuse(start, "the group " + Printable(in_.substr(start, 3)));
      }
    }
    NIBBLE_ASSIGN(Part body, Alternatives(depth + 1, caseless));
    if (!Eat(")")) return Refuse(start, "a group that is not closed");
    if (look_ahead && body.unbounded) return Refuse(start, "look-ahead of unbounded length");
    anchor_ = look_ahead;
    body.text = open + body.text + ")";
    body.literal.reset();
    if (look_ahead) body.choice = false;  // once matched it is never tried another way
    return body;
  }

  Result<Part> Escape(bool caseless) {
    const size_t start = pos_;
    if (pos_ + 1 < in_.size()) {
      const char c = in_[pos_ + 1];
      if (c >= '1' && c <= '9') return Refuse(start, "a back-reference");
      if (c == 'k') return Refuse(start, "a back-reference");
      if (c == 'A' || c == 'z') {
        pos_ += 2;
        anchor_ = true;
        return Part{std::string("\\") + c};
      }
    }
    NIBBLE_ASSIGN(const ClassItem item, EscapeItem());
    if (item.single) return Literal(start, *item.single, caseless);
    if (caseless && item.text != kSpace) return Refuse(start, "a property under (?i)");
    if (item.text == kWord) return Part{fmt::format("[{}{}]", kWord, kWordAlone)};
    return Part{"[" + item.text + "]"};
  }

  // What an escape or a character stands for inside [].
  struct ClassItem {
    std::string text;
    std::optional<char32_t> single;
  };

  Result<ClassItem> EscapeItem() {
    const size_t start = pos_++;
    if (End()) return Refuse(start, "a \\ at the end");
    const char32_t c = NextChar(in_, &pos_);
    switch (c) {
      case 's':
        return ClassItem{std::string(kSpace), {}};
      case 'S':
        return ClassItem{std::string(kNotSpace), {}};
      case 'd':
        return ClassItem{"\\p{Nd}", {}};
      case 'D':
        return ClassItem{"\\P{Nd}", {}};
      case 'w':
        return ClassItem{std::string(kWord), {}};
      case 'h':
        return ClassItem{"0-9A-Fa-f", {}};
      case 'n':
        return ClassItem{"", U'\n'};
      case 'r':
        return ClassItem{"", U'\r'};
      case 't':
        return ClassItem{"", U'\t'};
      case 'f':
        return ClassItem{"", U'\f'};
      case 'v':
        return ClassItem{"", U'\v'};
      case 'p':
      case 'P':
        return Property(start, c == 'P');
      case 'u':
      case 'x':
        return HexEscape(start, c == 'u');
      default:
        break;
    }
    const bool letter = c < 0x80 && ((c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z'));
    if (letter) return Refuse(start, "the escape " + Printable(in_.substr(start, 2)));
    return ClassItem{"", c};
  }

  Result<ClassItem> Property(size_t start, bool negated) {
    if (!Eat("{")) return Refuse(start, "\\p without {");
    if (Eat("^")) negated = !negated;
    const size_t close = in_.find('}', pos_);
    if (close == std::string_view::npos) return Refuse(start, "\\p{ without }");
    const std::string_view name = in_.substr(pos_, close - pos_);
    pos_ = close + 1;
    const bool letters = std::all_of(name.begin(), name.end(), [](char c) {
      return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '_';
    });
    if (name.empty() || !letters) return Refuse(start, "the property " + Printable(name));
    // One or two letters are a general category; a longer name can only be a script.
    return ClassItem{fmt::format("\\{}{{{}{}}}", negated ? 'P' : 'p', name.size() > 2 ? "sc:" : "", name),
                     {}};
  }

  Result<ClassItem> HexEscape(size_t start, bool four_digits) {
    const bool braces = !four_digits && Eat("{");
    const size_t most = four_digits ? 4 : braces ? 6 : 2;
    uint32_t value = 0;
    size_t digits = 0;
    for (; digits < most && !End(); ++digits, ++pos_) {
      const char c = in_[pos_];
      const char lower = static_cast<char>(c | 0x20);
      if (c >= '0' && c <= '9') {
        value = value * 16 + static_cast<uint32_t>(c - '0');
      } else if (lower >= 'a' && lower <= 'f') {
        value = value * 16 + static_cast<uint32_t>(lower - 'a' + 10);
      } else {
        break;
      }
    }
    const bool complete = braces ? digits > 0 && Eat("}") : digits == most;
    // \xHH above 7F is a byte in Oniguruma, not a character
    const bool byte = !four_digits && !braces && value >= 0x80;
    if (!complete || byte || value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) {
      return Refuse(start, "this hexadecimal escape");
    }
    return ClassItem{"", static_cast<char32_t>(value)};
  }

  Result<ClassItem> ItemOfClass() {
    const size_t start = pos_;
    if (Peek() == '\\') return EscapeItem();
    if (Peek() == '[') return Refuse(start, "[ inside [] (nested or named class)");
    if (in_.substr(pos_, 2) == "&&") return Refuse(start, "&& inside []");
    return ClassItem{"", NextChar(in_, &pos_)};
  }

  Result<std::string> Class() {
    const size_t start = pos_++;
    std::string out = Eat("^") ? "[^" : "[";
    if (Peek() == ']') return Refuse(start, "] as the first of []");
    while (!End() && Peek() != ']') {
      const size_t at = pos_;
      NIBBLE_ASSIGN(const ClassItem first, ItemOfClass());
      out += first.single ? Escaped(*first.single) : first.text;
      const bool range = Peek() == '-' && pos_ + 1 < in_.size() && in_[pos_ + 1] != ']';
      if (!range) continue;
      ++pos_;
      NIBBLE_ASSIGN(const ClassItem last, ItemOfClass());
      if (!first.single || !last.single || *last.single < *first.single) return Refuse(at, "this range");
      out += "-" + Escaped(*last.single);
    }
    if (!Eat("]")) return Refuse(start, "a [ that is not closed");
    return out + "]";
  }

  // Under (?i) only listed ASCII characters: their folding is the same everywhere.
  Result<Part> AsciiClass() {
    const size_t start = pos_;
    NIBBLE_ASSIGN(std::string text, Class());
    const std::string_view source = in_.substr(start, pos_ - start);
    const bool ascii = std::all_of(source.begin(), source.end(), [](char c) {
      return static_cast<unsigned char>(c) < 0x80 && c != '\\' && c != '^' && c != '-';
    });
    if (!ascii) return Refuse(start, "anything but a list of ASCII characters in [] under (?i)");
    return Part{std::move(text)};
  }

  std::string_view in_;
  size_t pos_ = 0;
  bool anchor_ = false;  // the last atom matches no characters
};

}  // namespace

Result<std::string> TranslatePattern(std::string_view pattern) { return Translator(pattern).Run(); }

std::string QuotePattern(std::string_view text) {
  std::string out;
  for (size_t pos = 0; pos < text.size();) out += Escaped(NextChar(text, &pos));
  return out;
}

}  // namespace nibble
