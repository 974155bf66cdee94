// SPDX-License-Identifier: Apache-2.0
// Floor 5. From grammar nodes to states and steps, and what can reach an end.
#include "text/automaton_draft.h"

#include <algorithm>
#include <map>
#include <string>

namespace nibble {
namespace {

using Kind = Grammar::Kind;
using NodeId = Grammar::NodeId;

// A rule of at most this many grammar nodes that calls nothing, or only rules of this kind, is written out
// where it is called: tokens are then decided without looking at the caller.
constexpr int kInlineNodes = 48;
constexpr int kInlineRounds = 4;

class Drafter {
 public:
  Drafter(const Grammar& grammar, int twin_bytes) : g_(grammar), twin_bytes_(twin_bytes) {}

  Result<Draft> Run() {
    NIBBLE_RETURN_IF_ERROR(g_.Check());
    ChooseInlined();
    AddState();  // Automaton::kAccept
    AddState();  // Automaton::kEscape
    const auto rules = static_cast<size_t>(g_.rules());
    d_.start.assign(rules, -1);
    d_.end.assign(rules, -1);
    std::vector<int> open = {g_.root()};
    Enter(g_.root());
    while (!open.empty()) {
      const int rule = open.back();
      open.pop_back();
      called_.clear();
      Build(g_.body(rule), d_.start[static_cast<size_t>(rule)], d_.end[static_cast<size_t>(rule)]);
      if (full_) {
        return Error(Code::kInvalidArgument, "the grammar needs more than {} states or {} steps",
                     g_.limits().max_states, g_.limits().max_edges);
      }
      for (const int next : called_) {
        if (d_.start[static_cast<size_t>(next)] >= 0) continue;
        Enter(next);
        open.push_back(next);
      }
    }
    return std::move(d_);
  }

 private:
  void Enter(int rule) {
    d_.start[static_cast<size_t>(rule)] = AddState();
    d_.end[static_cast<size_t>(rule)] = AddState();
  }

  // `weight` and the nodes below `id`; above kInlineNodes when that is too many or a rule that is not inlined
  // is called. Bounded work: it stops there.
  int Weigh(NodeId id, int weight) const {
    if (weight > kInlineNodes) return weight;
    const Grammar::Node& n = g_.node(id);
    switch (n.kind) {
      case Kind::kNothing:
        return weight + 1;
      case Kind::kLiteral:
        return weight + 1 + n.b / 8;
      case Kind::kChars:
        return weight + 1 + n.b;
      case Kind::kSequence:
      case Kind::kChoice:
        for (const NodeId part : g_.PartsOf(n)) weight = Weigh(part, weight + 1);
        return weight;
      case Kind::kRepeat: {
        const int one = std::min(Weigh(n.a, 0), kInlineNodes + 1);
        return weight + std::max({n.b, n.c, 1}) * one;
      }
      case Kind::kCall:
        return inlined_[static_cast<size_t>(n.a)] != 0 ? Weigh(g_.body(n.a), weight + 1) : kInlineNodes + 1;
    }
    return weight;
  }

  void ChooseInlined() {
    inlined_.assign(static_cast<size_t>(g_.rules()), 0);
    for (int round = 0; round < kInlineRounds; ++round) {
      std::vector<uint8_t> next = inlined_;
      for (int rule = 0; rule < g_.rules(); ++rule) {
        if (rule != g_.root() && Weigh(g_.body(rule), 0) <= kInlineNodes) next[static_cast<size_t>(rule)] = 1;
      }
      inlined_ = std::move(next);
    }
  }

  int32_t AddState() {
    if (d_.twin.size() >= g_.limits().max_states) {
      full_ = true;
      return 0;
    }
    d_.twin.push_back(d_.states());
    return d_.states() - 1;
  }
  void AddStep(Draft::Step step) {
    if (d_.steps.size() >= g_.limits().max_edges) full_ = true;
    if (!full_) d_.steps.push_back(step);
  }
  void Free(int32_t from, int32_t to) { AddStep({Draft::Step::kFree, 0, 0, -1, from, to}); }
  void Read(uint8_t lo, uint8_t hi, int32_t from, int32_t to) {
    AddStep({Draft::Step::kBytes, lo, hi, -1, from, to});
  }

  // Steps that spell the node between two states. Recursion is bounded by the depth of the grammar.
  void Build(NodeId id, int32_t from, int32_t to) {
    if (++visits_ > g_.limits().max_edges) full_ = true;  // nodes that share parts, and add nothing
    if (full_) return;
    const Grammar::Node& n = g_.node(id);
    switch (n.kind) {
      case Kind::kNothing:
        return;
      case Kind::kLiteral:
        return BuildLiteral(g_.LiteralOf(n), from, to);
      case Kind::kChars:
        return BuildChars(g_.RunsOf(n), from, to);
      case Kind::kSequence: {
        const auto parts = g_.PartsOf(n);
        for (size_t i = 0; i < parts.size(); ++i) {
          const int32_t next = i + 1 == parts.size() ? to : AddState();
          Build(parts[i], from, next);
          from = next;
        }
        return;
      }
      case Kind::kChoice:
        for (const NodeId part : g_.PartsOf(n)) Build(part, from, to);
        return;
      case Kind::kRepeat:
        return BuildRepeat(n, from, to);
      case Kind::kCall:
        if (inlined_[static_cast<size_t>(n.a)] != 0) return Build(g_.body(n.a), from, to);
        called_.push_back(n.a);
        return AddStep({Draft::Step::kCall, 0, 0, n.a, from, to});
    }
  }

