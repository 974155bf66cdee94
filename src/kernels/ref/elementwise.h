// SPDX-License-Identifier: Apache-2.0
// Floor 4. The definition of RMSNorm, RoPE, gated activations and log-sum-exp: scalar, in double, never
// optimised. Outputs are dense.
#pragma once
#include "kernels/args.h"

namespace nibble::ref {

void RmsNorm(const NormArgs& a, double* y);                        // [rows, k]
void RopeTable(const RopeTableArgs& a, double* cos, double* sin);  // [rows, head_dim / 2] each
void Rope(const RopeArgs& a, double* y);  // [rows, heads, head_dim]; a.x is only read
void Glu(const GluArgs& a, double* y);    // [rows, k]
void LogSumExp(const LogSumExpArgs& a, double* lse, int32_t* argmax);  // [rows] each; a.x is only read

}  // namespace nibble::ref
