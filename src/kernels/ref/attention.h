// SPDX-License-Identifier: Apache-2.0
// Floor 4. The definition of attention over a paged cache: scalar, in double, never optimised.
#pragma once
#include "kernels/args.h"

namespace nibble::ref {

// How pages of unsigned codes are computed with where the arithmetic is f32: as integers, what the CPU does
// (docs/decisions/0017-codes-meet-integers.md), or decoded, what the CUDA kernels do (0013-cuda-backend.md).
enum class CodePages : uint8_t { kIntegers, kDecoded };

// out [rows, group, head_dim] of AttentionArgs in double; a.out, a.scratch and a.counters are not used. Tile
// by tile: sealed pages through Codec::Decode8 and the recipe's arithmetic, the queries' own page from its
// raw elements. Adds rows and what SAS dropped to `counters` unless it is null.
void Attention(const AttentionArgs& a, double* out, AttentionCounters* counters = nullptr,
               CodePages codes = CodePages::kIntegers);

}  // namespace nibble::ref
