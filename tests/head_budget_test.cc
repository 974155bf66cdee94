// SPDX-License-Identifier: Apache-2.0
// The budget that KV heads share: on random lists it is never exceeded, never worse than any equal choice for
// all, and within one step of the best there is. Spending in the order of the lists is the broken variant.
#include "engine/head_budget.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace nibble {
namespace {

using Lists = std::vector<std::vector<HeadOption>>;

double Cost(const Lists& lists, const std::vector<size_t>& chosen) {
  double sum = 0;
  for (size_t i = 0; i < lists.size(); ++i) sum += lists[i][chosen[i]].cost;
  return sum;
}
double Error(const Lists& lists, const std::vector<size_t>& chosen) {
  double sum = 0;
  for (size_t i = 0; i < lists.size(); ++i) sum += lists[i][chosen[i]].error;
  return sum;
}

// Error about 4^-cost with noise, heads of different weight, options in any order.
Lists RandomLists(uint32_t seed, size_t heads, int options) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> uniform;
  Lists lists(heads);
  for (auto& list : lists) {
    const double weight = std::exp2(6 * uniform(random));
    for (int i = 0; i < options; ++i) {
      HeadOption& o = list.emplace_back();
      o.cost = 1 + 5 * uniform(random);
      o.error = weight * std::pow(4, -o.cost) * (.7 + .6 * uniform(random));
    }
  }
  return lists;
}

std::vector<size_t> Best(const Lists& lists, double budget) {  // all combinations
  std::vector<size_t> at(lists.size()), best;
  double least = INFINITY;
  while (true) {
    if (Cost(lists, at) <= budget && Error(lists, at) < least) least = Error(lists, at), best = at;
    size_t i = 0;
    while (i < at.size() && ++at[i] == lists[i].size()) at[i++] = 0;
    if (i == at.size()) return best;
  }
}

TEST(HeadBudget, NearTheBestAndNeverBeyond) {
  double found = 0, best = 0, in_order = 0;
  for (uint32_t seed = 0; seed < 60; ++seed) {
    const Lists lists = RandomLists(seed, 4, 6);
    const double budget = 4 * 3.5;
    const std::vector<size_t> chosen = Allocate(lists, budget), exact = Best(lists, budget);
    if (exact.empty()) continue;
    EXPECT_LE(Cost(lists, chosen), budget);
    EXPECT_GE(Error(lists, chosen), Error(lists, exact) * (1 - 1e-12));
    found += Error(lists, chosen), best += Error(lists, exact);
    std::vector<size_t> greedy(lists.size());  // the first heads take all they can
    for (size_t i = 0; i < lists.size(); ++i)
      for (size_t j = 0; j < lists[i].size(); ++j) {
        const bool cheapest = lists[i][j].cost < lists[i][greedy[i]].cost;
        if (i + 1 < lists.size() ? lists[i][j].error < lists[i][greedy[i]].error : cheapest) greedy[i] = j;
      }
    in_order += Error(lists, greedy);
  }
  EXPECT_LT(found, 1.3 * best);
  EXPECT_GT(in_order, 2 * best) << "the measure sees a bad order";
}

TEST(HeadBudget, ByHand) {
  const Lists lists = {{{1, 10}, {2, 4}, {3, 3}, {4, 2.9}}, {{1, 100}, {3, 20}, {2, 90}, {5, 19}}};
  // Steps: 80 for 2 (the option of cost 2 lies above the hull), 6 for 1, 1 for 1, .5 a unit, .1.
  EXPECT_EQ(Allocate(lists, 1), (std::vector<size_t>{0, 0})) << "the cheapest, beyond the budget";
  EXPECT_EQ(Allocate(lists, 3.9), (std::vector<size_t>{1, 0}))
      << "the large step does not fit, a small one does";
  EXPECT_EQ(Allocate(lists, 4), (std::vector<size_t>{0, 1}));
  EXPECT_EQ(Allocate(lists, 5), (std::vector<size_t>{1, 1}));
  EXPECT_EQ(Allocate(lists, 7.5), (std::vector<size_t>{3, 1}));
  EXPECT_EQ(Allocate(lists, 100), (std::vector<size_t>{3, 3}));
}

TEST(HeadBudget, SettlesIntoThePlan) {
  Plan plan;
  plan.layers.resize(2);
  const auto sparq = [](int head, double own, std::vector<HeadOption> options) {
    return HeadOptions{HeadOptions::What::kSparq, head, own, std::move(options)};
  };
  const std::vector<HeadOption> flat = {{10, 1, 8, 32, {}}, {20, .99, 16, 64, {}}},
                                steep = {{10, 1, 8, 32, {}}, {20, .1, 16, 64, {}}, {30, .05, 16, 128, {}}};
  const auto words = SettleHeads(
      {{sparq(0, 20, flat), sparq(1, 20, steep)}, {sparq(0, 20, flat), sparq(1, 20, steep)}}, 1, &plan);
  for (const LayerPlan& l : plan.layers) {
    EXPECT_EQ(l.sparq_r, (std::vector<int>{8, 16}));
    EXPECT_EQ(l.sparq_k, (std::vector<int>{32, 128}));
  }
  EXPECT_EQ(words, (std::vector<std::string>(2, "sparq r=8,k=32 r=16,k=128")));
  Plan half;  // of what the recipe spends: one head at its cheapest, the other one step further, and no more
  half.layers.resize(1);
  SettleHeads({{sparq(0, 20, flat), sparq(1, 40, steep)}}, .5, &half);
  EXPECT_EQ(half.layers[0].sparq_r, (std::vector<int>{8, 16}));
  EXPECT_EQ(half.layers[0].sparq_k, (std::vector<int>{32, 64}));
  Plan qaq;
  qaq.layers.resize(1);
  SettleHeads({{{HeadOptions::What::kQaqKeys, 0, 2, {{2, 1, 0, 0, {.5f, 0, 4}}}},
                {HeadOptions::What::kQaqValues, 0, 2, {{2, 1, 0, 0, {.25f, 1, 5}}}}}},
              1, &qaq);
  EXPECT_EQ(qaq.layers[0].k_qaq, (std::vector<QaqBounds>{{.5f, 0, 4}}));
  EXPECT_EQ(qaq.layers[0].v_qaq, (std::vector<QaqBounds>{{.25f, 1, 5}}));
}

}  // namespace
}  // namespace nibble
