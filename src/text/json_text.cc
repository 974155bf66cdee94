// SPDX-License-Identifier: Apache-2.0
// Floor 5. The spelling of JSON. A space may stand behind , and : and nowhere else.
#include "text/json_text.h"

#include <algorithm>
#include <map>

#include "base/utf8.h"
#include "text/json_number.h"

namespace nibble {
namespace {

using NodeId = Grammar::NodeId;

constexpr char32_t kFirstPlain = 0x20, kLast = 0x10FFFF;

// The shortest spelling of a character inside a string.
std::string Spelled(char32_t c) {
  switch (c) {
    case '"':
      return "\\\"";
    case '\\':
      return "\\\\";
    case '\b':
      return "\\b";
    case '\f':
      return "\\f";
    case '\n':
      return "\\n";
    case '\r':
      return "\\r";
    case '\t':
      return "\\t";
    default:
      break;
  }
  std::string text;
  if (c < kFirstPlain) return fmt::format("\\u{:04x}", static_cast<uint32_t>(c));
  AppendUtf8(c, &text);
  return text;
}

const CharSet& Plain() {
  static const CharSet set{{kFirstPlain, '!'}, {'#', '['}, {']', kLast}};
  return set;
}

const CharSet& Hex() {
  static const CharSet set{{'0', '9'}, {'A', 'F'}, {'a', 'f'}};
  return set;
}

}  // namespace

std::string JsonText::Quote(std::string_view text) {
  std::string out = "\"";
  for (size_t pos = 0; pos < text.size();) out += Spelled(NextChar(text, &pos));
  return out + '"';
}

NodeId JsonText::Comma() { return g_.Sequence({g_.Literal(","), g_.Optional(g_.Literal(" "))}); }
NodeId JsonText::Colon() { return g_.Sequence({g_.Literal(":"), g_.Optional(g_.Literal(" "))}); }

NodeId JsonText::Char(const CharSet& set) {
  std::vector<NodeId> choices = {g_.Chars(set.And(Plain()))};
  for (char32_t c = 0; c <= '\\'; ++c) {
    if (!Plain().Contains(c) && set.Contains(c)) choices.push_back(g_.Literal(Spelled(c)));
  }
  return g_.Choice(choices);
}

NodeId JsonText::AnyChar() {
  const NodeId hex = g_.Chars(Hex()), low = g_.Sequence({hex, hex});
  const auto one = [this](std::string_view of) {
    CharSet set;
    for (const char c : of) set.Add(static_cast<char32_t>(c), static_cast<char32_t>(c));
    return g_.Chars(set);
  };
  // \uXXXX outside of D800 to DFFF, or one of D800 to DBFF with one of DC00 to DFFF.
  const NodeId unit = g_.Choice(
      {g_.Sequence({one("0123456789ABCEFabcef"), hex, low}), g_.Sequence({one("Dd"), one("01234567"), low})});
  const NodeId pair =
      g_.Sequence({one("Dd"), one("89ABab"), low, g_.Literal("\\u"), one("Dd"), one("CDEFcdef"), low});
  return g_.Choice({g_.Chars(Plain()), g_.Sequence({g_.Literal("\\"), one("\"\\/bfnrt")}),
                    g_.Sequence({g_.Literal("\\u"), g_.Choice({unit, pair})})});
}

NodeId JsonText::String(int min_chars, int max_chars) {
  return g_.Sequence({g_.Literal("\""), g_.Repeat(AnyChar(), min_chars, max_chars), g_.Literal("\"")});
}

NodeId JsonText::Quoted(std::string_view text) { return g_.Literal(Quote(text)); }

struct JsonText::NameTree {
  bool ends = false;  // a name ends here
  std::map<char32_t, NameTree> next;
};

NodeId JsonText::StringOtherThan(const std::vector<std::string>& names) {
  NameTree tree;
  for (const std::string& name : names) {
    NameTree* at = &tree;
    for (size_t pos = 0; pos < name.size();) at = &at->next[NextChar(name, &pos)];
    at->ends = true;
  }
  return g_.Sequence({g_.Literal("\""), Other(tree)});
}

// The rest of the string and its quote. Recursion is bounded by the length of a name, which the caller
// bounds.
NodeId JsonText::Other(const NameTree& tree) {
  CharSet named;
  std::vector<NodeId> choices;
  for (const auto& [c, below] : tree.next) {
    named.Add(c, c);
    choices.push_back(g_.Sequence({Char({{c, c}}), Other(below)}));
  }
  choices.push_back(g_.Sequence(
      {Char(named.Complement()), g_.Repeat(Char(CharSet::All()), 0, Grammar::kUnbounded), g_.Literal("\"")}));
  if (!tree.ends) choices.push_back(g_.Literal("\""));
  return g_.Choice(choices);
}

NodeId JsonText::Value(JsonRef value) {
  std::vector<NodeId> parts;
  switch (value.type()) {
    case JsonType::kNull:
      return g_.Literal("null");
    case JsonType::kBool:
      return g_.Literal(*value.Bool() ? "true" : "false");
    case JsonType::kInt:
      return g_.Literal(fmt::format("{}", *value.Int(INT64_MIN, INT64_MAX)));
    case JsonType::kUint:
      return g_.Literal(fmt::format("{}", *value.Uint()));
    case JsonType::kDouble: {  // 2.0 may be written as 2 too: JSON Schema makes no difference
      const std::string text = fmt::format("{}", *value.Number());
      const bool whole = text.find_first_of(".e") == std::string::npos;
      return whole ? g_.Choice({g_.Literal(text), g_.Literal(text + ".0")}) : g_.Literal(text);
    }
    case JsonType::kString:
      return Quoted(*value.String());
    case JsonType::kArray:
      for (size_t i = 0; i < value.size(); ++i) {
        if (i > 0) parts.push_back(Comma());
        parts.push_back(Value(value[i]));
      }
      return g_.Sequence({g_.Literal("["), g_.Sequence(parts), g_.Literal("]")});
    case JsonType::kObject:
      for (size_t i = 0; i < value.size(); ++i) {
        if (i > 0) parts.push_back(Comma());
        parts.push_back(Quoted(value.KeyAt(i)));
        parts.push_back(Colon());
        parts.push_back(Value(value[i]));
      }
      return g_.Sequence({g_.Literal("{"), g_.Sequence(parts), g_.Literal("}")});
  }
  return g_.Nothing();
}

NodeId JsonText::AnyValue() {
  if (any_value_ >= 0) return g_.Call(any_value_);
  any_value_ = g_.AddRule("any value");
  const NodeId value = g_.Call(any_value_), text = String(0, Grammar::kUnbounded);
  const NodeId member = g_.Sequence({text, Colon(), value});
  const auto list = [this](std::string_view open, NodeId item, std::string_view close) {
    const NodeId more = g_.Repeat(g_.Sequence({Comma(), item}), 0, Grammar::kUnbounded);
    return g_.Sequence({g_.Literal(open), g_.Optional(g_.Sequence({item, more})), g_.Literal(close)});
  };
  g_.Define(any_value_, g_.Choice({g_.Literal("null"), g_.Literal("true"), g_.Literal("false"),
                                   AddNumber({}, NumberKind::kAny, &g_), text, list("[", value, "]"),
                                   list("{", member, "}")}));
  return value;
}

NodeId JsonText::AnyOf(std::vector<std::string> texts) {
  std::sort(texts.begin(), texts.end());
  texts.erase(std::unique(texts.begin(), texts.end()), texts.end());
  return texts.empty() ? g_.Nothing() : Shared(texts, 0);
}

// What follows the first `at` bytes, which all of them share. Each level of recursion takes a byte that some
// text has more than its neighbours, so a list of n bytes has at most sqrt(2 n) levels.
NodeId JsonText::Shared(std::span<const std::string> sorted, size_t at) {
  const std::string &first = sorted.front(), &last = sorted.back();
  size_t end = at;
  while (end < first.size() && end < last.size() && first[end] == last[end]) ++end;
  const NodeId prefix = g_.Literal(std::string_view(first).substr(at, end - at));
  std::vector<NodeId> choices;
  for (size_t i = 0; i < sorted.size();) {
    if (sorted[i].size() == end) {
      choices.push_back(g_.Literal(""));
      ++i;
      continue;
    }
    size_t group = i + 1;
    while (group < sorted.size() && sorted[group][end] == sorted[i][end]) ++group;
    choices.push_back(Shared(sorted.subspan(i, group - i), end));
    i = group;
  }
  return sorted.size() == 1 ? g_.Literal(std::string_view(first).substr(at))
                            : g_.Sequence({prefix, g_.Choice(choices)});
}

}  // namespace nibble
