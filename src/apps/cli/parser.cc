// SPDX-License-Identifier: Apache-2.0
#include "apps/cli/parser.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <sstream>

namespace nibble::cli {

UsageError::UsageError(const std::string& name, const std::string& message)
    : std::runtime_error(name + ": " + message) {}

Option Option::Type(const std::string& name) const { return Option(option_->type_name(name)); }
Option Option::Group(const std::string& name) const { return Option(option_->group(name)); }
Option Option::Required() const { return Option(option_->required()); }
Option Option::Repeats() const { return Option(option_->expected(1)->take_all()->allow_extra_args(false)); }
Option Option::List() const { return Option(option_->delimiter(',')); }
Option Option::Environment(const std::string& name) const { return Option(option_->envname(name)); }
Option Option::Needs(Option other) const { return Option(option_->needs(other.option_)); }
Option Option::Excludes(Option other) const { return Option(option_->excludes(other.option_)); }

// The description of a check would stand in --help, where the text of the option says it already.
template <class T>
Option Option::Range(T least, T most) const {
  return Option(option_->check(CLI::Range(least, most).description("")));
}
template Option Option::Range(int, int) const;
template Option Option::Range(int64_t, int64_t) const;
template Option Option::Range(double, double) const;

Option Option::Positive() const { return Option(option_->check(CLI::PositiveNumber.description(""))); }
Option Option::NonNegative() const { return Option(option_->check(CLI::NonNegativeNumber.description(""))); }
Option Option::OneOf(const std::vector<std::string>& values) const {
  return Option(option_->check(CLI::IsMember(values).description("")));
}
Option Option::Check(std::function<std::string(const std::string&)> check) const {
  return Option(option_->check(std::move(check)));
}
bool Option::given() const { return option_->count() > 0; }

Parser Parser::Command(const std::string& name, const std::string& help) const {
  return Parser(app_->add_subcommand(name, help));
}

template <class T>
Option Parser::Add(const std::string& names, T& value, const std::string& help) const {
  return Option(app_->add_option(names, value, help));
}
template Option Parser::Add(const std::string&, std::string&, const std::string&) const;
template Option Parser::Add(const std::string&, int&, const std::string&) const;
template Option Parser::Add(const std::string&, int64_t&, const std::string&) const;
template Option Parser::Add(const std::string&, uint16_t&, const std::string&) const;
template Option Parser::Add(const std::string&, uint64_t&, const std::string&) const;
template Option Parser::Add(const std::string&, float&, const std::string&) const;
template Option Parser::Add(const std::string&, double&, const std::string&) const;
template Option Parser::Add(const std::string&, std::optional<std::string>&, const std::string&) const;
template Option Parser::Add(const std::string&, std::vector<std::string>&, const std::string&) const;
template Option Parser::Add(const std::string&, std::vector<int>&, const std::string&) const;

Option Parser::Flag(const std::string& names, bool& value, const std::string& help) const {
  return Option(app_->add_flag(names, value, help));
}

void Parser::HelpAndVersion(const std::string& group) const {
  app_->set_version_flag("--version", "nibble " NIBBLE_VERSION)
      ->description("Print the version and exit")
      ->group(group);
  app_->set_help_flag("-h,--help", "Print this help and exit")->group(group);
}

void Parser::Footer(const std::string& text) const { app_->footer(text); }

void Parser::Check(std::function<void()> check) const {
  app_->callback([check = std::move(check)] {
    try {
      check();
    } catch (const UsageError& error) {
      throw CLI::ValidationError(error.what());
    }
  });
}

bool Parser::chosen() const { return app_->parsed(); }
bool Parser::Given(const std::string& name) const { return app_->get_option(name)->count() > 0; }

CommandLine::CommandLine(const std::string& description, const std::string& footer)
    : app_(std::make_unique<CLI::App>(description, "nibble")) {
  app_->require_subcommand(1);
  app_->footer(footer);
  app_->set_version_flag("--version", "nibble " NIBBLE_VERSION)->description("Print the version and exit");
  app_->set_help_flag("-h,--help", "Print this help and exit");
}
CommandLine::~CommandLine() = default;

Result<std::string> CommandLine::Parse(int argc, char** argv) {
  try {
    app_->parse(argc, argv);
    return std::string();
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) {  // --help or --version
      std::ostringstream text;
      app_->exit(error, text, text);
      return text.str();
    }
    std::string name = "nibble";
    for (const CLI::App* sub : app_->get_subcommands()) name += " " + sub->get_name();
    // CLI11 only says that a command is missing, whatever stands in its place.
    const std::vector<std::string> rest = app_->remaining();
    const bool no_command = app_->get_subcommands().empty() && !rest.empty();
    const std::string what =
        no_command ? fmt::format("{}: no such {}", rest[0], rest[0].starts_with('-') ? "option" : "command")
                   : error.what();
    return Error(Code::kInvalidArgument, "{} (try: {} --help)", what, name);
  }
}

}  // namespace nibble::cli
