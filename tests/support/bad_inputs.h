// SPDX-License-Identifier: Apache-2.0
// Runs one bad input in a child process with limits of memory and time, and says what became of it.
#pragma once
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/result.h"

namespace nibble {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;  // these reserve terabytes of addresses and run many times slower
#else
inline constexpr bool kSanitized = false;
#endif

enum class Verdict { kRefused, kAccepted, kCrashed, kHung, kGrew };

inline const char* Name(Verdict v) {
  constexpr const char* kNames[] = {"refused", "accepted", "crashed", "hung", "grew"};
  return kNames[static_cast<int>(v)];
}

struct CaseLimits {
  int seconds = 2;                       // of processor time
  size_t file_bytes = 0;                 // of the input: its pages count as memory once they are read
  size_t growth = size_t{64} << 20;      // resident memory beyond the file
  size_t addresses = size_t{512} << 20;  // RLIMIT_AS beyond the file and what the process has already
  int slower = kSanitized ? 15 : 1;      // how much more time this build is given
};

struct Outcome {
  Verdict verdict = Verdict::kCrashed;
  std::string message;
};

namespace bad_inputs {

inline size_t StatusBytes(const char* key) {  // a "kB" line of /proc/self/status
  std::FILE* f = std::fopen("/proc/self/status", "r");
  char line[256];
  size_t kib = 0;
  while (f && std::fgets(line, sizeof line, f)) {
    if (std::strncmp(line, key, std::strlen(key)) == 0)
      kib = std::strtoull(line + std::strlen(key) + 1, nullptr, 10);
  }
  if (f) std::fclose(f);
  return kib << 10;
}

// noexcept: an exception ends the child here and does not reach the test runner that was forked with it.
[[noreturn]] inline void Child(const std::function<Status()>& action, const CaseLimits& limits,
                               int pipe) noexcept {
  const rlimit no_core = {0, 0};
  setrlimit(RLIMIT_CORE, &no_core);
  if (!kSanitized) {
    const rlim_t addresses = StatusBytes("VmSize") + limits.file_bytes + limits.addresses;
    const rlimit as = {addresses, addresses};
    setrlimit(RLIMIT_AS, &as);
  }
  // Seconds of work, so that a busy machine hangs nobody; the alarm is for those who wait instead of working.
  const rlim_t seconds = static_cast<rlim_t>(limits.seconds) * static_cast<rlim_t>(limits.slower);
  const rlimit cpu = {seconds, seconds + 1};
  setrlimit(RLIMIT_CPU, &cpu);
  alarm(static_cast<unsigned>(4 * seconds));
  const size_t before = StatusBytes("VmHWM");
  const Status status = action();
  const size_t after = StatusBytes("VmHWM"),
               allowed = (limits.growth << (kSanitized ? 2 : 0)) + limits.file_bytes;
  const bool grew = after > before + allowed;
  std::string report = grew ? "G" : status.ok() ? "A" : "R";
  report += grew ? fmt::format("{} MiB", (after - before) >> 20) : status.message();
  if (write(pipe, report.data(), report.size()) < 0) _exit(3);
  _exit(0);
}

}  // namespace bad_inputs

// `action` returns the Status of reading the input.
inline Outcome RunCase(const std::function<Status()>& action, const CaseLimits& limits = {}) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return {};
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) bad_inputs::Child(action, limits, ends[1]);
  close(ends[1]);
  std::string report;
  char buffer[4096];
  for (ssize_t n; (n = read(ends[0], buffer, sizeof buffer)) > 0;)
    report.append(buffer, static_cast<size_t>(n));
  close(ends[0]);
  int how = 0;
  waitpid(child, &how, 0);
  if (WIFSIGNALED(how) && (WTERMSIG(how) == SIGALRM || WTERMSIG(how) == SIGXCPU)) return {Verdict::kHung, ""};
  if (!WIFEXITED(how) || WEXITSTATUS(how) != 0 || report.empty()) {
    return {Verdict::kCrashed, fmt::format("wait status {:#x}", how)};
  }
  const Verdict v = report[0] == 'G'   ? Verdict::kGrew
                    : report[0] == 'A' ? Verdict::kAccepted
                                       : Verdict::kRefused;
  return {v, report.substr(1)};
}

// Counts of one family of inputs, and the checks that every case shares.
class Family {
 public:
  explicit Family(std::string name) : name_(std::move(name)) {}

  // Refused, in one line that says each of `words`.
  void Refused(const std::string& id, const std::function<Status()>& action,
               const std::vector<std::string>& words = {}, const CaseLimits& limits = {}) {
    const Outcome got = Count(id, action, limits);
    EXPECT_EQ(got.verdict, Verdict::kRefused) << id << ": " << Name(got.verdict) << " " << got.message;
    if (got.verdict != Verdict::kRefused) return;
    EXPECT_FALSE(got.message.empty()) << id;
    EXPECT_EQ(got.message.find('\n'), std::string::npos) << id << ": " << got.message;
    for (const char c : got.message) EXPECT_TRUE(c >= 0x20 && c < 0x7f) << id << ": " << got.message;
    for (const std::string& word : words) {
      EXPECT_NE(got.message.find(word), std::string::npos)
          << id << ": no \"" << word << "\" in: " << got.message;
    }
  }

  void Accepted(const std::string& id, const std::function<Status()>& action, const CaseLimits& limits = {}) {
    const Outcome got = Count(id, action, limits);
    EXPECT_EQ(got.verdict, Verdict::kAccepted) << id << ": " << Name(got.verdict) << " " << got.message;
  }

  // Either is right; anything else is not.
  Outcome Settled(const std::string& id, const std::function<Status()>& action,
                  const CaseLimits& limits = {}) {
    const Outcome got = Count(id, action, limits);
    EXPECT_TRUE(got.verdict == Verdict::kRefused || got.verdict == Verdict::kAccepted)
        << id << ": " << Name(got.verdict) << " " << got.message;
    return got;
  }

  ~Family() {
    std::printf("[ counts   ] %s:", name_.c_str());
    for (const Verdict v :
         {Verdict::kRefused, Verdict::kAccepted, Verdict::kCrashed, Verdict::kHung, Verdict::kGrew}) {
      std::printf(" %d %s", counts_[v], Name(v));
    }
    std::printf("\n");
  }
  Family(const Family&) = delete;
  Family& operator=(const Family&) = delete;

 private:
  Outcome Count(const std::string& id, const std::function<Status()>& action, const CaseLimits& limits) {
    Outcome got = RunCase(action, limits);
    ++counts_[got.verdict];
    if (std::getenv("NIBBLE_SHOW_CASES")) {
      std::printf("%-28s %-8s %s\n", id.c_str(), Name(got.verdict), got.message.c_str());
    }
    return got;
  }
  std::string name_;
  std::map<Verdict, int> counts_;
};

}  // namespace nibble
