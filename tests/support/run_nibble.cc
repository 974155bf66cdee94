// SPDX-License-Identifier: Apache-2.0
#include "tests/support/run_nibble.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <fstream>

namespace nibble::test {
namespace {

constexpr unsigned kTimeLimitSeconds = 300;  // a child that hangs is killed by its own alarm

struct Pipe {
  int read = -1, write = -1;
  Pipe() {
    std::array<int, 2> fds{};
    EXPECT_EQ(pipe2(fds.data(), O_CLOEXEC), 0);
    read = fds[0];
    write = fds[1];
  }
};

pid_t Spawn(const Args& args, int in, int out, int err, const std::vector<std::string>& environment) {
  const char* program = NIBBLE_BINARY_DIR "/nibble";
  std::vector<char*> argv{const_cast<char*>(program)};
  for (const std::string& a : args) argv.push_back(const_cast<char*>(a.c_str()));
  argv.push_back(nullptr);
  const pid_t pid = fork();
  if (pid != 0) return pid;
  dup2(in, STDIN_FILENO);
  dup2(out, STDOUT_FILENO);
  dup2(err, STDERR_FILENO);
  for (const std::string& e : environment) putenv(const_cast<char*>(e.c_str()));
  alarm(kTimeLimitSeconds);
  execv(program, argv.data());
  _exit(127);
}

int ExitCode(pid_t pid) {
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

// Reads both until both end. A terminal's end shows as EIO.
void ReadBoth(int out_fd, int err_fd, std::string* out, std::string* err) {
  std::array<pollfd, 2> fds{{{out_fd, POLLIN, 0}, {err_fd, POLLIN, 0}}};
  std::array<std::string*, 2> texts{out, err};
  while (fds[0].fd >= 0 || fds[1].fd >= 0) {
    if (poll(fds.data(), fds.size(), -1) < 0 && errno != EINTR) return;
    for (size_t i = 0; i < fds.size(); ++i) {
      if (fds[i].fd < 0 || (fds[i].revents & (POLLIN | POLLHUP | POLLERR)) == 0) continue;
      std::array<char, 4096> chunk{};
      const ssize_t n = read(fds[i].fd, chunk.data(), chunk.size());
      if (n > 0)
        texts[i]->append(chunk.data(), size_t(n));
      else
        fds[i].fd = -1;
    }
  }
}

}  // namespace

RunResult RunNibble(const Args& args, const RunOptions& options) {
  Pipe out, err;
  const int in = open(options.stdin_path.c_str(), O_RDONLY | O_CLOEXEC);
  const int file = options.stdout_path.empty() ? -1 : open(options.stdout_path.c_str(), O_WRONLY | O_CLOEXEC);
  const pid_t pid = Spawn(args, in, file >= 0 ? file : out.write, err.write, options.environment);
  for (int fd : {in, file, out.write, err.write})
    if (fd >= 0) close(fd);
  RunResult result;
  ReadBoth(out.read, err.read, &result.out, &result.err);
  close(out.read);
  close(err.read);
  result.exit_code = ExitCode(pid);
  return result;
}

Child::Child(const Args& args) {
  Pipe out, err;
  const int in = open("/dev/null", O_RDONLY | O_CLOEXEC);
  pid_ = Spawn(args, in, out.write, err.write, {});
  for (int fd : {in, out.write, err.write}) close(fd);
  out_ = out.read;
  err_ = err.read;
}

Child::~Child() {
  if (pid_ > 0) {
    kill(pid_, SIGKILL);
    ExitCode(pid_);
  }
  close(out_);
  close(err_);
}

std::string Child::ReadSome() {
  std::array<char, 4096> chunk{};
  const ssize_t n = read(out_, chunk.data(), chunk.size());
  return n > 0 ? std::string(chunk.data(), size_t(n)) : std::string();
}

void Child::Signal(int signal) { kill(pid_, signal); }

RunResult Child::Wait() {
  RunResult result;
  ReadBoth(out_, err_, &result.out, &result.err);
  result.exit_code = ExitCode(pid_);
  pid_ = -1;
  return result;
}

RunResult RunOnTerminal(const Args& args, const std::vector<std::string>& environment) {
  RunResult result;
  const int terminal = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
  if (terminal < 0 || grantpt(terminal) != 0 || unlockpt(terminal) != 0) {
    ADD_FAILURE() << "this system gives no pseudo terminal";
    return result;
  }
  const int side = open(ptsname(terminal), O_RDWR | O_NOCTTY | O_CLOEXEC);
  const winsize size{24, 80, 0, 0};
  EXPECT_EQ(ioctl(side, TIOCSWINSZ, &size), 0);
  Pipe out;
  const int in = open("/dev/null", O_RDONLY | O_CLOEXEC);
  const pid_t pid = Spawn(args, in, out.write, side, environment);
  for (int fd : {in, side, out.write}) close(fd);
  ReadBoth(out.read, terminal, &result.out, &result.err);
  close(out.read);
  close(terminal);
  result.exit_code = ExitCode(pid);
  return result;
}

std::string Model10m() { return NIBBLE_SOURCE_DIR "/models/novelist-10m"; }
std::string Hound() { return NIBBLE_SOURCE_DIR "/texts/Doyle_Hound_1902.txt"; }

nlohmann::json GoldenJson(const std::string& model) {
  std::ifstream in(model + "/golden.json");
  return nlohmann::json::parse(in);
}

std::string WriteFile(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
  return path;
}

}  // namespace nibble::test
