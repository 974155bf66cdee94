// SPDX-License-Identifier: Apache-2.0
// Floor 9. A command's settings in a YAML file: the long names of its options and their values. Flags go
// before the environment, which goes before the file. docs/serving.md.
#pragma once
#include <map>
#include <set>
#include <string>
#include <vector>

#include "apps/cli/parser.h"
#include "base/result.h"

namespace nibble::cli {

struct Setting {
  std::string key;
  std::vector<std::string> values;  // the texts that the option would get
  bool list = false;                // written as one
  int line = 0;
};
// In the order of the file. Errors name it, the line and the key.
Result<std::vector<Setting>> ReadSettings(const std::string& path);

struct ConfigFile {
  std::string path{};
  bool print = false;
  std::map<std::string, int> lines{};  // of the options that the file sets
};
// Adds --config and --print-config.
void AddConfigFile(Parser parser, const char* group, ConfigFile& config);

// Every option and where its value comes from, as a file that says the same; without what `secret` names.
std::string DescribeConfig(Parser parser, const ConfigFile& config, const std::set<std::string>& secret);

}  // namespace nibble::cli
