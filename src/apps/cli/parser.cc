// SPDX-License-Identifier: Apache-2.0
#include "apps/cli/parser.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
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
Option Option::NotInFile() const { return Option(option_->configurable(false)); }

bool Option::given() const { return option_->count() > 0; }
std::string Option::name() const {
  return option_->get_lnames().empty() ? std::string() : option_->get_lnames()[0];
}
std::string Option::environment() const { return option_->get_envname(); }
bool Option::in_file() const { return option_->get_configurable() && !option_->get_lnames().empty(); }
bool Option::is_flag() const { return option_->get_items_expected_max() == 0; }
bool Option::is_list() const {
  return option_->get_items_expected_max() > 1 ||
         option_->get_multi_option_policy() == CLI::MultiOptionPolicy::TakeAll;
}

std::vector<std::string> Option::Values() const {
  if (given() || is_list()) return option_->results();
  if (is_flag()) return {"false"};
  return {option_->capture_default_str()->get_default_str()};  // of the variable
}

std::string Option::Set(const std::vector<std::string>& values) const {
  try {
    option_->clear();
    for (const std::string& value : values) option_->add_result(value);
    option_->run_callback();
    return "";
  } catch (const CLI::ParseError& error) {
    return error.what();
  }
}

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

namespace {

std::function<void()> Guarded(std::function<void()> work) {
  return [work = std::move(work)] {
    try {
      work();
    } catch (const UsageError& error) {
      throw CLI::ValidationError(error.what());
    }
  };
}

}  // namespace

void Parser::Check(std::function<void()> check) const { app_->final_callback(Guarded(std::move(check))); }
void Parser::BeforeCheck(std::function<void()> work) const {
  app_->parse_complete_callback(Guarded(std::move(work)));
}

bool Parser::chosen() const { return app_->parsed(); }
std::optional<Option> Parser::Find(const std::string& long_name) const {
  CLI::Option* option = app_->get_option_no_throw("--" + long_name);
  return option == nullptr ? std::nullopt : std::optional(Option(option));
}
std::vector<Option> Parser::Options() const {
  std::vector<Option> options;
  for (CLI::Option* option : app_->get_options()) options.emplace_back(option);
  return options;
}
bool Parser::OnCommandLine(Option option) const {
  return std::ranges::count(app_->parse_order(), option.option_) > 0;
}
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
