// SPDX-License-Identifier: Apache-2.0
// Tests: random grammars over the letters a and b, and a recogniser by definition: a table of which parts of
// a text each node matches, filled until nothing changes.
#pragma once
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "text/grammar.h"

namespace nibble::test {

class SlowGrammar {
 public:
  // `forgets_empty` is the mistake that tests must notice: repetitions match at least once.
  explicit SlowGrammar(const Grammar& grammar, bool forgets_empty = false)
      : g_(grammar), forgets_empty_(forgets_empty) {}

  bool Accepts(std::string_view text) const {
    const size_t n = text.size();
    Table table(static_cast<size_t>(Nodes()), std::vector<uint8_t>((n + 1) * (n + 1)));
    for (bool changed = true; changed;) {
      changed = false;
      for (int id = 0; id < Nodes(); ++id) {
        for (size_t i = 0; i <= n; ++i) {
          for (size_t j = i; j <= n; ++j) {
            uint8_t& cell = table[static_cast<size_t>(id)][i * (n + 1) + j];
            if (cell == 0 && Matches(table, id, text, i, j)) cell = 1, changed = true;
          }
        }
      }
    }
    return table[static_cast<size_t>(g_.body(g_.root()))][n] != 0;
  }

 private:
  using Table = std::vector<std::vector<uint8_t>>;
  int Nodes() const { return static_cast<int>(g_.nodes()); }

  bool Matches(const Table& table, int id, std::string_view text, size_t i, size_t j) const {
    const Grammar::Node& n = g_.node(id);
    const auto cell = [&](int part, size_t from, size_t to) {
      return table[static_cast<size_t>(part)][from * (text.size() + 1) + to] != 0;
    };
    switch (n.kind) {
      case Grammar::Kind::kNothing:
        return false;
      case Grammar::Kind::kLiteral:
        return text.substr(i, j - i) == g_.LiteralOf(n);
      case Grammar::Kind::kChars: {
        bool any = false;
        for (const ByteRun& run : g_.RunsOf(n)) {
          any |= j == i + 1 && run.size == 1 && run.lo[0] <= text[i] && text[i] <= run.hi[0];
        }
        return any;
      }
      case Grammar::Kind::kCall:
        return cell(g_.body(n.a), i, j);
      case Grammar::Kind::kChoice: {
        bool any = false;
        for (const int part : g_.PartsOf(n)) any |= cell(part, i, j);
        return any;
      }
      case Grammar::Kind::kSequence: {  // places that the parts so far can end at
        std::vector<uint8_t> at(text.size() + 1);
        at[i] = 1;
        for (const int part : g_.PartsOf(n))
          at = After(at, j, [&](size_t a, size_t b) { return cell(part, a, b); });
        return at[j] != 0;
      }
      case Grammar::Kind::kRepeat: {
        std::vector<uint8_t> at(text.size() + 1);
        at[i] = 1;
        const int min = forgets_empty_ ? std::max(n.b, 1) : n.b;
        const int most = n.c >= 0 ? n.c : min + static_cast<int>(text.size());  // more are of empty texts
        for (int count = 0;; ++count) {
          if (count >= min && at[j] != 0) return true;
          if (count >= most) return false;
          at = After(at, j, [&](size_t a, size_t b) { return cell(n.a, a, b); });
        }
      }
    }
    return false;
  }
  template <class Cell>
  static std::vector<uint8_t> After(const std::vector<uint8_t>& at, size_t j, const Cell& cell) {
    std::vector<uint8_t> next(at.size());
    for (size_t a = 0; a <= j; ++a) {
      for (size_t b = a; at[a] != 0 && b <= j; ++b)
        if (cell(a, b)) next[b] = 1;
    }
    return next;
  }

  const Grammar& g_;
  const bool forgets_empty_;
};

inline Grammar::NodeId RandomNode(Grammar* g, std::mt19937* rng, int rules, int depth) {
  const auto below = [rng](unsigned n) { return static_cast<int>((*rng)() % n); };
  const auto part = [&] { return RandomNode(g, rng, rules, depth - 1); };
  switch (below(depth > 0 ? 9 : 4)) {
    case 0:
      return g->Literal(below(5) == 0 ? "" : below(2) == 0 ? "a" : "b");
    case 1:
      return g->Literal(below(2) == 0 ? "ab" : "ba");
    case 2:
      return g->Chars({{'a', static_cast<char32_t>('a' + below(2))}});
    case 3:
      return g->Call(below(static_cast<unsigned>(rules)));
    case 4:
    case 5:
      return g->Sequence({part(), part()});
    case 6:
      return g->Sequence({part(), part(), part()});
    case 7:
      return g->Choice({part(), part()});
    default: {
      const int min = below(3);
      return g->Repeat(part(), min, below(2) == 0 ? Grammar::kUnbounded : min + below(3));
    }
  }
}

inline Grammar RandomGrammar(std::mt19937* rng) {
  Grammar g;
  const int rules = 1 + static_cast<int>((*rng)() % 3);
  for (int i = 0; i < rules; ++i) g.AddRule("r" + std::to_string(i));
  for (int i = 0; i < rules; ++i) g.Define(i, RandomNode(&g, rng, rules, 3));
  g.SetRoot(0);
  return g;
}

inline std::vector<std::string> TextsUpTo(size_t length) {
  std::vector<std::string> texts = {""};
  for (size_t i = 0; i < texts.size(); ++i) {
    if (texts[i].size() == length) continue;
    texts.push_back(texts[i] + 'a');
    texts.push_back(texts[i] + 'b');
  }
  return texts;
}

}  // namespace nibble::test
