// SPDX-License-Identifier: Apache-2.0
#include "kernels/ref/embed.h"

#include "kernels/ref/linear_dense.h"

namespace nibble::ref {

void Embed(const EmbedArgs& a, double* y) {
  for (int row = 0; row < a.rows; ++row)
    for (int i = 0; i < a.table.k; ++i)
      y[int64_t{row} * a.table.k + i] = PackedElement(a.table, a.tokens[row], i);
}

}  // namespace nibble::ref
