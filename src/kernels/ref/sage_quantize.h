// SPDX-License-Identifier: Apache-2.0
// Floor 4. The integer quantizers of SageAttention (arXiv 2410.02367, 2411.10958, 2505.21136): which rows of
// Q and K share a scale, and the codes.
#pragma once
#include <vector>

#include "kernels/ref/matrix.h"
#include "kernels/ref/rounding.h"

namespace nibble::ref {

enum class Granularity { kTensor, kBlock, kWarp, kThread, kToken };

// Which rows share a scale. A block is divided into warps; a warp has `thread_groups` groups, one for each
// set of lanes of the m16n8 accumulator that reads the same rows: 8 of Q (row mod 8), 4 of K (pairs of
// tokens, (token mod 8) / 2). SageAttention2, section 3.2; the published equation drops the group's index.
struct RowGroups {
  Granularity granularity = Granularity::kThread;
  int block_rows = 0, warp_rows = 0, thread_groups = 0;

  int Of(int row) const;
  int Count(int rows) const;  // of `rows` rows, a partial last block counted whole
};
// Ampere and Ada: Q 128-row blocks of four warps, K 64-token blocks. Hopper: Q 64 rows, warps of 16; K 128.
RowGroups QueryGroups(Granularity granularity, int block_rows = 128, int warp_rows = 32);
RowGroups KeyGroups(Granularity granularity, int block_rows = 64);

// The block scales of packed sequences: the first scale of each, and their number (prefix sums of blocks).
std::vector<int> ScaleOffsets(const std::vector<int>& row_offsets, int block_rows);

struct QuantizerSpec {
  RowGroups groups;
  int levels = 127;  // greatest magnitude of a code: 127, or 7 for INT4
  Rounding rounding = Rounding::kEven;
  Storage scale = Storage::kExact;
};

// x ~ codes * scale of the row's group. scale = max |x| / levels as stored, code = round(x / scale). A group
// of zeros has scale 0 and codes 0; one with a value that is not finite has scale NaN.
struct QuantizedRows {
  Codes codes;
  std::vector<double> scale;  // by group
  RowGroups groups;

  double Scale(int row) const { return scale[size_t(groups.Of(row))]; }
};
QuantizedRows QuantizeGroups(View x, const QuantizerSpec& spec);

// The order in which a lane of the FP8 kernels consumes the 16 tokens of a step: source token r lies in slot
// VSlot(r). P's columns and V's rows are permuted together, so the product is unchanged.
inline int VSlot(int token) { return 2 * (token / 8) + 4 * (token / 2 % 4) + token % 2; }

}  // namespace nibble::ref