  void BuildLiteral(std::string_view bytes, int32_t from, int32_t to) {
    if (bytes.empty()) return Free(from, to);
    for (size_t i = 0; i < bytes.size(); ++i) {
      const int32_t next = i + 1 == bytes.size() ? to : AddState();
      const auto byte = static_cast<uint8_t>(bytes[i]);
      Read(byte, byte, from, next);
      from = next;
    }
  }

  // Runs with the same last bytes share the states in front of those.
  void BuildChars(std::span<const ByteRun> runs, int32_t from, int32_t to) {
    std::map<std::string, int32_t> before;  // of each tail of a run
    for (const ByteRun& run : runs) {
      int32_t next = to;
      std::string tail;
      for (int i = run.size - 1; i >= 1; --i) {
        const auto at = static_cast<size_t>(i);
        tail.push_back(static_cast<char>(run.lo[at]));
        tail.push_back(static_cast<char>(run.hi[at]));
        const auto [found, added] = before.try_emplace(tail, -1);
        if (added) {
          found->second = AddState();
          Read(run.lo[at], run.hi[at], found->second, next);
        }
        next = found->second;
      }
      Read(run.lo[0], run.hi[0], from, next);
    }
  }

  // min copies, then max - min that may each be the last, or a loop. A copy that is more copies away from
  // where counting matters than a token has bytes reads what the copy before it reads.
  void BuildRepeat(const Grammar::Node& n, int32_t from, int32_t to) {
    const bool loop = n.c == Grammar::kUnbounded;
    const int copies = loop ? n.b : n.c;
    int32_t first_of_previous = -1;
    for (int i = 0; i < copies && !full_; ++i) {
      if (i >= n.b) Free(from, to);
      const int32_t first = d_.states();
      const int32_t next = AddState();
      Build(n.a, from, next);
      const bool far = (i > n.b || i + twin_bytes_ < n.b) && i + twin_bytes_ < copies;
      if (far && first_of_previous >= 0) {
        for (int32_t s = first; s < d_.states(); ++s) {
          d_.twin[static_cast<size_t>(s)] = d_.twin[static_cast<size_t>(s - (first - first_of_previous))];
        }
      }
      first_of_previous = first;
      from = next;
    }
    if (!loop) return Free(from, to);
    const int32_t hub = AddState();
    Free(from, hub);
    Build(n.a, hub, hub);
    Free(hub, to);
  }

  const Grammar& g_;
  const int twin_bytes_;
  Draft d_;
  std::vector<uint8_t> inlined_;  // by rule
  std::vector<int> called_;       // rules that the rule under construction calls
  size_t visits_ = 0;
  bool full_ = false;
};

bool Readable(const Draft::Step& step, const ByteSet& bytes) {
  for (int b = step.lo; b <= step.hi; ++b) {
    if (bytes[static_cast<size_t>(b)]) return true;
  }
  return false;
}

}  // namespace

Result<Draft> Draft::Make(const Grammar& grammar, int twin_bytes) {
  return Drafter(grammar, twin_bytes).Run();
}

Rows<int32_t> StepsByFrom(const Draft& draft) {
  Rows<int32_t> rows;
  rows.begin.assign(static_cast<size_t>(draft.states()) + 1, 0);
  rows.all.resize(draft.steps.size());
  for (const Draft::Step& step : draft.steps) ++rows.begin[static_cast<size_t>(step.from) + 1];
  for (size_t i = 1; i < rows.begin.size(); ++i) rows.begin[i] += rows.begin[i - 1];
  std::vector<uint32_t> next(rows.begin.begin(), rows.begin.end() - 1);
  for (size_t i = 0; i < draft.steps.size(); ++i) {
    rows.all[next[static_cast<size_t>(draft.steps[i].from)]++] = static_cast<int32_t>(i);
  }
  return rows;
}

std::vector<uint8_t> ReachesEnd(const Draft& draft, const ByteSet* bytes) {
  // Backwards from the ends. A call waits for its rule when the state behind it is reached first.
  const auto states = static_cast<size_t>(draft.states());
  std::vector<std::vector<int32_t>> into(states);  // steps by `to`
  for (size_t i = 0; i < draft.steps.size(); ++i) {
    into[static_cast<size_t>(draft.steps[i].to)].push_back(static_cast<int32_t>(i));
  }
  std::vector<std::vector<int32_t>> waiting(draft.start.size());
  std::map<int32_t, int32_t> rule_of_start;
  std::vector<uint8_t> reaches(states);
  std::vector<int32_t> open;
  const auto reach = [&](int32_t state) {
    if (reaches[static_cast<size_t>(state)] != 0) return;
    reaches[static_cast<size_t>(state)] = 1;
    open.push_back(state);
  };
  for (size_t rule = 0; rule < draft.start.size(); ++rule) {
    if (draft.start[rule] < 0) continue;
    rule_of_start[draft.start[rule]] = static_cast<int32_t>(rule);
    reach(draft.end[rule]);
  }
  while (!open.empty()) {
    const int32_t state = open.back();
    open.pop_back();
    if (const auto rule = rule_of_start.find(state); rule != rule_of_start.end()) {
      for (const int32_t from : waiting[static_cast<size_t>(rule->second)]) reach(from);
    }
    for (const int32_t i : into[static_cast<size_t>(state)]) {
      const Draft::Step& step = draft.steps[static_cast<size_t>(i)];
      const bool call = step.kind == Draft::Step::kCall;
      const auto rule = static_cast<size_t>(call ? step.rule : 0);
      const bool passes =
          call ? reaches[static_cast<size_t>(draft.start[rule])] != 0
               : step.kind == Draft::Step::kFree || (bytes != nullptr && Readable(step, *bytes));
      if (passes) {
        reach(step.from);
      } else if (call) {
        waiting[rule].push_back(step.from);
      }
    }
  }
  return reaches;
}

}  // namespace nibble
