// SPDX-License-Identifier: Apache-2.0
// Floor 9. What a comparison says: which recipe to use, as a table for the terminal, as JSON (docs/cli.md)
// and as a page for a browser.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "apps/cli/common.h"
#include "engine/compare.h"

namespace nibble::cli {

// A recipe is good when its next-token distributions hardly differ from the exact ones, and it still finds
// what exact finds.
inline constexpr double kGoodKld = 0.01;         // nats, mean over positions
inline constexpr double kGoodPassKey = 0.95;     // share of the exact recipe's mean score
inline constexpr double kGoodRepetition = 0.90;  // the same; a few dozen passages say no more than that

// Indices are those of CompareReport::recipes.
struct Advice {
  std::optional<size_t> recommended;  // the good one with the fewest bits; none is good: the least loss
  std::optional<size_t> least_read;   // the good one that reads the fewest bytes a step
  bool is_good = false;               // of `recommended`
  struct Tier {
    double max_bits;
    size_t recipe;  // the least loss among those with at most so many KV bits a value
  };
  std::vector<Tier> tiers;                     // from many bits to few, each recipe once
  std::vector<size_t> bits_front, read_front;  // Pareto: no other is both smaller and better; by size
  std::string headline;                        // one sentence for people
};

// What is lost against exact: mean KL divergence where it was measured, else the share of what exact finds
// that is not found. Infinite for a refused recipe.
double Loss(const RecipeReport& recipe, const RecipeReport& exact);
Advice Advise(const CompareReport& report);

// How a report came about, for its header.
struct CompareSource {
  std::string model, reference, text, dtype;
  std::string calibration;  // text that plans were made from; "": none
  int window = 0, trials = 0;
};
Json CompareToJson(const CompareSource& source, const CompareReport& report);
std::string CompareToTable(const CompareSource& source, const CompareReport& report);

// A page without anything from outside. What the JSON holds is data in it, never markup.
std::string CompareToPage(const Json& json);

}  // namespace nibble::cli
