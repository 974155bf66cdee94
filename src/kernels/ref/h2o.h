// SPDX-License-Identifier: Apache-2.0
// Floor 4. The definitions of the selections that SparQ is compared with: H2O (arXiv 2306.14048), which keeps
// heavy hitters and drops the rest for good, and the window with sinks of StreamingLLM (arXiv 2309.17453).
#pragma once
#include <vector>

#include "kernels/ref/matrix.h"

namespace nibble::ref {

// One KV head. k tokens are kept, of which `local` are the newest; the current token comes on top of them
// (k + 1 are attended to). A token's score is the attention it has received so far, prefill included,
// averaged over the query heads of the group; evicted tokens do not return.
class H2o {
 public:
  H2o(int k, int local) : k_(k), local_(local) {}

  // Attention weights [group, tokens so far] of one prefill query over the tokens up to its own.
  void AddPrefillRow(View weights);

  // One decode step. logits [group, all tokens], scaled, the last one the current token's; those of evicted
  // tokens are not read. Evicts, then attends: weights [group, live tokens in the order of live()].
  Matrix Step(View logits);

  const std::vector<int>& live() const { return live_; }  // ascending
  double score(int token) const { return score_[size_t(token)]; }

 private:
  void Evict();
  int k_, local_;
  std::vector<int> live_;
  std::vector<double> score_;  // by token, evicted ones included
};

// The first `sinks` tokens and the newest k - sinks, ascending; all of them if there are not more than k.
std::vector<int> WindowTokens(int tokens, int sinks, int k);

}  // namespace nibble::ref
