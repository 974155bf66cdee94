// SPDX-License-Identifier: Apache-2.0
// Floor 7. Output-module smoothing (arXiv 2405.04532 section 4.3.2): inputs of down_proj (and of o_proj,
// channel by channel of a KV head) are divided by lambda = max |X|^alpha / max |W|^beta in the rows of their
// producer, up_proj (v_proj), and the columns that read them are multiplied.
#pragma once
#include "model/qoq/layer.h"
#include "model/qoq/smooth_attention.h"
#include "quant/weight/format.h"

namespace nibble::qoq {

struct OutputSmoothing {
  std::vector<float> lambda;  // [intermediate], or [kv_heads, head_dim]
  double alpha = 0, beta = 0;
  double error_before = 0, error_after = 0;  // of the output, relative, with rounded weights and activations
};

// By the error of the layer's output over the grid of search.h, weights rounded to nearest in `storage`.
OutputSmoothing FindMlpSmoothing(const Matrix& gated, const FloatLinear& down, weight::Storage storage,
                                 Math& math);
void SmoothMlp(std::span<const float> lambda, Layer* layer);

// Also counts the error that 4 bits a value leave in V, as far as attention does not average it away.
OutputSmoothing FindValueSmoothing(const Matrix& v, const Matrix& attended, const FloatLinear& o,
                                   HeadShape shape, weight::Storage storage, Math& math);
void SmoothValues(std::span<const float> lambda, HeadShape shape, Layer* layer);

// x[:, c] /= lambda of channel c; attended [rows, heads * head_dim] takes that of its KV head.
void DivideColumns(std::span<const float> lambda, Matrix* x);
std::vector<float> PerQueryHead(std::span<const float> lambda, HeadShape shape);

}  // namespace nibble::qoq
