// SPDX-License-Identifier: Apache-2.0
// What the parts of ops_bench share.
#pragma once
#include <algorithm>
#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/result.h"

namespace nibble::bench {

struct Timing {
  std::string op, shape;
  int rows = 0;
  double seconds = 0, bytes = 0, operations = 0, floor = 0;  // floor: seconds
};

template <class T>
T Must(Result<T> result) {
  NIBBLE_CHECK(result.ok(), result.status().message().c_str());
  return *std::move(result);
}

// Median seconds of f(run).
template <class F>
double Median(F&& f) {
  using Clock = std::chrono::steady_clock;
  constexpr double kSecondsACase = 0.25;
  constexpr int kMinRuns = 5, kMaxRuns = 4000;
  f(0);
  std::vector<double> seconds;
  const auto begin = Clock::now();
  for (int run = 1; run <= kMaxRuns; ++run) {
    const auto start = Clock::now();
    f(run);
    seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
    if (run >= kMinRuns && std::chrono::duration<double>(Clock::now() - begin).count() > kSecondsACase) break;
  }
  std::nth_element(seconds.begin(), seconds.begin() + ptrdiff_t(seconds.size() / 2), seconds.end());
  return seconds[seconds.size() / 2];
}

}  // namespace nibble::bench
