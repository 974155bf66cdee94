// SPDX-License-Identifier: Apache-2.0
// Attention of ops_bench.
#pragma once
#include <string>
#include <vector>

#include "backend/backend.h"
#include "bench/floors.h"
#include "bench/timing.h"

namespace nibble::bench {

struct AttentionCase {
  std::string recipe;
  int head_dim = 64;  // 32 query heads, 8 KV heads
  int depth = 0;      // tokens before the rows
  int rows = 1;       // new tokens of one sequence
};

// Decode (one row) and prefill over caches of several layers, which no processor cache holds together.
std::vector<AttentionCase> AttentionCases();

// What is read (pages, with their scales) against the bandwidth, and the operations of the f32 form.
Timing TimeAttention(Backend& backend, const Floors& floors, const AttentionCase& c);

}  // namespace nibble::bench
