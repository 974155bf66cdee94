// SPDX-License-Identifier: Apache-2.0
// Floor 7. The factor that GPTQ works with (arXiv 2210.17323, section 4).
#pragma once
#include "model/qoq/matrix.h"

namespace nibble::qoq {

// U upper triangular with U^T U = (H + damping * mean(diag H) * I)^-1, computed in double. Inputs that are
// always zero count as if they had the mean energy. The damping grows tenfold until the matrix is positive
// definite; `used` (may be null) receives the share that was needed. REQUIRES H square and finite.
Matrix InverseFactor(const Matrix& h, double damping, Math& math, double* used = nullptr);

}  // namespace nibble::qoq
