// SPDX-License-Identifier: Apache-2.0
// Floor 9. One line of progress with the time left.
#include "apps/cli/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

namespace nibble::cli {
namespace {

constexpr std::chrono::milliseconds kRedraw{100};  // often enough to look alive, rare enough to cost nothing

bool TerminalCanDraw() {
  const char* term = std::getenv("TERM");
  return isatty(STDERR_FILENO) == 1 && term != nullptr && std::string_view(term) != "dumb";
}

bool ColorWanted() {  // https://no-color.org: any non-empty value turns color off
  const char* value = std::getenv("NO_COLOR");
  return value == nullptr || *value == '\0';
}

int Columns() {
  winsize size{};
  return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? int(size.ws_col) : 80;
}

}  // namespace

std::string FormatProgress(std::string_view label, int64_t done, int64_t total, double seconds, int width) {
  const double share = total > 0 ? std::clamp(double(done) / double(total), 0.0, 1.0) : 0.0;
  std::string time = "--:-- left";
  if (share > 0) {
    const int64_t left = std::llround(seconds * (1 - share) / share);
    time = left >= 3600 ? fmt::format("{}:{:02}:{:02} left", left / 3600, left / 60 % 60, left % 60)
                        : fmt::format("{}:{:02} left", left / 60, left % 60);
  }
  const std::string tail = fmt::format(" {:3}%  {}", int(share * 100), time);
  const int bar = std::min(40, width - int(label.size()) - int(tail.size()) - 3);
  if (bar < 4) return fmt::format("{}{}", label, tail).substr(0, size_t(std::max(width, 0)));
  const auto full = size_t(share * bar);
  return fmt::format("{} [{}{}]{}", label, std::string(full, '#'), std::string(size_t(bar) - full, '.'),
                     tail);
}

Progress::Progress(std::string label, bool quiet)
    : label_(std::move(label)),
      enabled_(!quiet && TerminalCanDraw()),
      color_(ColorWanted()),
      start_(Clock::now()) {}

Progress::~Progress() { Wipe(); }

void Progress::Update(int64_t done, int64_t total) {
  const auto now = Clock::now();
  if (!enabled_ || (drawn_ && done < total && now - last_ < kRedraw)) return;
  last_ = now;
  drawn_ = true;
  const double seconds = std::chrono::duration<double>(now - start_).count();
  // One column stays free: a full line would wrap on some terminals.
  const std::string line = FormatProgress(label_, done, total, seconds, Columns() - 1);
  fmt::print(stderr, "\r{}{}{}\x1b[K", color_ ? "\x1b[36m" : "", line, color_ ? "\x1b[0m" : "");
  std::fflush(stderr);
}

void Progress::Wipe() {
  if (!drawn_) return;
  drawn_ = false;
  fmt::print(stderr, "\r\x1b[K");
  std::fflush(stderr);
}

}  // namespace nibble::cli
