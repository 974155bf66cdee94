// SPDX-License-Identifier: Apache-2.0
#include "kernels/ref/sage_quantize.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace nibble::ref {

int RowGroups::Of(int row) const {
  switch (granularity) {
    case Granularity::kTensor:
      return 0;
    case Granularity::kBlock:
      return row / block_rows;
    case Granularity::kWarp:
      return row / warp_rows;
    case Granularity::kThread:
      return row / warp_rows * thread_groups + row % 8 / (8 / thread_groups);
    case Granularity::kToken:
      return row;
  }
  return 0;
}

int RowGroups::Count(int rows) const {
  switch (granularity) {
    case Granularity::kTensor:
      return 1;
    case Granularity::kToken:
      return rows;
    default:
      break;
  }
  const int blocks = (rows + block_rows - 1) / block_rows, warps = blocks * (block_rows / warp_rows);
  if (granularity == Granularity::kBlock) return blocks;
  return granularity == Granularity::kWarp ? warps : warps * thread_groups;
}

RowGroups QueryGroups(Granularity granularity, int block_rows, int warp_rows) {
  return {granularity, block_rows, warp_rows, 8};
}

RowGroups KeyGroups(Granularity granularity, int block_rows) {
  return {granularity, block_rows, block_rows, 4};
}

std::vector<int> ScaleOffsets(const std::vector<int>& row_offsets, int block_rows) {
  std::vector<int> offsets = {0};
  for (size_t i = 1; i < row_offsets.size(); ++i)
    offsets.push_back(offsets.back() + (row_offsets[i] - row_offsets[i - 1] + block_rows - 1) / block_rows);
  return offsets;
}

QuantizedRows QuantizeGroups(View x, const QuantizerSpec& spec) {
  NIBBLE_CHECK(spec.levels > 0, "a quantizer without levels");
  QuantizedRows q{Codes(x.rows, x.dim), std::vector<double>(size_t(spec.groups.Count(x.rows)), 0.0),
                  spec.groups};
  for (int r = 0; r < x.rows; ++r) {
    double& amax = q.scale[size_t(spec.groups.Of(r))];
    const double row_max = AbsMax(x.Slice(r, r + 1));
    amax = std::isnan(row_max) || std::isnan(amax) ? std::nan("") : std::max(amax, row_max);
  }
  for (double& scale : q.scale) scale = Store(scale / spec.levels, spec.scale);
  for (int r = 0; r < x.rows; ++r) {
    const double scale = q.Scale(r);
    for (int d = 0; d < x.dim; ++d)
      q.codes[r][d] = scale > 0 ? RoundToCode(x[r][d] / scale, spec.rounding, -spec.levels, spec.levels) : 0;
  }
  return q;
}

}  // namespace nibble::ref
