// SPDX-License-Identifier: Apache-2.0
// Floor 3. What may be done with the pages of a recipe without changing a byte of what attention sees. Each
// returns the reason against it, or nothing. docs/decisions/0014-what-may-be-shared-and-undone.md.
#pragma once
#include <string_view>

#include "recipe/attention_recipe.h"

namespace nibble {

// Sequences that begin with the same tokens read the same sealed pages, from whichever was first.
std::string_view WhyNotShared(const AttentionRecipe& recipe);

// Whether pages that decode rows filled are those that prefill rows would have filled, on every device. If
// not, prefixes are shared as far as prompts go.
bool DecodeFillsPagesAsPrefill(const AttentionRecipe& recipe);

// The newest rows of an open page are taken back, as if they had never been fed.
std::string_view WhyNotUndone(const AttentionRecipe& recipe);

}  // namespace nibble
