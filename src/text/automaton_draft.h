// SPDX-License-Identifier: Apache-2.0
// Floor 5. The first form of an automaton: states joined by steps that read a byte, call a rule or do
// nothing.
#pragma once
#include <cstdint>
#include <vector>

#include "base/result.h"
#include "text/automaton.h"
#include "text/grammar.h"

namespace nibble {

struct Draft {
  struct Step {
    enum Kind : uint8_t { kFree, kBytes, kCall } kind;
    uint8_t lo, hi;  // of kBytes
    int32_t rule;    // of kCall
    int32_t from, to;
  };
  std::vector<Step> steps;
  std::vector<int32_t> twin;        // by state
  std::vector<int32_t> start, end;  // by rule; -1: every call was written out in place
  int32_t states() const { return static_cast<int32_t>(twin.size()); }

  // Writes out repetitions and calls of small rules.
  static Result<Draft> Make(const Grammar& grammar, int twin_bytes);
};

// Which states can reach the end of their rule by free steps, calls of rules that can too, and, with `bytes`,
// by reading those.
std::vector<uint8_t> ReachesEnd(const Draft& draft, const ByteSet* bytes);

// Indices of the steps sorted by `from`.
Rows<int32_t> StepsByFrom(const Draft& draft);

}  // namespace nibble
