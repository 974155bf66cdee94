// SPDX-License-Identifier: Apache-2.0
#include "engine/head_budget.h"

#include <algorithm>

namespace nibble {
namespace {

// Indices of the options on the lower convex hull, from the cheapest to that of least error.
std::vector<size_t> Hull(const std::vector<HeadOption>& options) {
  std::vector<size_t> order(options.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return options[a].cost != options[b].cost ? options[a].cost < options[b].cost
                                              : options[a].error < options[b].error;
  });
  const auto slope = [&](size_t a, size_t b) {  // error saved for a unit of cost
    return (options[a].error - options[b].error) / (options[b].cost - options[a].cost);
  };
  std::vector<size_t> hull;
  for (const size_t i : order) {
    if (!hull.empty() && options[i].error >= options[hull.back()].error) continue;
    while (hull.size() > 1 && slope(hull.back(), i) >= slope(hull[hull.size() - 2], hull.back()))
      hull.pop_back();
    hull.push_back(i);
  }
  return hull;
}

}  // namespace

std::vector<size_t> Allocate(const std::vector<std::vector<HeadOption>>& lists, double budget) {
  std::vector<std::vector<size_t>> hulls;
  std::vector<size_t> at(lists.size());  // place on its hull
  double spent = 0;
  for (const std::vector<HeadOption>& options : lists) {
    hulls.push_back(Hull(options));
    spent += options[hulls.back()[0]].cost;
  }
  std::vector<bool> done(lists.size());
  while (true) {
    size_t best = lists.size();
    double best_slope = 0, best_cost = 0;
    for (size_t i = 0; i < lists.size(); ++i) {
      if (done[i] || at[i] + 1 >= hulls[i].size()) continue;
      const HeadOption &from = lists[i][hulls[i][at[i]]], &to = lists[i][hulls[i][at[i] + 1]];
      const double cost = to.cost - from.cost, slope = (from.error - to.error) / cost;
      if (slope > best_slope) best = i, best_slope = slope, best_cost = cost;
    }
    if (best == lists.size()) break;
    if (spent + best_cost > budget) {
      done[best] = true;  // cheaper steps of others may still fit
      continue;
    }
    spent += best_cost;
    ++at[best];
  }
  std::vector<size_t> chosen;
  for (size_t i = 0; i < lists.size(); ++i) chosen.push_back(hulls[i][at[i]]);
  return chosen;
}

std::vector<std::string> SettleHeads(const std::vector<std::vector<HeadOptions>>& layers, double share,
                                     Plan* plan) {
  std::vector<std::vector<HeadOption>> lists;
  double budget = 0;
  for (const auto& layer : layers)
    for (const HeadOptions& head : layer) lists.push_back(head.options), budget += head.own_cost;
  const std::vector<size_t> chosen = Allocate(lists, share * budget);
  std::vector<std::string> words;
  size_t next = 0;
  for (size_t l = 0; l < layers.size(); ++l) {
    LayerPlan& to = plan->layers[l];
    std::string& word = words.emplace_back();
    for (const HeadOptions& head : layers[l]) {
      const HeadOption& option = head.options[chosen[next++]];
      if (head.what == HeadOptions::What::kSparq) {
        to.sparq_r.push_back(option.r), to.sparq_k.push_back(option.k);
        word += fmt::format("{}r={},k={}", word.empty() ? "sparq " : " ", option.r, option.k);
        continue;
      }
      const bool keys = head.what == HeadOptions::What::kQaqKeys;
      (keys ? to.k_qaq : to.v_qaq).push_back(option.bounds);
      word += fmt::format("{}{} {:.2g}<={}", word.empty() ? "qaq " : " ", keys ? 'k' : 'v',
                          option.bounds.sigma, option.bounds.max);
    }
  }
  return words;
}

}  // namespace nibble
