// SPDX-License-Identifier: Apache-2.0
#include "engine/logprobs.h"

#include <algorithm>
#include <cmath>

namespace nibble {

double LogSum(std::span<const float> logits) {
  const double max = double(*std::max_element(logits.begin(), logits.end()));
  double sum = 0;
  for (const float x : logits) sum += std::exp(double(x) - max);
  return max + std::log(sum);
}

void BestLogits(std::span<const float> logits, int count, std::vector<TokenLogprob>* out) {
  const size_t first = out->size(), most = std::min(size_t(count), logits.size());
  if (most == 0) return;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (out->size() - first == most) {
      if (logits[i] <= out->back().logprob) continue;
      out->pop_back();
    }
    auto at = out->end();
    while (at != out->begin() + ptrdiff_t(first) && (at - 1)->logprob < logits[i]) --at;
    out->insert(at, {int32_t(i), logits[i]});
  }
}

void LogprobStore::Add(std::span<const float> logits, int32_t token) {
  if (!wanted()) return;
  const double sum = LogSum(logits);
  tokens_.push_back({token, float(double(logits[size_t(token)]) - sum)});
  const size_t first = best_.size();
  BestLogits(logits, top_, &best_);
  for (size_t i = first; i < best_.size(); ++i) best_[i].logprob = float(double(best_[i].logprob) - sum);
}

std::span<const TokenLogprobs> LogprobStore::View() {
  view_.clear();
  const size_t top = tokens_.empty() ? 0 : best_.size() / tokens_.size();
  for (size_t i = 0; i < tokens_.size(); ++i)
    view_.push_back({tokens_[i], std::span<const TokenLogprob>(best_).subspan(i * top, top)});
  return view_;
}

}  // namespace nibble
