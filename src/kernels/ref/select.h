// SPDX-License-Identifier: Apache-2.0
// Floor 4. The definition of rows that select tokens over a paged cache: scalar, in double, never optimised.
#pragma once
#include <vector>

#include "kernels/args.h"

namespace nibble::ref {

struct SelectedRow {
  std::vector<double> out;      // [group, head_dim]
  std::vector<int64_t> tokens;  // positions that are read, ascending
  // How far the choice was from another one: the least relative distance of a score, a sum or a share from
  // the bound it was held against. Who computes in f32 may choose differently when this is near its rounding.
  double margin = 1;
  bool dense_fallback = false;
};

// Ranking reads the copies of K in the records; the means are taken over V as the codec gives it, not from
// running sums.
SelectedRow Sparq(const SparqArgs&);
SelectedRow Window(const WindowArgs&);
// Reads and writes scores[position / page tokens][position % page tokens] as the kernel does, in double.
SelectedRow H2o(const H2oArgs&, std::vector<double>& scores);

// Key of token t and channel d in a copy.
double KeyCopyElement(KeyCopy format, kv::PageShape, const std::byte* copy, int t, int d);

}  // namespace nibble::ref
