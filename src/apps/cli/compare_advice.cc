// SPDX-License-Identifier: Apache-2.0
// Floor 9. Which recipe to use, from the figures of a comparison.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "apps/cli/compare_report.h"
#include "apps/cli/table.h"

namespace nibble::cli {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kBudgets[] = {16.5, 9, 6.5, 5.5, 4.5, 3.5, 2.5};  // KV bits a value that people ask for

double MeanScore(const std::vector<RetrievalScore>& scores) {
  double sum = 0;
  for (const RetrievalScore& s : scores) sum += s.score();
  return scores.empty() ? 1 : sum / double(scores.size());
}

bool IsGood(const RecipeReport& recipe, const RecipeReport& exact) {
  return recipe.refused.empty() && (!recipe.quality || Loss(recipe, exact) <= kGoodKld) &&
         MeanScore(recipe.passkey) >= kGoodPassKey * MeanScore(exact.passkey) &&
         MeanScore(recipe.repetition) >= kGoodRepetition * MeanScore(exact.repetition);
}

// Indices of recipes that have a size, by size and then by loss; the front keeps those that improve on all
// smaller ones.
template <class Size>
std::vector<size_t> Front(const std::vector<RecipeReport>& recipes, Size size) {
  const auto loss = [&](size_t i) { return Loss(recipes[i], recipes[0]); };
  std::vector<size_t> order(recipes.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::erase_if(order, [&](size_t i) { return !std::isfinite(loss(i)) || !(size(i) < kInf); });
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return std::pair(size(a), loss(a)) < std::pair(size(b), loss(b));
  });
  std::vector<size_t> front;
  for (const size_t i : order)
    if (front.empty() || loss(i) < loss(front.back())) front.push_back(i);
  return front;
}

std::string Headline(const Advice& advice, const std::vector<RecipeReport>& recipes) {
  if (!advice.recommended) return "No recipe could be measured.";
  const RecipeReport& r = recipes[*advice.recommended];
  std::string line = fmt::format("Use {}: ", r.recipe);
  if (!advice.is_good) line = fmt::format("No recipe keeps the model's answers; {} loses least: ", r.recipe);
  line += fmt::format("{:.3g} KV bits a value, {:.1f} times smaller than 16 bits", r.kv.bits_per_value,
                      16 / r.kv.bits_per_value);
  if (r.quality && r.quality->reference)
    line += fmt::format(", and the likeliest next token stays the same {:.1f}% of the time",
                        100 * r.quality->reference->same_top);
  line += ".";
  if (advice.least_read && *advice.least_read != *advice.recommended) {
    const RecipeReport& least = recipes[*advice.least_read];
    line += fmt::format(" {} reads least of the cache in a decode step: {}.", least.recipe,
                        HumanBytes(uint64_t(least.reads.bytes)));
  }
  return line;
}

}  // namespace

double Loss(const RecipeReport& recipe, const RecipeReport& exact) {
  if (!recipe.refused.empty()) return kInf;
  if (recipe.quality && recipe.quality->reference) return recipe.quality->reference->kld.mean;
  double lost = 0;
  int tasks = 0;
  for (const auto task : {&RecipeReport::passkey, &RecipeReport::repetition}) {
    const double best = MeanScore(exact.*task);
    if ((exact.*task).empty()) continue;
    ++tasks;
    if (best > 0) lost += std::max(0.0, 1 - MeanScore(recipe.*task) / best);
  }
  return lost / std::max(1, tasks);
}

Advice Advise(const CompareReport& report) {
  const std::vector<RecipeReport>& recipes = report.recipes;
  const auto bits = [&](size_t i) { return recipes[i].kv.bits_per_value; };
  const auto read = [&](size_t i) { return recipes[i].reads.rows > 0 ? recipes[i].reads.bytes : kInf; };
  const auto loss = [&](size_t i) { return Loss(recipes[i], recipes[0]); };
  Advice advice;
  advice.bits_front = Front(recipes, bits);
  advice.read_front = Front(recipes, read);
  for (size_t i = 0; i < recipes.size(); ++i) {
    if (!IsGood(recipes[i], recipes[0])) continue;
    const auto better = [&](const std::optional<size_t>& best, auto size) {
      return !best || std::pair(size(i), loss(i)) < std::pair(size(*best), loss(*best));
    };
    if (better(advice.recommended, bits)) advice.recommended = i;
    if (read(i) < kInf && better(advice.least_read, read)) advice.least_read = i;
  }
  advice.is_good = advice.recommended.has_value();
  for (const double budget : kBudgets) {
    std::optional<size_t> best;  // the front is ordered by bits, and its loss falls
    for (const size_t i : advice.bits_front)
      if (bits(i) <= budget) best = i;
    if (best && (advice.tiers.empty() || advice.tiers.back().recipe != *best))
      advice.tiers.push_back({budget, *best});
    else if (best)
      advice.tiers.back().max_bits = budget;
  }
  if (!advice.recommended && !advice.bits_front.empty()) advice.recommended = advice.bits_front.back();
  advice.headline = Headline(advice, recipes);
  return advice;
}

}  // namespace nibble::cli
