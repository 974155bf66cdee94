// SPDX-License-Identifier: Apache-2.0
#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/arg_max.h"

namespace nibble {
namespace {

// SplitMix64 over (seed, index): one well-mixed number a token without any state to carry.
double Uniform(uint64_t seed, uint64_t index) {
  uint64_t z = seed * 0x9E3779B97F4A7C15u + (index + 1) * 0xD1B54A32D192ED03u;
  for (int round = 0; round < 2; ++round) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
  }
  return static_cast<double>(z >> 11) * 0x1p-53;
}

}  // namespace

Status CheckSampling(const SamplingParams& p, int vocab) {
  const auto bad = [](const char* name, double value, const char* range) {
    return Error(Code::kInvalidArgument, "{} is {}, must be {}", name, value, range);
  };
  if (!(p.temperature >= 0) || !std::isfinite(p.temperature))
    return bad("temperature", p.temperature, ">= 0");
  if (p.top_k < 0) return bad("top_k", p.top_k, ">= 0 (0: off)");
  if (!(p.top_p > 0 && p.top_p <= 1)) return bad("top_p", p.top_p, "in (0, 1]");
  if (!(p.min_p >= 0 && p.min_p <= 1)) return bad("min_p", p.min_p, "in [0, 1]");
  if (!(p.repetition_penalty > 0) || !std::isfinite(p.repetition_penalty)) {
    return bad("repetition_penalty", p.repetition_penalty, "> 0");
  }
  if (!std::isfinite(p.frequency_penalty)) return bad("frequency_penalty", p.frequency_penalty, "finite");
  if (!std::isfinite(p.presence_penalty)) return bad("presence_penalty", p.presence_penalty, "finite");
  for (const auto& [id, bias] : p.logit_bias) {
    if (id < 0 || id >= vocab)
      return Error(Code::kInvalidArgument, "logit_bias names token {}, outside the vocabulary of {}", id,
                   vocab);
    if (!std::isfinite(bias))
      return Error(Code::kInvalidArgument, "logit_bias of token {} is {}, must be finite", id, bias);
  }
  return {};
}

void MaskLogits(std::span<float> logits, std::span<const uint64_t> allowed) {
  for (size_t i = 0; i < logits.size(); ++i) {
    if ((allowed[i / 64] >> (i % 64) & 1) == 0) logits[i] = -std::numeric_limits<float>::infinity();
  }
}

Sampler::Sampler(int vocab)
    : candidates_(static_cast<size_t>(vocab)),
      weights_(static_cast<size_t>(vocab)),
      seen_(static_cast<size_t>(vocab)) {}

// As in CTRL (arXiv 1909.05858) and transformers: positive logits are divided, negative ones multiplied, once
// a token.
void Sampler::Penalize(std::span<float> logits, std::span<const int32_t> history, float penalty) {
  for (int32_t id : history) {
    if (seen_[id] != 0) continue;
    seen_[id] = 1;
    logits[id] = logits[id] > 0 ? logits[id] / penalty : logits[id] * penalty;
  }
  for (int32_t id : history) seen_[id] = 0;
}

// As the OpenAI API defines them.
void Sampler::PenalizeNew(std::span<float> logits, std::span<const int32_t> fresh, const SamplingParams& p) {
  for (const int32_t id : fresh) ++seen_[id];
  for (const int32_t id : fresh) {
    if (seen_[id] == 0) continue;
    logits[id] -= p.frequency_penalty * static_cast<float>(seen_[id]) + p.presence_penalty;
    seen_[id] = 0;
  }
}

// Moves the best candidates to the front, best first (ties: lower id), until they hold `mass` of the total or
// `limit` are sorted. Returns how many.
size_t Sampler::SortBest(size_t limit, double mass, double max, double inv_temperature) {
  const auto better = [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
  };
  double total = 0;
  if (mass < 1) {
    for (const Candidate& c : candidates_) total += std::exp((c.logit - max) * inv_temperature);
  }
  double sum = 0;
  size_t sorted = 0;
  while (sorted < limit) {
    const size_t next =
        std::min(limit, std::max<size_t>(64, sorted * 4));  // few tokens hold most of the mass
    std::partial_sort(candidates_.begin() + static_cast<ptrdiff_t>(sorted),
                      candidates_.begin() + static_cast<ptrdiff_t>(next), candidates_.end(), better);
    for (; sorted < next; ++sorted) {
      if (mass < 1 && sum >= mass * total) return sorted;
      sum += std::exp((candidates_[sorted].logit - max) * inv_temperature);
    }
  }
  return sorted;
}

