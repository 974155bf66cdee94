// SPDX-License-Identifier: Apache-2.0
// Settings of `nibble serve` in a YAML file: which of flag, environment and file holds, and what is refused.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/support/run_nibble.h"
#include "tests/support/temp_dir.h"

namespace nibble::test {
namespace {

class ConfigFile : public ::testing::Test {
 protected:
  // `nibble serve --config FILE --print-config` and more.
  RunResult Run(const std::string& yaml, const Args& more = {}, const std::vector<std::string>& env = {}) {
    const std::string path = WriteFile(dir_ / "serve.yaml", yaml);
    Args args{"serve", "-m", Model10m(), "--config", path, "--print-config"};
    args.insert(args.end(), more.begin(), more.end());
    return RunNibble(args, {.environment = env});
  }
  TempDir dir_;
};

// The line of a setting: what it is, and what said so.
std::pair<std::string, std::string> Line(const std::string& out, const std::string& key) {
  const size_t at = out.find("\n" + key + ": ");
  if (at == out.npos) return {};
  const std::string line = out.substr(at + 1, out.find('\n', at + 1) - at - 1);
  const size_t comment = line.find(" # ");
  std::string value = line.substr(key.size() + 2, comment - key.size() - 2);
  value.erase(value.find_last_not_of(' ') + 1);
  return {value, line.substr(comment + 3)};
}

TEST_F(ConfigFile, FlagsGoBeforeTheEnvironmentAndThatBeforeTheFile) {
  const std::string yaml =
      "# a comment\n"
      "host: 0.0.0.0\n"
      "port: 9000\n"
      "max-num-seqs: 3\n"
      "drain-seconds: 2.5\n"
      "no-log: true\n"
      "no-prefix-cache: false\n"
      "cors-origin: [\"https://a.example\", 'https://b.example']\n";
  const RunResult r = Run(yaml, {"--max-num-seqs", "5"}, {"NIBBLE_PORT=9001"});
  ASSERT_EQ(r.exit_code, 0) << r.err;
  const std::string file = dir_ / "serve.yaml";
  using Pair = std::pair<std::string, std::string>;
  EXPECT_EQ(Line(r.out, "host"), Pair("0.0.0.0", file + ":2"));
  EXPECT_EQ(Line(r.out, "port"), Pair("9001", "NIBBLE_PORT"));
  EXPECT_EQ(Line(r.out, "max-num-seqs"), Pair("5", "--max-num-seqs"));
  EXPECT_EQ(Line(r.out, "drain-seconds"), Pair("2.5", file + ":5"));
  EXPECT_EQ(Line(r.out, "no-log"), Pair("true", file + ":6"));
  EXPECT_EQ(Line(r.out, "no-prefix-cache"), Pair("false", file + ":7"));
  EXPECT_EQ(Line(r.out, "cors-origin"), Pair("[\"https://a.example\", \"https://b.example\"]", file + ":8"));
  EXPECT_EQ(Line(r.out, "recipe"), Pair("exact", "default"));
}

TEST_F(ConfigFile, WhatIsPrintedSaysTheSameAgain) {
  const RunResult first =
      Run("port: 9000\nprefix-salt: 'a b: \"c\" # d'\nrecipe: qserve\nidle-seconds: 7\n", {"--ngram", "4"});
  ASSERT_EQ(first.exit_code, 0) << first.err;
  const RunResult again = Run(first.out);
  ASSERT_EQ(again.exit_code, 0) << again.err;
  for (const char* key : {"port", "prefix-salt", "recipe", "idle-seconds", "ngram", "admission", "threads"}) {
    EXPECT_FALSE(Line(first.out, key).first.empty()) << key;
    EXPECT_EQ(Line(again.out, key).first, Line(first.out, key).first) << key;
  }
}

TEST_F(ConfigFile, TheExampleIsOne) {
  const RunResult r =
      RunNibble({"serve", "--config", NIBBLE_SOURCE_DIR "/deploy/nibble.yaml", "--print-config"});
  ASSERT_EQ(r.exit_code, 0) << r.err;
  EXPECT_EQ(Line(r.out, "recipe").first, "qserve");
}

TEST_F(ConfigFile, KeysAreNotShown) {
  const RunResult r = Run("api-key: hush-1\n", {"--api-key", "hush-2"});
  EXPECT_EQ(r.exit_code, 0) << r.err;
  EXPECT_EQ(r.out.find("hush"), std::string::npos);
  EXPECT_NE(r.out.find("# api-key: not shown"), std::string::npos);
}

TEST_F(ConfigFile, EmptyFilesSetNothing) {
  for (const char* yaml : {"", "# nothing\n", "{}\n"}) EXPECT_EQ(Run(yaml).exit_code, 0) << yaml;
}

TEST_F(ConfigFile, WhatIsWrongIsNamedByFileLineAndKey) {
  struct Bad {
    std::string yaml;
    const char* says;  // behind the name of the file
  };
  const Bad cases[] = {
      {"host: 127.0.0.1\nmax_num_seqs: 3\n", ":2: max_num_seqs: there is no such setting"},
      {"config: other.yaml\n", ":1: config: there is no such setting"},
      {"help: true\n", ":1: help: there is no such setting"},
      {"m: x\n", ":1: m: there is no such setting"},
      {"port: 1\n\nport: 1\n", ":3: port: is set in line 1 already"},
      {"max-num-seqs: 2\nparallel: 2\n", ":2: parallel: is set in line 1 already"},
      {"port: many\n", ":1: port: "},
      {"port: 70000\n", ":1: port: "},
      {"port: [1]\n", ":1: port: wanted one value, found a list"},
      {"http-threads: 0\n", ":1: http-threads: "},
      {"admission: maybe\n", ":1: admission: "},
      {"no-log: 1\n", ":1: no-log: wanted true or false, found 1"},
      {"no-log: yes\n", ":1: no-log: wanted true or false, found yes"},
      {"host:\n", ":1: host: has no value"},
      {"host: ~\n", ":1: host: has no value"},
      {"cors-origin: []\n", ":1: cors-origin: an empty list"},
      {"cors-origin: [[a]]\n", ":1: cors-origin: wanted a value"},
      {"host: {a: b}\n", ":1: host: wanted a value"},
      {"host: &a x\n", ":1: host: anchors and tags"},
      {"host: !!str x\n", ":1: host: anchors and tags"},
      {"host: &a x\nname: *a\n", ":1: host: anchors and tags"},
      {"prefix-salt: \"a\\0b\"\n", ":1: prefix-salt: holds a zero byte"},
      {"- host\n", ":1: wanted key: value"},
      {"just text\n", ":1: wanted key: value"},
      {"? [a]\n: b\n", ":1: wanted the name of a setting"},
      {"host: x\n---\nhost: y\n", ":2: a second document"},
      {"host: 'x\nport: 1\n", "not YAML"},
      {"host: x\n\tport: 1\n", ":2: not YAML"},
      {"host: \xff\n", "not YAML"},
      {std::string(2 << 20, '#'), ""},
  };
  for (const Bad& bad : cases) {
    const RunResult r = Run(bad.yaml);
    EXPECT_EQ(r.exit_code, 2) << bad.yaml.substr(0, 80);
    EXPECT_EQ(r.out, "") << bad.yaml.substr(0, 80);
    EXPECT_EQ(std::count(r.err.begin(), r.err.end(), '\n'), 1) << r.err;
    EXPECT_NE(r.err.find("serve.yaml"), std::string::npos) << r.err;
    EXPECT_NE(r.err.find(bad.says), std::string::npos) << r.err;
  }
}

TEST_F(ConfigFile, AWrongValueIsSeenUnderAFlag) {
  const RunResult r = Run("max-num-seqs: several\n", {"--max-num-seqs", "5"});
  EXPECT_EQ(r.exit_code, 2);
  EXPECT_NE(r.err.find(":1: max-num-seqs"), std::string::npos) << r.err;
}

TEST_F(ConfigFile, AFileThatIsNotThere) {
  const RunResult r = RunNibble({"serve", "-m", Model10m(), "--config", dir_ / "none.yaml"});
  EXPECT_EQ(r.exit_code, 2);
  EXPECT_NE(r.err.find("none.yaml"), std::string::npos) << r.err;
  const RunResult by_name =
      RunNibble({"serve", "-m", Model10m()}, {.environment = {"NIBBLE_CONFIG=" + (dir_ / "none.yaml")}});
  EXPECT_EQ(by_name.exit_code, 2);
}

}  // namespace
}  // namespace nibble::test
