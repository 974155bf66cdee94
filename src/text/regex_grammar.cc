// SPDX-License-Identifier: Apache-2.0
// Floor 5. Recursive descent over a regular expression; groups are counted.
#include "text/regex_grammar.h"

#include <optional>
#include <string>
#include <vector>

#include "base/printable.h"
#include "text/pattern_cursor.h"

namespace nibble {
namespace {

using NodeId = Grammar::NodeId;

const CharSet& Digits() {
  static const CharSet set{{'0', '9'}};
  return set;
}
const CharSet& Word() {
  static const CharSet set{{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
  return set;
}
const CharSet& Space() {
  static const CharSet set{{0x9, 0xD},       {' ', ' '},       {0xA0, 0xA0},     {0x1680, 0x1680},
                           {0x2000, 0x200A}, {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F},
                           {0x3000, 0x3000}, {0xFEFF, 0xFEFF}};
  return set;
}
const CharSet& LineEnds() {
  static const CharSet set{{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}};
  return set;
}

class Parser {
 public:
  Parser(std::string_view pattern, bool search, const SpellChars& spell, Grammar* grammar)
      : in_(pattern), search_(search), spell_(spell), g_(*grammar) {}

  Result<NodeId> Run() {
    const std::string_view text = in_.text();
    if (text.size() > g_.limits().max_pattern_bytes) {
      return Error(Code::kInvalidArgument, "a pattern of {} bytes, at most {}", text.size(),
                   g_.limits().max_pattern_bytes);
    }
    if (const size_t bad = FindInvalidUtf8(text); bad != std::string_view::npos) {
      return Error(Code::kInvalidArgument, "pattern: byte {} is not UTF-8", bad);
    }
    std::vector<NodeId> choices;
    do {
      NIBBLE_ASSIGN(const NodeId one, Whole());
      choices.push_back(one);
    } while (in_.Eat("|"));
    if (!in_.End()) return Refuse(in_.pos(), "a ) without its (");
    return g_.Choice(choices);
  }

 private:
  Status Refuse(size_t at, std::string_view what) const {
    return Error(Code::kInvalidArgument, "pattern \"{}\", byte {}: {}", Printable(in_.text(), 200), at, what);
  }
  NodeId Anything() { return g_.Repeat(spell_(CharSet::All()), 0, Grammar::kUnbounded); }

  // An alternative outside of groups, with its anchors.
  Result<NodeId> Whole() {
    const bool at_start = in_.Eat("^");
    NIBBLE_ASSIGN(const NodeId body, Sequence(0));
    const bool at_end = in_.Eat("$");
    if (at_end && !in_.End() && !in_.Sees("|")) return Refuse(in_.pos() - 1, "$ before the end");
    if (!search_) return body;
    std::vector<NodeId> parts;
    if (!at_start) parts.push_back(Anything());
    parts.push_back(body);
    if (!at_end) parts.push_back(Anything());
    return g_.Sequence(parts);
  }

  Result<NodeId> Alternatives(int depth) {
    if (depth > g_.limits().max_depth) {
      return Refuse(in_.pos(), fmt::format("groups nest more than {} deep", g_.limits().max_depth));
    }
    std::vector<NodeId> choices;
    do {
      NIBBLE_ASSIGN(const NodeId one, Sequence(depth));
      choices.push_back(one);
    } while (in_.Eat("|"));
    return g_.Choice(choices);
  }

  Result<NodeId> Sequence(int depth) {
    std::vector<NodeId> parts;
    while (!in_.End() && !in_.Sees("|") && !in_.Sees(")")) {
      if (depth == 0 && in_.Sees("$")) break;
      NIBBLE_ASSIGN(NodeId part, Atom(depth));
      NIBBLE_RETURN_IF_ERROR(Quantifier(&part));
      parts.push_back(part);
    }
    return g_.Sequence(parts);
  }

  Result<NodeId> Atom(int depth) {
    const size_t start = in_.pos();
    switch (in_.Peek()) {
      case '(':
        return Group(depth);
      case '[':
        return Class();
      case '.':
        in_.Next();
        return spell_(LineEnds().Complement());
      case '\\': {
        NIBBLE_ASSIGN(const CharSet set, Escape(false));
        return spell_(set);
      }
      case '^':
        return Refuse(start, "^ behind the beginning, or in a group");
      case '$':
        return Refuse(start, "$ before the end, or in a group");
      case '*':
      case '+':
      case '?':
        return Refuse(start, "nothing to repeat before this");
      case '{':
        return Refuse(start, "a { with nothing to repeat; \\{ is the character");
      default: {
        const char32_t c = in_.Next();
        return spell_(CharSet{{c, c}});
      }
    }
  }

  Result<NodeId> Group(int depth) {
    const size_t start = in_.pos();
    in_.Eat("(");
    if (in_.Eat("?")) {
      if (in_.Sees("=") || in_.Sees("!")) return Refuse(start, "look-ahead is not supported");
      if (in_.Sees("<=") || in_.Sees("<!")) return Refuse(start, "look-behind is not supported");
      if (in_.Sees("P=")) return Refuse(start, "a back-reference is not supported");
      if (in_.Eat("P<") || in_.Eat("<")) {
        while (!in_.End() && !in_.Sees(">")) in_.Next();
        if (!in_.Eat(">")) return Refuse(start, "a name that is not closed");
      } else if (!in_.Eat(":")) {
        return Refuse(start, "this kind of group is not supported");
      }
    }
    NIBBLE_ASSIGN(const NodeId body, Alternatives(depth + 1));
    if (!in_.Eat(")")) return Refuse(start, "a ( that is not closed");
    return body;
  }

  Status Quantifier(NodeId* part) {
    const size_t start = in_.pos();
    int min = 0, max = Grammar::kUnbounded;
    if (in_.Eat("*")) {
    } else if (in_.Eat("+")) {
      min = 1;
    } else if (in_.Eat("?")) {
      max = 1;
    } else if (in_.Eat("{")) {
      NIBBLE_RETURN_IF_ERROR(Counts(start, &min, &max));
    } else {
      return {};
    }
    in_.Eat("?");  // a lazy quantifier describes the same texts
    if (in_.Sees("+")) return Refuse(start, "a possessive quantifier is not supported");
    if (in_.Sees("*") || in_.Sees("?") || in_.Sees("{")) return Refuse(start, "a quantifier on a quantifier");
    *part = g_.Repeat(*part, min, max);
    return {};
  }

  Status Counts(size_t start, int* min, int* max) {
    const int most = g_.limits().max_repeat;
    const auto low = in_.Number(most);
    *min = *max = low.value_or(0);
    if (in_.Eat(",")) *max = in_.Number(most).value_or(Grammar::kUnbounded);
    if (!low || !in_.Eat("}"))
      return Refuse(start, "a { that opens no {m}, {m,} or {m,n}; \\{ is the character");
    if (*min > most || *max > most) return Refuse(start, fmt::format("more than {} repetitions", most));
    if (*max >= 0 && *max < *min) return Refuse(start, "{m,n} with n below m");
    return {};
  }

  // The characters that an escape stands for.
  Result<CharSet> Escape(bool in_class) {
    const size_t start = in_.pos();
    in_.Eat("\\");
    if (in_.End()) return Refuse(start, "a \\ at the end");
    const char32_t c = in_.Next();
    const auto one = [](char32_t code) { return CharSet{{code, code}}; };
    switch (c) {
      case 'd':
        return Digits();
      case 'D':
        return Digits().Complement();
      case 'w':
        return Word();
      case 'W':
        return Word().Complement();
      case 's':
        return Space();
      case 'S':
        return Space().Complement();
      case 't':
        return one('\t');
      case 'n':
        return one('\n');
      case 'v':
        return one('\v');
      case 'f':
        return one('\f');
      case 'r':
        return one('\r');
      case '0':
        if (in_.Peek() >= '0' && in_.Peek() <= '9') return Refuse(start, "an octal escape is not supported");
        return one(0);
      case 'x':
      case 'u':
        return HexEscape(start, c == 'u');
      case 'b':
        if (in_class) return one('\b');
        return Refuse(start, "a word boundary is not supported");
      default:
        break;
    }
    if (c >= '1' && c <= '9') return Refuse(start, "a back-reference is not supported");
    if (c < 0x80 && Word().Contains(c) && c != '_') {
      return Refuse(start, fmt::format("the escape \\{} is not supported", static_cast<char>(c)));
    }
    return one(c);
  }

  Result<CharSet> HexEscape(size_t start, bool four) {
    std::optional<char32_t> c;
    if (four && in_.Sees("{")) {
      const size_t close = in_.text().find('}', in_.pos());
      const size_t digits = close == std::string_view::npos ? 0 : close - in_.pos() - 1;
      in_.Eat("{");
      if (digits >= 1 && digits <= 6) c = in_.Hex(static_cast<int>(digits));
      if (c) in_.Eat("}");
    } else if (four) {
      c = FourDigits();
    } else {
      c = in_.Hex(2);
    }
    if (!c) return Refuse(start, "an escape that names no character");
    return CharSet{{*c, *c}};
  }

  // \uHHHH behind its u, or the two of a surrogate pair.
  std::optional<char32_t> FourDigits() {
    PatternCursor pair = in_;
    const auto high = HexUnit(&pair);
    if (high && *high >= 0xD800 && *high < 0xDC00 && pair.Eat("\\u")) {
      const auto low = HexUnit(&pair);
      if (!low || *low < 0xDC00 || *low >= 0xE000) return std::nullopt;
      in_ = pair;
      return 0x10000 + ((*high - 0xD800) << 10) + (*low - 0xDC00);
    }
    return in_.Hex(4);
  }
  static std::optional<char32_t> HexUnit(PatternCursor* in) {  // a surrogate too
    const auto high = in->Hex(2), low = high ? in->Hex(2) : std::nullopt;
    return low ? std::optional<char32_t>(*high << 8 | *low) : std::nullopt;
  }

  Result<CharSet> ClassItem() {
    if (in_.Peek() == '\\') return Escape(true);
    if (in_.Sees("[:") || in_.Sees("[.") || in_.Sees("[=")) {
      return Refuse(in_.pos(), "a POSIX class is not supported");
    }
    const char32_t c = in_.Next();
    return CharSet{{c, c}};
  }

  Result<NodeId> Class() {
    const size_t start = in_.pos();
    in_.Eat("[");
    const bool negated = in_.Eat("^");
    if (in_.Sees("]")) return Refuse(start, "] as the first of []; \\] is the character");
    CharSet set;
    const auto single = [](const CharSet& s) {
      return s.ranges().size() == 1 && s.ranges()[0].first == s.ranges()[0].last;
    };
    while (!in_.Eat("]")) {
      if (in_.End()) return Refuse(start, "a [ that is not closed");
      const size_t at = in_.pos();
      NIBBLE_ASSIGN(const CharSet first, ClassItem());
      if (!in_.Sees("-") || in_.Sees("-]")) {
        set.Add(first);
        continue;
      }
      in_.Next();
      if (in_.End()) return Refuse(start, "a [ that is not closed");
      NIBBLE_ASSIGN(const CharSet last, ClassItem());
      if (!single(first) || !single(last)) return Refuse(at, "a range between classes");
      if (last.ranges()[0].first < first.ranges()[0].first) {
        return Refuse(at, "a range whose end lies before its beginning");
      }
      set.Add(first.ranges()[0].first, last.ranges()[0].first);
    }
    return spell_(negated ? set.Complement() : set);
  }

  PatternCursor in_;
  const bool search_;
  const SpellChars& spell_;
  Grammar& g_;
};

}  // namespace

Result<Grammar> RegexGrammar(std::string_view pattern, const GrammarLimits& limits) {
  Grammar grammar(limits);
  const SpellChars spell = [&grammar](const CharSet& set) { return grammar.Chars(set); };
  NIBBLE_ASSIGN(const NodeId body, Parser(pattern, false, spell, &grammar).Run());
  const int root = grammar.AddRule("pattern");
  grammar.Define(root, body);
  grammar.SetRoot(root);
  NIBBLE_RETURN_IF_ERROR(grammar.Check());
  return grammar;
}

Result<NodeId> AddRegexSearch(std::string_view pattern, const SpellChars& spell, Grammar* grammar) {
  return Parser(pattern, true, spell, grammar).Run();
}

}  // namespace nibble
