// SPDX-License-Identifier: Apache-2.0
// Floor 8. From logits to a token. Order: bias, penalties (repetition, frequency, presence), temperature,
// min-p, top-k, top-p, draw. One random number a token from (seed, index of the new token), so a sequence
// does not depend on its neighbours.
#pragma once
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "base/result.h"
#include "kernels/args.h"

namespace nibble {

struct SamplingParams {
  float temperature = 0;         // 0: greedy
  int top_k = 0;                 // 0: off
  float top_p = 1, min_p = 0;    // 1, 0: off
  float repetition_penalty = 1;  // 1: off; over prompt and new tokens
  // 0: off; taken off a token's logit as often as it is among the new ones, and once where it is at all.
  float frequency_penalty = 0, presence_penalty = 0;
  std::vector<std::pair<int32_t, float>> logit_bias{};  // added to the logits of these tokens
  uint64_t seed = 0;
};

// kInvalidArgument names the parameter, its value and its range. Biased tokens
// lie below `vocab`.
Status CheckSampling(const SamplingParams&, int vocab = std::numeric_limits<int>::max());

// Takes the tokens away that `allowed` (a bit a token) does not hold: their logits become minus infinity,
// which every later step leaves out. Before Sample.
void MaskLogits(std::span<float> logits, std::span<const uint64_t> allowed);

class Sampler {
 public:
  explicit Sampler(int vocab);  // sizes its buffers: Sample allocates nothing
  // logits [vocab] are changed in place by bias and penalties. `history`: prompt and new tokens so far; the
  // last `index` of them are new.
  int32_t Sample(std::span<float> logits, std::span<const int32_t> history, const SamplingParams&,
                 uint64_t index);
  // The same as what a device is told (Backend::Draw); `guesses` follow the history. Changes go to the end of
  // `changes`. Biases of one token are added up first.
  DrawRow Prepare(std::span<const int32_t> history, std::span<const int32_t> guesses, const SamplingParams&,
                  uint64_t index, std::vector<LogitChange>* changes);

 private:
  struct Candidate {
    float logit;
    int32_t id;
  };
  void Penalize(std::span<float> logits, std::span<const int32_t> history, float penalty);
  void PenalizeNew(std::span<float> logits, std::span<const int32_t> fresh, const SamplingParams&);
  size_t SortBest(size_t limit, double mass, double max, double inv_temperature);
  int32_t Draw(size_t count, double max, double inv_temperature, double uniform);

  std::vector<Candidate> candidates_;
  std::vector<double> weights_;  // of the candidates that may be drawn
  std::vector<int32_t> seen_;    // [vocab] zero between calls
  std::vector<int32_t> counts_;  // of Prepare: by change, how often among the new tokens
};

}  // namespace nibble
