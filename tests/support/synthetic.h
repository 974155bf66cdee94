// SPDX-License-Identifier: Apache-2.0
// One head's Q, K and V with the structure that large models have and Gaussian noise lacks: fixed outlier
// channels in slowly turning RoPE pairs, an attention sink with a tiny value, queries that look for earlier
// tokens, heavy-tailed and biased values, flat or peaky rows. On noise every scheme looks alike; these make
// the published orderings come out. Seeded, and the same on every platform.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/ref/dense.h"

namespace nibble::ref {

struct SyntheticSpec {
  std::string name;
  int tokens = 1024, head_dim = 128;
  int outlier_channels = 6;  // of K, with means of +- outlier_low .. outlier_high (log-uniform)
  double outlier_low = 8, outlier_high = 25;
  double channel_spread = .35;  // of the logarithm of K's deviation by channel
  double rope_theta = 5e5;
  double correlation = .7;     // of neighbouring tokens
  double logit_std = 2.5;      // of q.k / sqrt(head_dim) over keys: 1.2 flat, 4 peaky
  double sink_mass = .4;       // mean attention of the first token; 0: no sink
  int v_tail = 5;              // degrees of freedom of V's Student t; 0: normal
  double v_mean = .3;          // deviation of V's channel means
  double v_spike_share = .02;  // tokens whose V is three times as large
  int v_biased_channels = 0;   // channels of V around +- 8.5
  uint64_t seed = 1;
};

// S0 .. S7 of docs/results/synthetic.md.
std::vector<SyntheticSpec> SyntheticSets();
SyntheticSpec SyntheticSet(const std::string& name);

struct SyntheticHead {
  Matrix q, k, v;  // after RoPE
  double scale;    // head_dim^-0.5
};
SyntheticHead MakeSynthetic(const SyntheticSpec& spec);

// What the head looks like, over the rows of its second half: exp of the mean entropy, mean attention of the
// first token; greatest channel of |K| over the median channel; |mean of K| over |K - mean|; greatest |V|
// over the median.
struct SyntheticStructure {
  double effective_tokens, sink_mass, k_channel_ratio, k_mean_ratio, v_ratio;
};
SyntheticStructure Structure(const SyntheticHead& head);

}  // namespace nibble::ref
