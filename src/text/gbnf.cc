// SPDX-License-Identifier: Apache-2.0
// Floor 5. Recursive descent over a GBNF text; groups are counted.
#include "text/gbnf.h"

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "base/printable.h"
#include "text/pattern_cursor.h"

namespace nibble {
namespace {

using NodeId = Grammar::NodeId;

class Parser {
 public:
  Parser(std::string_view text, const GrammarLimits& limits) : in_(text), limits_(limits), g_(limits) {}

  Result<Grammar> Run() {
    if (in_.text().size() > limits_.max_text_bytes) {
      return Error(Code::kInvalidArgument, "grammar: {} bytes, at most {}", in_.text().size(),
                   limits_.max_text_bytes);
    }
    if (const size_t bad = FindInvalidUtf8(in_.text()); bad != std::string_view::npos) {
      return Error(Code::kInvalidArgument, "grammar: byte {} is not UTF-8", bad);
    }
    Space(true);
    while (!in_.End()) NIBBLE_RETURN_IF_ERROR(Rule());
    const auto root = rules_.find("root");
    if (root == rules_.end() || g_.rules() == 0 || g_.body(root->second) < 0) {
      return Error(Code::kInvalidArgument, "grammar: no rule \"root\"");
    }
    g_.SetRoot(root->second);
    if (const Status status = g_.Check(); !status.ok()) {
      return Error(status.code(), "grammar: {}", status.message());
    }
    return std::move(g_);
  }

 private:
  Status Refuse(size_t at, std::string_view what) const {
    const std::string_view before = in_.text().substr(0, at);
    const size_t line_start = before.rfind('\n') + 1;  // npos + 1 is 0
    return Error(Code::kInvalidArgument, "grammar: line {}, column {}: {}",
                 std::count(before.begin(), before.end(), '\n') + 1, at - line_start + 1, what);
  }

  void Space(bool newlines) {
    for (;;) {
      if (in_.Peek() == '#' && !in_.End()) {
        while (!in_.End() && in_.Peek() != '\n' && in_.Peek() != '\r') in_.Next();
      } else if (in_.Eat(" ") || in_.Eat("\t") || (newlines && (in_.Eat("\n") || in_.Eat("\r")))) {
        continue;
      } else {
        return;
      }
    }
  }

  std::string Name() {
    const size_t begin = in_.pos();
    const auto word = [](char c) {
      const char lower = static_cast<char>(c | 0x20);
      return (lower >= 'a' && lower <= 'z') || (c >= '0' && c <= '9') || c == '-';
    };
    while (word(in_.Peek())) in_.Next();
    return std::string(in_.From(begin));
  }

  int RuleNamed(const std::string& name) {
    const auto [found, added] = rules_.try_emplace(name, 0);
    if (added) found->second = g_.AddRule(name);
    return found->second;
  }

  Status Rule() {
    const size_t start = in_.pos();
    const std::string name = Name();
    if (name.empty()) return Refuse(start, "expected the name of a rule (letters, digits, -)");
    Space(false);
    if (!in_.Eat("::=")) return Refuse(in_.pos(), "expected ::= behind the name of a rule");
    Space(true);
    const int rule = RuleNamed(name);
    NIBBLE_ASSIGN(const NodeId body, Alternatives(0));
    if (g_.rules() > 0 && g_.body(rule) >= 0 && g_.name(rule) == name) {
      return Refuse(start, fmt::format("the rule \"{}\" is defined twice", Printable(name)));
    }
    if (g_.rules() > 0) g_.Define(rule, body);
    if (!in_.End() && !in_.Sees("\n") && !in_.Sees("\r")) {
      return Refuse(in_.pos(), in_.Peek() == ')' ? "a ) without its (" : "expected the end of the line");
    }
    Space(true);
    return {};
  }

  Result<NodeId> Alternatives(int depth) {
    if (depth > limits_.max_depth) {
      return Refuse(in_.pos(), fmt::format("groups nest more than {} deep", limits_.max_depth));
    }
    std::vector<NodeId> choices;
    do {
      if (!choices.empty()) Space(true);
      NIBBLE_ASSIGN(const NodeId one, Sequence(depth));
      choices.push_back(one);
    } while (in_.Eat("|"));
    return g_.Choice(choices);
  }

