// SPDX-License-Identifier: Apache-2.0
// Floor 4. The definition of attention over a paged cache: scalar, in double, never optimised.
#pragma once
#include "kernels/args.h"

namespace nibble::ref {

// out [rows, group, head_dim] of AttentionArgs in double; a.out and a.scratch are not used. Softmax in two
// passes over the visible tokens: sealed pages through Codec::Decode8, the queries' own page from its raw
// elements.
void Attention(const AttentionArgs& a, double* out);

}  // namespace nibble::ref
