// SPDX-License-Identifier: Apache-2.0
// Floor 7. Activation-aware channel reordering (arXiv 2405.04532 section 4.3.3). Channels of like salience
// come into one group of 128, so that small ones do not share a scale with large ones. Only the MLP's hidden
// channels can move without a gather at run time: their producers' rows move along. Channels of the residual
// stream are tied together over all layers, those of the attention output to their heads.
#pragma once
#include <vector>

#include "model/qoq/layer.h"

namespace nibble::qoq {

// Channels of x by their energy (the sum of squares), greatest first: also the order in which GPTQ should
// meet them. Equal ones keep their order.
std::vector<int> ByEnergy(const Matrix& x);

// Channel i of the MLP becomes the former channel order[i].
void ReorderMlp(const std::vector<int>& order, Layer* layer);
// The same for activations [rows, channels].
void ReorderColumns(const std::vector<int>& order, Matrix* x);

}  // namespace nibble::qoq
