// SPDX-License-Identifier: Apache-2.0
// Floor 5. The nodes of a grammar.
#include "text/grammar.h"

#include <algorithm>

#include "base/check.h"
#include "base/printable.h"

namespace nibble {
namespace {

// Postfix operators and inner lists add levels to what a parser has counted as one.
constexpr int kNodesPerLevel = 8;

}  // namespace

void Grammar::Overrun(std::string what) {
  if (overrun_.ok()) overrun_ = Status(Code::kInvalidArgument, std::move(what));
}

Grammar::NodeId Grammar::Add(Node node, int depth) {
  const int most = limits_.max_depth * kNodesPerLevel;
  if (nodes_.size() >= limits_.max_nodes) {
    Overrun(fmt::format("the grammar has more than {} parts", limits_.max_nodes));
  } else if (depth > most) {
    Overrun(fmt::format("the grammar nests more than {} deep", most));
  } else {
    nodes_.push_back(node);
    depths_.push_back(depth);
    return static_cast<NodeId>(nodes_.size()) - 1;
  }
  return Nothing();
}

// Node 0, which exists from the first call on, so that no limit is in its way.
Grammar::NodeId Grammar::Nothing() {
  if (nodes_.empty()) {
    nodes_.push_back({Kind::kNothing, 0, 0, 0});
    depths_.push_back(1);
  }
  return 0;
}

Grammar::NodeId Grammar::Literal(std::string_view bytes) {
  Nothing();
  if (text_.size() + bytes.size() > limits_.max_nodes) {
    Overrun(fmt::format("the grammar has more than {} bytes of text", limits_.max_nodes));
    return Nothing();
  }
  text_.append(bytes);
  const auto size = static_cast<int32_t>(bytes.size());
  return Add({Kind::kLiteral, static_cast<int32_t>(text_.size()) - size, size, 0}, 1);
}

Grammar::NodeId Grammar::Chars(const CharSet& set) {
  Nothing();
  const std::vector<ByteRun> runs = ToUtf8(set);
  if (runs.empty()) return Nothing();
  if (runs_.size() + runs.size() > limits_.max_nodes) {
    Overrun(fmt::format("the grammar has more than {} ranges of characters", limits_.max_nodes));
    return Nothing();
  }
  runs_.insert(runs_.end(), runs.begin(), runs.end());
  const auto size = static_cast<int32_t>(runs.size());
  return Add({Kind::kChars, static_cast<int32_t>(runs_.size()) - size, size, 0}, 1);
}

Grammar::NodeId Grammar::AddList(Kind kind, std::span<const NodeId> parts) {
  Nothing();
  if (parts.size() == 1) return parts[0];
  if (parts_.size() + parts.size() > limits_.max_nodes) {
    Overrun(fmt::format("the grammar has more than {} parts", limits_.max_nodes));
    return Nothing();
  }
  int depth = 0;
  for (const NodeId part : parts) depth = std::max(depth, depths_[static_cast<size_t>(part)]);
  parts_.insert(parts_.end(), parts.begin(), parts.end());
  const auto size = static_cast<int32_t>(parts.size());
  return Add({kind, static_cast<int32_t>(parts_.size()) - size, size, 0}, depth + 1);
}

Grammar::NodeId Grammar::Sequence(std::span<const NodeId> parts) {
  return parts.empty() ? Literal("") : AddList(Kind::kSequence, parts);
}

Grammar::NodeId Grammar::Choice(std::span<const NodeId> parts) {
  return parts.empty() ? Nothing() : AddList(Kind::kChoice, parts);
}

Grammar::NodeId Grammar::Repeat(NodeId part, int min, int max) {
  NIBBLE_CHECK(min >= 0 && (max == kUnbounded || max >= min), "counts of a repetition");
  if (min > limits_.max_repeat || max > limits_.max_repeat) {
    Overrun(fmt::format("a repetition of {}, at most {}", std::max(min, max), limits_.max_repeat));
    return Nothing();
  }
  if (min == 1 && max == 1) return part;
  return Add({Kind::kRepeat, part, min, max}, depths_[static_cast<size_t>(part)] + 1);
}

Grammar::NodeId Grammar::Call(int rule) {
  Nothing();
  return Add({Kind::kCall, rule, 0, 0}, 1);
}

int Grammar::AddRule(std::string name) {
  if (rules_.size() >= static_cast<size_t>(limits_.max_rules)) {
    Overrun(fmt::format("the grammar has more than {} rules", limits_.max_rules));
    return 0;
  }
  rules_.push_back({std::move(name)});
  return static_cast<int>(rules_.size()) - 1;
}

void Grammar::Define(int rule, NodeId body) { rules_[static_cast<size_t>(rule)].body = body; }

Status Grammar::Check() const {
  NIBBLE_RETURN_IF_ERROR(overrun_);
  for (const Rule& rule : rules_) {
    if (rule.body < 0) {
      return Error(Code::kInvalidArgument, "the rule \"{}\" is used and not defined", Printable(rule.name));
    }
  }
  NIBBLE_CHECK(root_ >= 0 && root_ < rules(), "a grammar has a root");
  return {};
}

std::string_view Grammar::LiteralOf(const Node& n) const {
  return std::string_view(text_).substr(static_cast<size_t>(n.a), static_cast<size_t>(n.b));
}

std::span<const ByteRun> Grammar::RunsOf(const Node& n) const {
  return std::span(runs_).subspan(static_cast<size_t>(n.a), static_cast<size_t>(n.b));
}

std::span<const Grammar::NodeId> Grammar::PartsOf(const Node& n) const {
  return std::span(parts_).subspan(static_cast<size_t>(n.a), static_cast<size_t>(n.b));
}

}  // namespace nibble
