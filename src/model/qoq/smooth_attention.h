// SPDX-License-Identifier: Apache-2.0
// Floor 7. SmoothAttention (arXiv 2405.04532 section 4.2): keys are divided and queries multiplied by lambda,
// so that no channel of a key outgrows what 4 bits a token can hold; scores stay as they are. RoPE rotates
// channels i and i + head_dim / 2 into each other, so both share one lambda; a KV head shares it with its
// query heads. Where keys are normalized after the projection (Qwen3), lambda goes into the norm weights,
// which all heads share.
#pragma once
#include <optional>
#include <span>
#include <vector>

#include "model/qoq/layer.h"

namespace nibble::qoq {

struct HeadShape {
  int heads = 0, kv_heads = 0, head_dim = 0;
};

// lambda of one head [head_dim]: for the pair i, max |K|^alpha / max |Q|^beta over both channels, 1 where
// either maximum is 0.
std::vector<float> PairedLambda(std::span<const float> k_max, std::span<const float> q_max, double alpha,
                                double beta);

struct AttentionSmoothing {
  std::vector<float> lambda;                 // [kv_heads, head_dim]
  std::vector<double> alpha, beta;           // [kv_heads] as chosen
  double error_before = 0, error_after = 0;  // mean squared score error of 4-bit keys, relative to the scores
};

// Statistics are taken after RoPE: q [rows, heads * head_dim], k [rows, kv_heads * head_dim]. With `alpha`,
// lambda = max |K|^alpha; without, (alpha, beta) come from a search: (0, 0), (a, 0) and (a, 1 - a) for a =
// 0.05, 0.1, ..., 1, by the squared error that 4-bit keys cause in the scores. `shared`: one lambda for all
// heads.
AttentionSmoothing FindAttentionSmoothing(const Matrix& q, const Matrix& k, HeadShape shape,
                                          std::optional<double> alpha, bool shared, Math& math);

// Scales the rows of q and k, or q_norm and k_norm where the layer has them.
void SmoothAttention(std::span<const float> lambda, HeadShape shape, Layer* layer);

}  // namespace nibble::qoq
