// SPDX-License-Identifier: Apache-2.0
// Tests: runs the command line program of this build as a child process.
#pragma once
#include <sys/types.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace nibble::test {

using Args = std::vector<std::string>;

struct RunResult {
  int exit_code = -1;  // 128 + signal when one ended it
  std::string out, err;
};

// Where the child's streams go, and what it finds in its environment besides ours.
struct RunOptions {
  std::string stdin_path = "/dev/null";
  std::string stdout_path;               // "": captured
  std::vector<std::string> environment;  // "NAME=value"
};

RunResult RunNibble(const Args& args, const RunOptions& options = {});

// A child under way whose standard output arrives in pieces.
class Child {
 public:
  explicit Child(const Args& args);
  ~Child();
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  std::string ReadSome();  // blocks until there are bytes; "" at the end of the output
  void Signal(int signal);
  RunResult Wait();  // the rest of the output

 private:
  pid_t pid_ = -1;
  int out_ = -1, err_ = -1;
};

// Runs with standard error on a terminal of 80 columns; err is what the terminal saw.
RunResult RunOnTerminal(const Args& args, const std::vector<std::string>& environment);

std::string Model10m();  // the embedded model
std::string Hound();     // a text that the models were not trained on
nlohmann::json GoldenJson(const std::string& model);

// Writes a file; returns its path.
std::string WriteFile(const std::string& path, const std::string& bytes);

}  // namespace nibble::test