int32_t Sampler::Draw(size_t count, double max, double inv_temperature, double uniform) {
  double total = 0;
  for (size_t i = 0; i < count; ++i) {
    weights_[i] = std::exp((candidates_[i].logit - max) * inv_temperature);
    total += weights_[i];
  }
  double sum = 0;
  for (size_t i = 0; i < count; ++i) {
    sum += weights_[i];
    if (sum > uniform * total) return candidates_[i].id;
  }
  return candidates_[count - 1].id;
}

DrawRow Sampler::Prepare(std::span<const int32_t> history, std::span<const int32_t> guesses,
                         const SamplingParams& p, uint64_t index, std::vector<LogitChange>* changes) {
  DrawRow row{.uniform = Uniform(p.seed, index),
              .temperature = p.temperature,
              .top_p = p.top_p,
              .min_p = p.min_p,
              .top_k = p.top_k,
              .first_change = int32_t(changes->size())};
  counts_.clear();
  const auto of = [&](int32_t id) -> size_t {
    if (seen_[size_t(id)] == 0) {
      changes->push_back({id, 0, 0, 0}), counts_.push_back(0);
      seen_[size_t(id)] = int32_t(counts_.size());
    }
    return size_t(seen_[size_t(id)]) - 1;
  };
  const auto change = [&](size_t at) -> LogitChange& { return (*changes)[size_t(row.first_change) + at]; };
  for (const auto& [id, bias] : p.logit_bias) change(of(id)).bias += bias;
  if (p.repetition_penalty != 1)
    for (const std::span<const int32_t> part : {history, guesses})
      for (const int32_t id : part) change(of(id)).penalty = p.repetition_penalty;
  if (p.frequency_penalty != 0 || p.presence_penalty != 0)
    for (const std::span<const int32_t> part : {history.last(size_t(index) - guesses.size()), guesses})
      for (const int32_t id : part) ++counts_[of(id)];
  row.changes = int32_t(counts_.size());
  for (size_t i = 0; i < counts_.size(); ++i) {
    if (counts_[i] > 0)
      change(i).off = p.frequency_penalty * static_cast<float>(counts_[i]) + p.presence_penalty;
    seen_[size_t(change(i).id)] = 0;
  }
  return row;
}

int32_t Sampler::Sample(std::span<float> logits, std::span<const int32_t> history, const SamplingParams& p,
                        uint64_t index) {
  for (const auto& [token, bias] : p.logit_bias) logits[token] += bias;
  if (p.repetition_penalty != 1) Penalize(logits, history, p.repetition_penalty);
  if (p.frequency_penalty != 0 || p.presence_penalty != 0) PenalizeNew(logits, history.last(index), p);
  const auto best = static_cast<int32_t>(ArgMax(logits));
  if (p.temperature == 0) return best;

  const double max = logits[best], inv_temperature = 1.0 / static_cast<double>(p.temperature);
  for (size_t i = 0; i < logits.size(); ++i) candidates_[i] = {logits[i], static_cast<int32_t>(i)};
  size_t count = candidates_.size();
  if (p.min_p > 0) {  // keeps probabilities >= min_p times the largest; a threshold on logits, so it commutes
    const double floor = max + std::log(static_cast<double>(p.min_p)) / inv_temperature;
    candidates_.resize(static_cast<size_t>(
        std::remove_if(candidates_.begin(), candidates_.end(),
                       [floor](const Candidate& c) { return static_cast<double>(c.logit) < floor; }) -
        candidates_.begin()));
    count = candidates_.size();
  }
  if (p.top_k > 0) {
    count = SortBest(std::min(count, static_cast<size_t>(p.top_k)), 1, max, inv_temperature);
    candidates_.resize(count);
  }
  if (p.top_p < 1) count = SortBest(count, p.top_p, max, inv_temperature);
  const int32_t id = Draw(count, max, inv_temperature, Uniform(p.seed, index));
  candidates_.resize(logits.size());  // within the capacity of the constructor: allocates nothing
  return id;
}

}  // namespace nibble
