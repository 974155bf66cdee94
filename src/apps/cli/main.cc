// SPDX-License-Identifier: Apache-2.0
// Floor 9. The nibble program: parses the command line, runs one command, turns errors into one line and an
// exit code (docs/cli.md).
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <new>
#include <string_view>

#include "apps/cli/common.h"

namespace nibble::cli {
namespace {

constexpr const char* kExamples =
    "Examples:\n"
    "  nibble generate -m models/novelist-10m -p \"It was a dark and stormy night\" -n 64\n"
    "  nibble quantize -m models/novelist-10m -o out/novelist-w4a8 --weights w4a8-g128\n"
    "  nibble eval     -m out/novelist-w4a8 --reference models/novelist-10m --text "
    "texts/Doyle_Hound_1902.txt\n"
    "  nibble compare  -m models/novelist-10m --text texts/Doyle_Hound_1902.txt --all -o report.html\n"
    "  nibble bench    --shape 1b --recipe qserve\n"
    "  nibble inspect  out/novelist-w4a8\n"
    "  nibble serve    -m models/novelist-10m --port 8080\n"
    "Every command has its own --help. Exit codes: 0 done, 1 error, 2 wrong usage, 130 interrupted.";

// Exactly one line, whatever file names and messages of libraries contain.
void PrintError(std::string message) {
  for (char& c : message)
    if (static_cast<unsigned char>(c) < ' ' || c == '\x7f') c = ' ';
  fmt::print(stderr, "nibble: {}\n", message);
}

// std::bad_alloc where no exception may pass: below apps, and on the threads of the server, which would go on
// with locks that nobody opens. Whoever supervises the process starts it again.
[[noreturn]] void OnTerminate() {
  constexpr std::string_view kText = "nibble: out of memory\n";
  try {
    if (std::current_exception()) throw;
  } catch (const std::bad_alloc&) {
    [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, kText.data(), kText.size());
    std::_Exit(kExitFailed);
  } catch (...) {
  }
  std::abort();
}

int Finish(Result<int> outcome) {
  if (outcome.ok())
    if (Status status = FinishStdout(); !status.ok()) outcome = status;
  if (outcome.ok()) return *outcome;
  PrintError(outcome.status().message());
  return kExitFailed;
}

int Main(int argc, char** argv) {
  CommandLine line("Nibble runs large language models on few bits.", kExamples);
  const Parser parser = line.parser();
  const Command commands[] = {AddGenerate(parser),  AddQuantize(parser), AddEval(parser),
                              AddCalibrate(parser), AddCompare(parser),  AddBench(parser),
                              AddTokenize(parser),  AddInspect(parser),  AddServe(parser)};
  const Result<std::string> parsed = line.Parse(argc, argv);
  if (!parsed.ok()) {
    PrintError(parsed.status().message());
    return kExitUsage;
  }
  if (!parsed->empty()) {  // --help or --version
    Print(*parsed);
    return Finish(kExitOk);
  }
  for (const Command& command : commands)
    if (command.parser.chosen()) return Finish(command.run());
  return kExitUsage;  // not reached: one command is required
}

}  // namespace
}  // namespace nibble::cli

int main(int argc, char** argv) {
  using nibble::cli::PrintError;
  std::set_terminate(nibble::cli::OnTerminate);
  try {
    return nibble::cli::Main(argc, argv);
  } catch (const std::bad_alloc&) {
    PrintError("out of memory");
  } catch (const std::exception& error) {
    PrintError(error.what());
  } catch (...) {
    PrintError("unknown exception");
  }
  return nibble::cli::kExitFailed;
}
