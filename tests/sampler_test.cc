// SPDX-License-Identifier: Apache-2.0
// The sampler: greedy ties, each filter against a slow definition, penalties, seeds, and frequencies of
// draws.
#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "base/arg_max.h"

namespace nibble {
namespace {

std::vector<float> RandomLogits(int n, unsigned seed) {
  std::mt19937 rng(seed);
  std::vector<float> x(static_cast<size_t>(n));
  for (float& v : x) v = static_cast<float>(static_cast<int>(rng() % 20000) - 10000) / 1000.0f;
  return x;
}

// The definition: which ids may be drawn, by sorting everything.
std::set<int32_t> Allowed(const std::vector<float>& logits, const SamplingParams& p) {
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  const auto weight = [&](int32_t id) {
    return std::exp((static_cast<double>(logits[id]) - static_cast<double>(logits[ids[0]])) /
                    static_cast<double>(p.temperature));
  };
  if (p.min_p > 0)
    std::erase_if(ids, [&](int32_t id) { return weight(id) < static_cast<double>(p.min_p) * (1 - 1e-12); });
  if (p.top_k > 0 && ids.size() > static_cast<size_t>(p.top_k)) ids.resize(static_cast<size_t>(p.top_k));
  double total = 0, sum = 0;
  for (int32_t id : ids) total += weight(id);
  std::set<int32_t> allowed;
  for (int32_t id : ids) {
    if (p.top_p < 1 && sum >= static_cast<double>(p.top_p) * total) break;
    allowed.insert(id);
    sum += weight(id);
  }
  return allowed;
}

std::set<int32_t> Drawn(const std::vector<float>& logits, SamplingParams p, int draws) {
  Sampler sampler(static_cast<int>(logits.size()));
  std::set<int32_t> seen;
  for (int i = 0; i < draws; ++i) {
    std::vector<float> copy = logits;
    seen.insert(sampler.Sample(copy, {}, p, static_cast<uint64_t>(i)));
  }
  return seen;
}

TEST(Sampler, GreedyTakesTheLowestIdOfTheMaximum) {
  std::vector<float> logits{1, 5, 5, -2};
  Sampler sampler(4);
  EXPECT_EQ(sampler.Sample(logits, {}, {}, 0), 1);
}

TEST(Sampler, FiltersKeepExactlyWhatTheDefinitionKeeps) {
  const std::vector<SamplingParams> cases{
      {.temperature = 1, .top_k = 1},    {.temperature = 4, .top_k = 5},
      {.temperature = 2, .top_p = 0.5f}, {.temperature = 9, .top_p = 0.9f},
      {.temperature = 3, .min_p = 0.3f}, {.temperature = 5, .top_k = 12, .top_p = 0.7f, .min_p = 0.05f}};
  for (size_t i = 0; i < cases.size(); ++i) {
    const std::vector<float> logits = RandomLogits(40, static_cast<unsigned>(i));
    const std::set<int32_t> allowed = Allowed(logits, cases[i]), drawn = Drawn(logits, cases[i], 4000);
    EXPECT_TRUE(std::includes(allowed.begin(), allowed.end(), drawn.begin(), drawn.end())) << "case " << i;
    EXPECT_EQ(drawn.size(), allowed.size()) << "case " << i;  // 4000 draws meet every id that may be drawn
  }
}

TEST(Sampler, TopPSortsFartherThanItsFirstBlock) {
  // 1000 nearly equal tokens: half of the mass takes about 500 of them, several blocks of the partial sort.
  std::vector<float> logits(1000);
  for (int i = 0; i < 1000; ++i) logits[i] = static_cast<float>((i * 37) % 1000) * 1e-6f;
  const SamplingParams p{.temperature = 1, .top_p = 0.5f};
  const std::set<int32_t> allowed = Allowed(logits, p), drawn = Drawn(logits, p, 20000);
  EXPECT_NEAR(static_cast<double>(allowed.size()), 500, 2);
  EXPECT_TRUE(std::includes(allowed.begin(), allowed.end(), drawn.begin(), drawn.end()));
  EXPECT_EQ(drawn.size(), allowed.size());
}

TEST(Sampler, FrequenciesFollowTheSoftmax) {
  const std::vector<float> logits{0.0f, 1.0f, 2.0f};
  std::map<int32_t, int> counts;
  Sampler sampler(3);
  const int draws = 200000;
  for (int i = 0; i < draws; ++i) {
    std::vector<float> copy = logits;
    ++counts[sampler.Sample(copy, {}, {.temperature = 1, .seed = 7}, static_cast<uint64_t>(i))];
  }
  const double total = 1 + std::exp(1.0) + std::exp(2.0);
  for (int id = 0; id < 3; ++id) {
    const double p = std::exp(static_cast<double>(id)) / total;
    // Five standard deviations of a binomial count.
    EXPECT_NEAR(counts[id] / static_cast<double>(draws), p, 5 * std::sqrt(p * (1 - p) / draws)) << id;
  }
}

TEST(Sampler, PenaltyActsOnceATokenAndOnBothSigns) {
  std::vector<float> logits{2, -2, 1};
  const std::vector<int32_t> history{0, 1, 0, 0};
  Sampler sampler(3);
  EXPECT_EQ(sampler.Sample(logits, history, {.repetition_penalty = 4}, 0), 2);
  EXPECT_EQ(logits, (std::vector<float>{0.5f, -8, 1}));
}

TEST(Sampler, DrawDependsOnSeedAndIndexOnly) {
  const std::vector<float> logits = RandomLogits(500, 3);
  const auto draw = [&](uint64_t seed, uint64_t index) {
    Sampler sampler(500);
    std::vector<float> copy = logits;
    return sampler.Sample(copy, {}, {.temperature = 5, .seed = seed}, index);
  };
  EXPECT_EQ(draw(1, 9), draw(1, 9));
  std::set<int32_t> by_seed, by_index;
  for (uint64_t i = 0; i < 50; ++i) {
    by_seed.insert(draw(i, 0));
    by_index.insert(draw(0, i));
  }
  EXPECT_GT(by_seed.size(), 20u);
  EXPECT_GT(by_index.size(), 20u);
}

TEST(Sampler, ParametersOutOfRangeAreNamed) {
  EXPECT_TRUE(CheckSampling({}).ok());
  const std::vector<std::pair<SamplingParams, std::string>> cases{
      {{.temperature = -1}, "temperature is -1"},
      {{.temperature = NAN}, "temperature is nan"},
      {{.top_k = -3}, "top_k is -3"},
      {{.top_p = 0}, "top_p is 0"},
      {{.min_p = 1.5f}, "min_p is 1.5"},
      {{.repetition_penalty = 0}, "repetition_penalty is 0"}};
  for (const auto& [params, text] : cases) {
    EXPECT_NE(CheckSampling(params).message().find(text), std::string::npos)
        << CheckSampling(params).message();
  }
}

TEST(ArgMax, FindsWhatTheStandardLibraryFinds) {
  const float specials[] = {0.0f, -0.0f, INFINITY, -INFINITY, NAN, 1.0f};
  std::mt19937 rng(3);
  for (int round = 0; round < 5000; ++round) {
    std::vector<float> x(1 + rng() % 70);
    for (float& v : x) v = rng() % 4 == 0 ? specials[rng() % 6] : static_cast<float>(rng() % 10) - 5;
    const auto expected = static_cast<size_t>(std::max_element(x.begin(), x.end()) - x.begin());
    ASSERT_EQ(ArgMax(x), expected) << round;
  }
}

}  // namespace
}  // namespace nibble
