// SPDX-License-Identifier: Apache-2.0
// Floor 9. One line of progress with the time left, on a terminal only.
#pragma once
#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace nibble::cli {

// The line for `done` of `total`: "eval  [#####.....]  50%  0:12 left", at most `width` columns.
std::string FormatProgress(std::string_view label, int64_t done, int64_t total, double seconds, int width);

// Draws to standard error when that is a terminal that can (TERM is not dumb) and the user did not ask for
// quiet; otherwise does nothing. NO_COLOR leaves the bar but not its color. The line is wiped at the end.
class Progress {
 public:
  Progress(std::string label, bool quiet);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  void Update(int64_t done, int64_t total);
  void Wipe();

 private:
  using Clock = std::chrono::steady_clock;
  std::string label_;
  bool enabled_, color_, drawn_ = false;
  Clock::time_point start_, last_;
};

}  // namespace nibble::cli