  Result<NodeId> Sequence(int depth) {
    std::vector<NodeId> parts;
    for (;;) {
      const char c = in_.Peek();
      if (in_.End() || c == '|' || c == ')' || c == '\n' || c == '\r') break;
      NIBBLE_ASSIGN(NodeId part, Item(depth));
      Space(depth > 0);
      NIBBLE_RETURN_IF_ERROR(Postfix(depth, &part));
      parts.push_back(part);
    }
    return g_.Sequence(parts);
  }

  Result<NodeId> Item(int depth) {
    const size_t start = in_.pos();
    if (in_.Eat("\"")) return Literal(start);
    if (in_.Eat("[")) return Class(start);
    if (in_.Eat(".")) return g_.Chars(CharSet::All());
    if (in_.Eat("(")) {
      Space(true);
      NIBBLE_ASSIGN(const NodeId group, Alternatives(depth + 1));
      if (!in_.Eat(")")) return Refuse(start, "a ( that is not closed");
      return group;
    }
    const char c = in_.Peek();
    if (c == '*' || c == '+' || c == '?' || c == '{') return Refuse(start, "nothing to repeat before this");
    if (c == '<' || c == '!') return Refuse(start, "references to tokens (<...>) are not supported");
    const std::string name = Name();
    if (name.empty()) return Refuse(start, "expected a literal, a class, a group, . or the name of a rule");
    return g_.Call(RuleNamed(name));
  }

  Status Postfix(int depth, NodeId* part) {
    for (;;) {
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
      *part = g_.Repeat(*part, min, max);
      Space(depth > 0);
    }
  }

  Status Counts(size_t start, int* min, int* max) {
    Space(true);
    const auto low = in_.Number(limits_.max_repeat);
    if (!low) return Refuse(start, "expected {m}, {m,} or {m,n}");
    Space(true);
    *min = *max = *low;
    if (in_.Eat(",")) {
      Space(true);
      *max = in_.Number(limits_.max_repeat).value_or(Grammar::kUnbounded);
      Space(true);
    }
    if (!in_.Eat("}")) return Refuse(start, "expected {m}, {m,} or {m,n}");
    if (*min > limits_.max_repeat || *max > limits_.max_repeat) {
      return Refuse(start, fmt::format("more than {} repetitions", limits_.max_repeat));
    }
    if (*max >= 0 && *max < *min) return Refuse(start, "{m,n} with n below m");
    return {};
  }

  Result<char32_t> Char() {
    const size_t start = in_.pos();
    if (!in_.Eat("\\")) return in_.Next();
    if (in_.End()) return Refuse(start, "a \\ at the end");
    const char32_t c = in_.Next();
    std::optional<char32_t> hex;
    switch (c) {
      case 't':
        return U'\t';
      case 'r':
        return U'\r';
      case 'n':
        return U'\n';
      case '\\':
      case '"':
      case '[':
      case ']':
        return c;
      case 'x':
        hex = in_.Hex(2);
        break;
      case 'u':
        hex = in_.Hex(4);
        break;
      case 'U':
        hex = in_.Hex(8);
        break;
      default:
        return Refuse(start, "unknown escape");
    }
    if (!hex) return Refuse(start, "an escape that names no character");
    return *hex;
  }

  Result<NodeId> Literal(size_t start) {
    std::string text;
    while (!in_.Eat("\"")) {
      if (in_.End()) return Refuse(start, "a literal that is not closed");
      NIBBLE_ASSIGN(const char32_t c, Char());
      AppendUtf8(c, &text);
    }
    return g_.Literal(text);
  }

  Result<NodeId> Class(size_t start) {
    const bool negated = in_.Eat("^");
    CharSet set;
    while (!in_.Eat("]")) {
      if (in_.End()) return Refuse(start, "a [ that is not closed");
      const size_t at = in_.pos();
      NIBBLE_ASSIGN(const char32_t first, Char());
      char32_t last = first;
      if (in_.Peek() == '-' && !in_.Sees("-]")) {
        in_.Next();
        if (in_.End()) return Refuse(start, "a [ that is not closed");
        NIBBLE_ASSIGN(last, Char());
      }
      if (last < first) return Refuse(at, "a range whose end lies before its beginning");
      set.Add(first, last);
    }
    if (set.empty() && !negated) return Refuse(start, "a class without characters");
    return g_.Chars(negated ? set.Complement() : set);
  }

  PatternCursor in_;
  const GrammarLimits& limits_;
  Grammar g_;
  std::map<std::string, int> rules_;
};

}  // namespace

Result<Grammar> ParseGbnf(std::string_view text, const GrammarLimits& limits) {
  return Parser(text, limits).Run();
}

}  // namespace nibble
