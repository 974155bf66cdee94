// SPDX-License-Identifier: Apache-2.0
// Floor 8. Settings that differ by KV head (SparQ's r and k, QAQ's bounds), chosen for all layers and heads
// together: what the recipe spends as a whole is spent where it lowers the error most.
#pragma once
#include <string>
#include <vector>

#include "recipe/plan.h"

namespace nibble {

struct HeadOption {  // of one KV head, measured
  double cost = 0;   // SparQ: bytes read; QAQ: bits a value
  double error = 0;  // squared, of the head's output, relative to its layer's
  int r = 0, k = 0;  // SparQ
  QaqBounds bounds{};
};

struct HeadOptions {
  enum class What : uint8_t { kSparq, kQaqKeys, kQaqValues } what;
  int head;
  double own_cost;  // of the recipe without a plan
  std::vector<HeadOption> options;
};

// One option of each list, of total cost at most `budget` (the cheapest of all where even they exceed it):
// from the cheapest on, the step along a list's lower convex hull that lowers the error most for its cost
// comes first. Of equal steps that of the earlier list.
std::vector<size_t> Allocate(const std::vector<std::vector<HeadOption>>& lists, double budget);

// Chooses under `share` times the sum of all own_cost and writes the choice into the plan. `layers`: what
// each layer's search found, in order. Returns a word for people on each layer, empty where nothing was to
// choose.
std::vector<std::string> SettleHeads(const std::vector<std::vector<HeadOptions>>& layers, double share,
                                     Plan* plan);

}  // namespace nibble
