// SPDX-License-Identifier: Apache-2.0
// Floor 3. The words of a recipe as tables: keys, their values, and the values' parameters. Parsing, printing
// and messages walk over them; a new method adds rows.
#pragma once
#include <span>
#include <string_view>

#include "recipe/attention_recipe.h"

namespace nibble::recipe {

using Names = std::span<const std::string_view>;

struct Param {  // of a value: r of select=sparq
  std::string_view name;
  enum Kind { kInt, kReal, kChoice } kind;
  double min, max;  // inclusive; of a choice: 0 and the last index
  double (*get)(const AttentionRecipe&);
  void (*set)(AttentionRecipe*, double);
  Names choices = {};
};

struct Value {
  std::string_view name;
  std::span<const Param> params = {};
};

struct Key {
  std::string_view name;
  std::span<const Value> values;  // index = what get returns
  size_t (*get)(const AttentionRecipe&);
  void (*set)(AttentionRecipe*, size_t);
};

struct Preset {
  std::string_view name;
  std::string_view items;     // key=value, as a user would write them
  std::string_view key = {};  // its parameters belong to the value of this key
};

std::span<const Key> Keys();
std::span<const Preset> Presets();  // without "exact", which depends on the arithmetic
const Key* FindKey(std::string_view name);

// A selection's numbers that contradict each other, with the nearest that do not.
Status CheckSelection(const AttentionRecipe&);

// What cannot be combined, with the reason.
Status CheckCombination(const AttentionRecipe&, DType arithmetic);

}  // namespace nibble::recipe
