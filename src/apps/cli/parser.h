// SPDX-License-Identifier: Apache-2.0
// Floor 9. The command line as the commands see it. CLI11 stands behind it in parser.cc alone: a source that
// includes its headers takes four seconds longer to compile.
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/result.h"

namespace CLI {  // NOLINT(readability-identifier-naming): of another library
class App;
class Option;
}  // namespace CLI

namespace nibble::cli {

// A mistake in the command line. Checks throw it; nothing above the parser sees it.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
  UsageError(const std::string& name, const std::string& message);  // "NAME: MESSAGE"
};

// An option or a positional argument. A handle: copies name the same option.
class Option {
 public:
  explicit Option(CLI::Option* option) : option_(option) {}

  Option Type(const std::string& name) const;  // stands for the value in --help
  Option Group(const std::string& name) const;
  Option Required() const;
  Option Repeats() const;                             // may be given again, with one value each time
  Option List() const;                                // values joined by commas
  Option Environment(const std::string& name) const;  // read where the command line does not say
  Option Needs(Option other) const;
  Option Excludes(Option other) const;

  template <class T>  // int, int64_t or double
  Option Range(T least, T most) const;
  Option Positive() const;
  Option NonNegative() const;
  Option OneOf(const std::vector<std::string>& values) const;
  // Gives what is wrong with a value, "" for nothing.
  Option Check(std::function<std::string(const std::string&)> check) const;

  Option NotInFile() const;  // of the command line alone (config_file.h)

  bool given() const;

  // For files of settings.
  std::string name() const;  // the first long one, "max-num-seqs"
  std::string environment() const;
  bool in_file() const;
  bool is_flag() const;
  bool is_list() const;
  std::vector<std::string> Values() const;  // what it holds, as text
  // As if the command line said so, in the place of what it said. Gives what is wrong, "" for nothing.
  std::string Set(const std::vector<std::string>& values) const;

 private:
  friend class Parser;
  CLI::Option* option_;
};

// A command's part of the command line; a handle, as Option is.
class Parser {
 public:
  explicit Parser(CLI::App* app) : app_(app) {}

  Parser Command(const std::string& name, const std::string& help) const;
  // `value` keeps what it holds when the option is not given. std::string, int, int64_t, uint16_t, uint64_t,
  // float, double, std::optional<std::string>, vectors of std::string and int.
  template <class T>
  Option Add(const std::string& names, T& value, const std::string& help) const;
  Option Flag(const std::string& names, bool& value, const std::string& help) const;
  void HelpAndVersion(const std::string& group) const;
  void Footer(const std::string& text) const;
  // Runs when the command was chosen and every option read; throws UsageError.
  void Check(std::function<void()> check) const;

  // Runs before: when the command line and the environment are read.
  void BeforeCheck(std::function<void()> work) const;

  bool chosen() const;
  std::optional<Option> Find(const std::string& long_name) const;
  std::vector<Option> Options() const;
  bool OnCommandLine(Option option) const;
  bool Given(const std::string& name) const;  // REQUIRES an option of that name

 private:
  CLI::App* app_;
};

class CommandLine {
 public:
  CommandLine(const std::string& description, const std::string& footer);
  ~CommandLine();
  Parser parser() const { return Parser(app_.get()); }
  // "" when a command is to run, else what --help or --version print. A mistake: kInvalidArgument, one line
  // that ends in the --help to try.
  Result<std::string> Parse(int argc, char** argv);

 private:
  std::unique_ptr<CLI::App> app_;
};

}  // namespace nibble::cli
