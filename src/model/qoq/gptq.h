// SPDX-License-Identifier: Apache-2.0
// Floor 7. GPTQ (arXiv 2210.17323) onto the formats of quant/weight: columns are rounded one after the other,
// and what rounding one changed in the output is made up for by the columns after it. The grid of a group is
// fitted when its first column is reached, to the weights as they are then; s1 of a row is frozen before.
#pragma once
#include "model/qoq/grid.h"
#include "model/qoq/matrix.h"
#include "quant/weight/quantize.h"

namespace nibble::qoq {

struct Rounded {
  weight::QuantizedWeight codes;
  Matrix w;  // [n, k], the values that the codes stand for
};

struct RoundingOptions {
  weight::Storage storage = weight::Storage::kW4A8Group;
  bool clip = true;  // search each grid, otherwise the full range
  bool gptq = true;  // make up for rounding, otherwise to nearest
};

// `u` = InverseFactor of the inputs' second moment. kInvalidArgument naming the row that no f16 scale holds.
Result<Rounded> Round(const Matrix& w, const Matrix& u, const RoundingOptions& options, Math& math);

// w becomes what round-to-nearest makes of it, without any search: for estimates.
void RoundToNearest(weight::Storage storage, Math& math, Matrix* w);

// The weights that fit best to inputs that changed: w + gap H^-1 (as u), where gap [n, k] is what the output
// lacks, correlated with the inputs.
Matrix MakeUpFor(const Matrix& w, const Matrix& gap, const Matrix& u, Math& math);

}  // namespace nibble::qoq
