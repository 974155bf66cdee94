// SPDX-License-Identifier: Apache-2.0
#include "apps/server/log.h"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <ctime>

#include "base/utf8.h"

namespace nibble::server {
namespace {

std::atomic<bool> g_log_on{true};

}  // namespace

void EnableLog(bool on) { g_log_on = on; }

std::string Quoted(std::string_view text) {
  std::string clean, out = "\"";
  AppendLossyUtf8(text, &clean);
  for (const char c : clean) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
    } else {
      out += c;
    }
  }
  return out + '"';
}

void Log(std::string_view level, std::string_view event, std::string_view fields) {
  if (!g_log_on) return;
  const auto now = std::chrono::system_clock::now();
  const auto millis =
      std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count() % 1000;
  const std::string line =
      fmt::format("{{\"time\":\"{:%Y-%m-%dT%H:%M:%S}.{:03}Z\",\"level\":\"{}\",\"event\":\"{}\"{}{}}}\n",
                  fmt::gmtime(std::chrono::system_clock::to_time_t(now)), millis, level, event,
                  fields.empty() ? "" : ",", fields);
  // One write a line, so lines of threads do not mix. There is nobody to tell when it fails.
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace nibble::server
