// SPDX-License-Identifier: Apache-2.0
// Floor 9. Which recipes `nibble compare` compares.
#pragma once
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"
#include "base/result.h"

namespace nibble::cli {

// The recipes of a list such as "kv8,select=sparq:r=16,k=128,k=int8-token v=int4-token". A piece between two
// commas that is name=value and no recipe by itself belongs to the parameters of the recipe before it.
// kInvalidArgument for a recipe that is mistyped; one that is known but cannot be had is left to be refused.
Result<std::vector<std::string>> SplitRecipes(std::string_view list, DType arithmetic);

// Every preset of the build and combinations of them that make sense, "exact" first.
std::vector<std::string> AllRecipes();

// `recipes` without repetitions, "exact" in front: it is what the others are compared with.
std::vector<std::string> WithExact(std::span<const std::string> recipes);

}  // namespace nibble::cli
