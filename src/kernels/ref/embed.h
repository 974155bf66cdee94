// SPDX-License-Identifier: Apache-2.0
// Floor 4. The definition of the embedding lookup.
#pragma once
#include "kernels/args.h"

namespace nibble::ref {

void Embed(const EmbedArgs& a, double* y);  // [rows, k]

}  // namespace nibble::ref
