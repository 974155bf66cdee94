// SPDX-License-Identifier: Apache-2.0
// Floor 5. The five behaviors of Split.
#include "text/split.h"

#include <algorithm>

#include "base/printable.h"

namespace nibble {
namespace {

struct Segment {
  Span span;
  bool match;
};

// Matches and gaps that together cover [0, size).
std::vector<Segment> Cover(size_t size, const std::vector<Span>& matches, bool invert) {
  std::vector<Segment> segments;
  segments.reserve(matches.size() * 2 + 1);
  size_t done = 0;
  for (const Span& m : matches) {
    if (done < m.begin) segments.push_back({{done, m.begin}, invert});
    segments.push_back({m, !invert});
    done = m.end;
  }
  if (done < size) segments.push_back({{done, size}, invert});
  return segments;
}

// Whether `segment` grows the piece before it instead of opening one. `before`: the previous segment matched.
bool Joins(SplitBehavior behavior, const Segment& segment, bool before) {
  switch (behavior) {
    case SplitBehavior::kContiguous:
      return segment.match == before;
    case SplitBehavior::kMergedWithPrevious:
    case SplitBehavior::kMergedWithNext:  // runs over the segments from the end
      return segment.match && !before;
    case SplitBehavior::kRemoved:
    case SplitBehavior::kIsolated:
      break;
  }
  return false;
}

}  // namespace

Result<SplitBehavior> LoadSplitBehavior(JsonRef section, std::string_view key) {
  NIBBLE_ASSIGN(const std::string_view name, section.GetString(key));
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  return Error(Code::kInvalidArgument, "{}: behavior {} is unknown", section.Where(), Printable(name));
}

void SplitPiece(Span piece, const std::vector<Span>& matches, bool invert, SplitBehavior behavior,
                std::vector<Span>* out) {
  std::vector<Segment> segments = Cover(piece.size(), matches, invert);
  const bool backwards = behavior == SplitBehavior::kMergedWithNext;
  if (backwards) std::reverse(segments.begin(), segments.end());
  const size_t first = out->size();
  bool before = false;
  for (const Segment& s : segments) {
    const Span moved = {piece.begin + s.span.begin, piece.begin + s.span.end};
    if (behavior == SplitBehavior::kRemoved && s.match) continue;
    if (out->size() > first && Joins(behavior, s, before)) {
      (backwards ? out->back().begin : out->back().end) = backwards ? moved.begin : moved.end;
    } else {
      out->push_back(moved);
    }
    before = s.match;
  }
  if (backwards) std::reverse(out->begin() + static_cast<std::ptrdiff_t>(first), out->end());
}

}  // namespace nibble
