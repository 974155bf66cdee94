// SPDX-License-Identifier: Apache-2.0
// Floor 3. How many KV heads of a layer a recipe gives 2 bits (flashq-mixed), whether a plan fits that, and
// how it is told to people.
#pragma once
#include <string>
#include <vector>

#include "recipe/plan.h"

namespace nibble {

// Of the K or V heads of a layer; 0 under codecs whose heads are all alike.
int TwoBitHeads(const AttentionRecipe& recipe, bool is_v, int kv_heads);

// kInvalidArgument when a layer of the plan names another number of heads than the recipe gives 2 bits: the
// bytes of a row of pages are the recipe's.
Status CheckTwoBitHeads(const AttentionRecipe& recipe, const Plan& plan);

// "K heads: 1 of 2 a layer in 2 bits (flashq2-outlier), 1 in 4; chosen by the first page of each sequence": a
// line a side that mixes widths, and where a plan (or null) chooses, one a layer with the heads.
std::vector<std::string> ExplainTwoBitHeads(const AttentionRecipe& recipe, int kv_heads, const Plan* plan);

// Where the share that the recipe asks for is no whole number of heads.
std::vector<std::string> TwoBitNotes(const AttentionRecipe& recipe, int kv_heads);

}  // namespace nibble
