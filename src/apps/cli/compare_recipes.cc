// SPDX-License-Identifier: Apache-2.0
#include "apps/cli/compare_recipes.h"

#include <algorithm>

#include "recipe/attention_recipe.h"

namespace nibble::cli {
namespace {

// Beside the presets: bits moved from K to V and back, and pairs of methods that save in different places
// (bits of the cache, arithmetic, tokens read).
constexpr std::string_view kCombinations[] = {"k=int8-token v=int4-token",
                                              "k=int4-channel v=int2-group",
                                              "k=int2-channel v=int4-group",
                                              "sage2-8b+kv8",  // arithmetic on a quantized cache
                                              "sage2-8b+kivi4",
                                              "sage2-4b+kivi4",
                                              "sage2-8b+qaq",
                                              "kivi4+sas2",
                                              "sage2-8b+sparq",  // a part of the tokens
                                              "sparq:copy=int8",
                                              "kivi4+sparq:copy=int4",  // a small copy for a small cache
                                              "turbo+sparq:copy=int4"};

bool IsRecipe(std::string_view text, DType arithmetic) {
  const auto parsed = ParseRecipe(text, arithmetic);
  return parsed.ok() || parsed.status().code() == Code::kUnsupported;
}

}  // namespace

Result<std::vector<std::string>> SplitRecipes(std::string_view list, DType arithmetic) {
  std::vector<std::string> recipes;
  for (size_t at = 0; at <= list.size();) {
    const size_t comma = std::min(list.find(',', at), list.size());
    const std::string piece(list.substr(at, comma - at));
    at = comma + 1;
    const bool parameter = piece.find('=') != piece.npos && !recipes.empty() &&
                           recipes.back().find(':') != std::string::npos && !IsRecipe(piece, arithmetic);
    if (parameter)
      recipes.back() += "," + piece;
    else
      recipes.push_back(piece);
  }
  for (const std::string& recipe : recipes) {
    const auto parsed = ParseRecipe(recipe, arithmetic);
    if (!parsed.ok() && parsed.status().code() != Code::kUnsupported) return parsed.status();
  }
  return recipes;
}

std::vector<std::string> AllRecipes() {
  const auto presets = PresetNames();
  std::vector<std::string> all(presets.begin(), presets.end());
  all.insert(all.end(), std::begin(kCombinations), std::end(kCombinations));
  return all;
}

std::vector<std::string> WithExact(std::span<const std::string> recipes) {
  std::vector<std::string> unique{"exact"};
  for (const std::string& recipe : recipes)
    if (std::find(unique.begin(), unique.end(), recipe) == unique.end()) unique.push_back(recipe);
  return unique;
}

}  // namespace nibble::cli
