// SPDX-License-Identifier: Apache-2.0
#include "apps/cli/config_file.h"

#include <algorithm>
#include <cstdlib>

#include "apps/cli/common.h"
#include "base/printable.h"

namespace nibble::cli {
namespace {

constexpr size_t kComment = 40;  // column of the comments

std::string WhatIsWrong(Parser parser, const Setting& setting, const ConfigFile& config) {
  const auto option = parser.Find(setting.key);
  if (!option || !option->in_file()) return "there is no such setting";
  if (const auto before = config.lines.find(option->name()); before != config.lines.end())
    return fmt::format("is set in line {} already", before->second);
  if (setting.list && !option->is_list()) return "wanted one value, found a list";
  if (setting.values.empty()) return "an empty list; leave the key out for the default";
  const bool on = setting.values[0] == "true";
  if (!option->is_flag()) return option->Set(setting.values);
  if (!on && setting.values[0] != "false")
    return fmt::format("wanted true or false, found {}", Printable(setting.values[0].substr(0, 64)));
  return on ? option->Set({"true"}) : "";
}

// A wrong value is refused also where something else goes before it, so that a file is good or not by itself.
void Take(Parser parser, const Setting& setting, ConfigFile* config) {
  const auto option = parser.Find(setting.key);
  const bool given = option && option->given();
  const std::vector<std::string> before = given ? option->Values() : std::vector<std::string>();
  const std::string wrong = WhatIsWrong(parser, setting, *config);
  if (!wrong.empty())
    throw UsageError(fmt::format("{}:{}: {}", config->path, setting.line, Printable(setting.key)), wrong);
  config->lines[option->name()] = setting.line;
  if (given) option->Set(before);
}

void Apply(Parser parser, ConfigFile* config) {
  if (config->path.empty()) return;
  const auto settings = ReadSettings(config->path);
  if (!settings.ok()) throw UsageError("--config: " + settings.status().message());
  for (const Setting& setting : *settings) Take(parser, setting, config);
}

// What YAML reads as the same text, without quotes where it needs none.
std::string YamlScalar(const std::string& text) {
  const auto harmless = [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
           std::string_view("._/-+=").find(c) != std::string_view::npos;
  };
  const bool plain = std::all_of(text.begin(), text.end(), harmless) && text.front() != '-' &&
                     text != "null" && text != "Null" && text != "NULL";
  return plain ? text : Json(text).dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string SourceOf(Parser parser, Option option, const ConfigFile& config) {
  if (parser.OnCommandLine(option)) return "--" + option.name();
  const char* variable = std::getenv(option.environment().c_str());
  if (variable != nullptr && *variable != '\0') return option.environment();
  const auto line = config.lines.find(option.name());
  return line == config.lines.end() ? "default" : fmt::format("{}:{}", config.path, line->second);
}

}  // namespace

void AddConfigFile(Parser parser, const char* group, ConfigFile& config) {
  parser
      .Add(
          "--config", config.path,
          "YAML file of settings: the long names of these options; flags and environment go before it [none]")
      .Type("FILE")
      .Group(group)
      .Environment("NIBBLE_CONFIG")
      .NotInFile();
  parser.Flag("--print-config", config.print, "Print every setting and where it comes from, and exit")
      .Group(group)
      .NotInFile();
  parser.BeforeCheck([parser, &config] { Apply(parser, &config); });
}

std::string DescribeConfig(Parser parser, const ConfigFile& config, const std::set<std::string>& secret) {
  std::string text;
  for (const Option option : parser.Options()) {
    if (!option.in_file()) continue;
    const std::string name = option.name(), source = SourceOf(parser, option, config);
    const std::vector<std::string> values = option.Values();
    std::string line;
    if (values.empty() || values[0].empty()) {
      line = fmt::format("# {}: not set", name);
    } else if (secret.contains(name)) {
      line = fmt::format("# {}: not shown", name);
    } else if (!option.is_list()) {
      line = fmt::format("{}: {}", name, YamlScalar(values[0]));
    } else {
      for (const std::string& value : values) line += (line.empty() ? "" : ", ") + YamlScalar(value);
      line = fmt::format("{}: [{}]", name, line);
    }
    text += fmt::format("{:<{}} # {}\n", line, kComment, source);
  }
  return text;
}

}  // namespace nibble::cli
