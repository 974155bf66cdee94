// SPDX-License-Identifier: Apache-2.0
// Floor 9. The nibble program: parses the command line, runs one command, turns errors into one line and an
// exit code (docs/cli.md).
#include <cstdio>
#include <exception>
#include <iostream>
#include <new>

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

int ParseFailed(const CLI::App& app, const CLI::ParseError& error) {
  if (error.get_exit_code() == 0) {  // --help or --version
    app.exit(error, std::cout, std::cerr);
    return kExitOk;
  }
  std::string name = "nibble";
  for (const CLI::App* sub : app.get_subcommands()) name += " " + sub->get_name();
  // The parser only says that a command is missing, whatever stands in its place.
  const std::vector<std::string> rest = app.remaining();
  const bool no_command = app.get_subcommands().empty() && !rest.empty();
  const std::string what =
      no_command ? fmt::format("{}: no such {}", rest[0], rest[0].starts_with('-') ? "option" : "command")
                 : error.what();
  PrintError(fmt::format("{} (try: {} --help)", what, name));
  return kExitUsage;
}

int Finish(Result<int> outcome) {
  if (outcome.ok())
    if (Status status = FinishStdout(); !status.ok()) outcome = status;
  if (outcome.ok()) return *outcome;
  PrintError(outcome.status().message());
  return kExitFailed;
}

int Main(int argc, char** argv) {
  CLI::App app{"Nibble runs large language models on few bits."};
  app.name("nibble");
  app.require_subcommand(1);
  app.set_version_flag("--version", "nibble " NIBBLE_VERSION)->description("Print the version and exit");
  app.set_help_flag("-h,--help", "Print this help and exit");
  app.footer(kExamples);
  const Command commands[] = {AddGenerate(app),  AddQuantize(app), AddEval(app),
                              AddCalibrate(app), AddCompare(app),  AddBench(app),
                              AddTokenize(app),  AddInspect(app),  AddServe(app)};
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int code = ParseFailed(app, error);
    return code == kExitOk ? Finish(kExitOk) : code;
  }
  for (const Command& command : commands)
    if (command.parser->parsed()) return Finish(command.run());
  return kExitUsage;  // not reached: one subcommand is required
}

}  // namespace
}  // namespace nibble::cli

int main(int argc, char** argv) {
  using nibble::cli::PrintError;
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
