// SPDX-License-Identifier: Apache-2.0
// Floor 8. Log probabilities of tokens under one row of logits, and the best of them, in a store that keeps
// its memory.
#pragma once
#include <span>
#include <vector>

#include "engine/serving.h"

namespace nibble {

// log of the sum of exp(logits), in double.
double LogSum(std::span<const float> logits);
// The `count` greatest logits, best first; of equal ones the lower id.
void BestLogits(std::span<const float> logits, int count, std::vector<TokenLogprob>* out);

class LogprobStore {
 public:
  explicit LogprobStore(int top) : top_(top) {}  // how many of the best to keep of each; -1: nothing at all
  bool wanted() const { return top_ >= 0; }
  void Add(std::span<const float> logits, int32_t token);
  void Clear() { tokens_.clear(), best_.clear(); }
  std::span<const TokenLogprobs> View();  // valid until the next call

 private:
  int top_;
  std::vector<TokenLogprob> tokens_, best_;  // [tokens], [tokens, top]
  std::vector<TokenLogprobs> view_;
};

}  // namespace nibble
