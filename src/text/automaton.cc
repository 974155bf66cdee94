// SPDX-License-Identifier: Apache-2.0
// Floor 5. From the draft to the tables: dead states and free steps go, left recursion is found.
#include "text/automaton.h"

#include <algorithm>

#include "base/printable.h"
#include "text/automaton_draft.h"

namespace nibble {
namespace {

class Compiler {
 public:
  Compiler(const Grammar& grammar, const Draft& draft, const ByteSet& bytes)
      : g_(grammar), d_(draft), bytes_(bytes), by_from_(StepsByFrom(draft)) {}

  Result<Automaton> Run() {
    NIBBLE_RETURN_IF_ERROR(FindDead());
    NIBBLE_RETURN_IF_ERROR(FillStates());
    NIBBLE_RETURN_IF_ERROR(RankRules());
    ClassifyBytes();
    return std::move(a_);
  }

 private:
  Status FindDead() {
    ByteSet all;
    all.set();
    const std::vector<uint8_t> alive = ReachesEnd(d_, &all);
    for (size_t rule = 0; rule < d_.start.size(); ++rule) {
      if (d_.start[rule] >= 0 && alive[static_cast<size_t>(d_.start[rule])] == 0) {
        return Error(Code::kInvalidArgument, "no text matches the rule \"{}\"",
                     Printable(g_.name(static_cast<int>(rule))));
      }
    }
    alive_ = ReachesEnd(d_, &bytes_);
    empty_ = ReachesEnd(d_, nullptr);
    a_.root = g_.root();
    if (!Alive(StartOf(a_.root))) {
      return Error(Code::kInvalidArgument,
                   "every text of the grammar has a byte that is no token of this model");
    }
    return {};
  }

  int32_t StartOf(int rule) const { return d_.start[static_cast<size_t>(rule)]; }
  bool Alive(int32_t state) const { return alive_[static_cast<size_t>(state)] != 0; }
  bool MayBeEmpty(int rule) const { return empty_[static_cast<size_t>(StartOf(rule))] != 0; }

  Status FillStates() {
    std::vector<uint8_t> is_end(static_cast<size_t>(d_.states()));
    std::vector<uint8_t> landed(is_end);  // where a byte, a call or a rule leaves one: only these need rows
    for (const int32_t end : d_.end) {
      if (end >= 0) is_end[static_cast<size_t>(end)] = 1;
    }
    for (const int32_t start : d_.start) {
      if (start >= 0) landed[static_cast<size_t>(start)] = 1;
    }
    for (const Draft::Step& step : d_.steps) {
      if (step.kind != Draft::Step::kFree) landed[static_cast<size_t>(step.to)] = 1;
    }
    seen_.assign(static_cast<size_t>(d_.states()), -1);
    a_.twin = d_.twin;
    for (int32_t state = 0; state < d_.states(); ++state) {
      bool ends = false;
      if (landed[static_cast<size_t>(state)] != 0 && Alive(state)) ends = FillState(state, is_end);
      a_.edges.EndRow();
      a_.calls.EndRow();
      a_.ends.push_back(ends ? 1 : 0);
      a_.tail.push_back(ends && a_.edges[state].empty() && a_.calls[state].empty() ? 1 : 0);
      if (a_.edges.all.size() + a_.calls.all.size() > g_.limits().max_edges) {
        return Error(Code::kInvalidArgument, "the grammar needs more than {} steps", g_.limits().max_edges);
      }
    }
    a_.start = d_.start;
    return {};
  }

  // Gathers what free steps, and calls of rules that may be empty, lead to. Whether the rule may end here.
  bool FillState(int32_t state, const std::vector<uint8_t>& is_end) {
    bool ends = false;
    open_ = {state};
    seen_[static_cast<size_t>(state)] = state;
    const auto visit = [&](int32_t to) {
      if (!Alive(to) || seen_[static_cast<size_t>(to)] == state) return;
      seen_[static_cast<size_t>(to)] = state;
      open_.push_back(to);
    };
    while (!open_.empty()) {
      const int32_t at = open_.back();
      open_.pop_back();
      ends |= is_end[static_cast<size_t>(at)] != 0;
      for (const int32_t i : by_from_[at]) {
        const Draft::Step& step = d_.steps[static_cast<size_t>(i)];
        if (!Alive(step.to)) continue;
        if (step.kind == Draft::Step::kFree) {
          visit(step.to);
        } else if (step.kind == Draft::Step::kBytes) {
          AddEdges(step);
        } else if (Alive(StartOf(step.rule))) {
          a_.calls.all.push_back({step.rule, step.to});
          if (MayBeEmpty(step.rule)) visit(step.to);
        }
      }
    }
    return ends;
  }

  // The parts of the range that some token can spell.
  void AddEdges(const Draft::Step& step) {
    for (int b = step.lo; b <= step.hi; ++b) {
      if (!bytes_[static_cast<size_t>(b)]) continue;
      int last = b;
      while (last < step.hi && bytes_[static_cast<size_t>(last) + 1]) ++last;
      a_.edges.all.push_back({static_cast<uint8_t>(b), static_cast<uint8_t>(last), step.to});
      b = last;
    }
  }

  // Kahn's order over "may begin with a call of". What is left over calls itself before it reads a byte.
  Status RankRules() {
    const size_t rules = d_.start.size();
    std::vector<int> callers(rules);
    for (size_t r = 0; r < rules; ++r) {
      for (const Automaton::Call& call : FirstCalls(r)) ++callers[static_cast<size_t>(call.rule)];
    }
    std::vector<size_t> open;
    for (size_t r = 0; r < rules; ++r) {
      if (callers[r] == 0) open.push_back(r);
    }
    a_.rank.assign(rules, -1);
    int next = 0;
    while (!open.empty()) {
      const size_t r = open.back();
      open.pop_back();
      a_.rank[r] = next++;
      for (const Automaton::Call& call : FirstCalls(r)) {
        if (--callers[static_cast<size_t>(call.rule)] == 0) open.push_back(static_cast<size_t>(call.rule));
      }
    }
    for (size_t r = 0; r < rules; ++r) {
      if (a_.rank[r] >= 0) continue;
      return Error(Code::kInvalidArgument,
                   "left recursion: the rule \"{}\" begins with itself or leads to one that does",
                   Printable(g_.name(static_cast<int>(r))));
    }
    return {};
  }

  std::span<const Automaton::Call> FirstCalls(size_t rule) const {
    const int32_t start = d_.start[rule];
    return start < 0 ? std::span<const Automaton::Call>() : a_.calls[start];
  }

  void ClassifyBytes() {
    std::bitset<257> cut;
    cut.set(0);
    for (const Automaton::Edge& edge : a_.edges.all) {
      cut.set(edge.lo);
      cut.set(static_cast<size_t>(edge.hi) + 1);
    }
    int c = -1;
    for (size_t b = 0; b < 256; ++b) a_.byte_class[b] = static_cast<uint8_t>(c += cut[b] ? 1 : 0);
    a_.byte_classes = c + 1;
  }

  const Grammar& g_;
  const Draft& d_;
  const ByteSet& bytes_;
  Rows<int32_t> by_from_;
  Automaton a_;
  std::vector<uint8_t> alive_, empty_;
  std::vector<int32_t> seen_, open_;
};

}  // namespace

Result<Automaton> Automaton::Compile(const Grammar& grammar, const TokenShape& tokens) {
  NIBBLE_ASSIGN(const Draft draft, Draft::Make(grammar, tokens.longest));
  return Compiler(grammar, draft, tokens.bytes).Run();
}

}  // namespace nibble
