// SPDX-License-Identifier: Apache-2.0
// Floor 4. The definition of attention over a paged cache: scalar, in double, never optimised.
#pragma once
#include "kernels/args.h"

namespace nibble::ref {

// out [rows, group, head_dim] of AttentionArgs in double; a.out, a.scratch and a.counters are not used. Tile
// by tile: sealed pages through Codec::Decode8 and the recipe's arithmetic, the queries' own page from its
// raw elements. Adds rows and what SAS dropped to `counters` unless it is null.
void Attention(const AttentionArgs& a, double* out, AttentionCounters* counters = nullptr);

}  // namespace nibble::ref
