// SPDX-License-Identifier: Apache-2.0
// Floor 7. QoQ's block-input rotation (arXiv 2405.04532 section 4.3.1): the residual stream x becomes x R
// with R orthogonal, which spreads the outlier channels of every block's input over all channels. RMSNorm
// without weights commutes with R, so norm weights go into the linears that follow first. Nothing runs at run
// time.
#pragma once
#include "model/qoq/hadamard.h"
#include "model/qoq/layer.h"

namespace nibble::qoq {

// Norm weights into q, k, v (gate, up); they become ones.
void FoldNorms(Layer* layer);
// The final norm's weight into the head. A tied head gets its own matrix unless the weight is ones already.
void FoldFinalNorm(Ends* ends);

// REQUIRES folded norms. Inputs of q, k, v, gate and up become W R; outputs of o and down R^T W and R^T bias.
void RotateLayer(const Hadamard& r, Math& math, Layer* layer);
// The embedding becomes E R, and so does the head.
void RotateEnds(const Hadamard& r, Math& math, Ends* ends);

}  // namespace nibble::qoq
