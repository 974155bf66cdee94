// SPDX-License-Identifier: Apache-2.0
// Floor 0. Where the greatest of many numbers is, and whether they are numbers.
#pragma once
#include <cstddef>
#include <span>

namespace nibble {

// The lowest index of the maximum, as std::max_element finds it: NaN is greater than nothing, and nothing is
// greater than a NaN in front. REQUIRES: not empty.
size_t ArgMax(std::span<const float> x);

// No NaN and no infinity.
bool AllFinite(std::span<const float> x);

}  // namespace nibble
