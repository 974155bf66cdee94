// SPDX-License-Identifier: Apache-2.0
// Tests. Perplexity in full precision against transformers (tests/golden/perplexity.json, made by
// tools/golden/perplexity.py, and golden.json beside the models).
//
// By default the first windows of one text on the embedded model. NIBBLE_TEST_FULL=1 runs the whole protocol,
// up to 40 windows of every text and model that are there (minutes); models and texts that are not in the
// repository are looked for in $NIBBLE_TEST_MODELS and in the folder texts beside that one.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "engine/evaluate.h"

namespace nibble {
namespace {

using nlohmann::json;

constexpr double kTolerance = 1e-4;  // relative, of the perplexity: the contract; measured: below 1e-6
constexpr int kWindows = 2;          // of the default run

json ReadJson(const std::string& path) {
  std::ifstream in(path);
  return json::parse(in);
}

// Path of "models/NAME" or "texts/NAME", "" when it is not there.
std::string FindInput(const std::string& kind, const std::string& name) {
  const std::string inside = std::string(NIBBLE_SOURCE_DIR) + "/" + kind + "/" + name;
  if (std::filesystem::exists(inside)) return inside;
  const char* models = std::getenv("NIBBLE_TEST_MODELS");
  if (models == nullptr) return "";
  const auto outside = std::filesystem::path(models) / ".." / kind / name;
  return std::filesystem::exists(outside) ? outside.string() : "";
}

std::string ReadText(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

std::unique_ptr<Engine> Load(const std::string& folder, int threads, const char* recipe = "exact") {
  EngineOptions options;
  options.model = folder;
  options.recipe = recipe;
  options.threads = threads;
  auto engine = Engine::Load(options);
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  return engine.ok() ? *std::move(engine) : nullptr;
}

EvaluateReport Score(Engine& engine, const std::string& text, int windows, int window = 2048) {
  EvaluateOptions options;
  options.window = window;
  options.max_windows = windows;
  const auto report = Evaluate(engine, nullptr, text, options);
  EXPECT_TRUE(report.ok()) << report.status().message();
  return report.ok() ? *report : EvaluateReport{};
}

double RelativeError(const EvaluateReport& got, double want_nll_per_token) {
  return std::abs(got.perplexity / std::exp(want_nll_per_token) - 1);
}

double MeanOfFirst(const json& golden, int windows) {
  double sum = 0;
  for (int i = 0; i < windows; ++i) sum += golden["window_nll"][size_t(i)].get<double>();
  return sum / (windows * 2047.0);
}

class Hound10m : public testing::Test {
 protected:
  const std::string folder_ = FindInput("models", "novelist-10m");
  const std::string text_ = ReadText(FindInput("texts", "Doyle_Hound_1902.txt"));
  const json golden_ =
      ReadJson(std::string(NIBBLE_SOURCE_DIR) +
               "/tests/golden/perplexity.json")["models"]["novelist-10m"]["Doyle_Hound_1902.txt"];
};

TEST_F(Hound10m, FirstWindowsMatch) {
  const auto engine = Load(folder_, 0);
  const EvaluateReport got = Score(*engine, text_, kWindows);
  EXPECT_EQ(got.tokens, kWindows * 2047);
  EXPECT_LT(RelativeError(got, MeanOfFirst(golden_, kWindows)), kTolerance);
  RecordProperty("relative_error", std::to_string(RelativeError(got, MeanOfFirst(golden_, kWindows))));
}

// The tolerance tells windows that begin two tokens early and an int4 cache from the protocol.
TEST_F(Hound10m, WrongProtocolsAreSeen) {
  EXPECT_GT(RelativeError(Score(*Load(folder_, 0), text_, 1, 2046), MeanOfFirst(golden_, 1)), kTolerance);
  EXPECT_GT(RelativeError(Score(*Load(folder_, 0, "qserve"), text_, 1), MeanOfFirst(golden_, 1)), kTolerance);
}

TEST_F(Hound10m, ThreadsChangeNoBit) {
  const EvaluateReport one = Score(*Load(folder_, 1), text_, 1), two = Score(*Load(folder_, 2), text_, 1);
  EXPECT_EQ(one.nll_per_token, two.nll_per_token);
  EXPECT_LT(RelativeError(one, MeanOfFirst(golden_, 1)), kTolerance);
}

TEST(GoldenPerplexity, WholeProtocol) {
  if (std::getenv("NIBBLE_TEST_FULL") == nullptr) GTEST_SKIP() << "set NIBBLE_TEST_FULL=1 for all windows";
  int compared = 0;
  for (const char* name : {"novelist-10m", "novelist-29m"}) {
    const std::string folder = FindInput("models", name);
    if (folder.empty()) {
      std::printf("%s is not here: set NIBBLE_TEST_MODELS\n", name);
      continue;
    }
    const auto engine = Load(folder, 0);
    const json golden = ReadJson(folder + "/golden.json");
    for (const auto& [text, want] : golden["perplexity"].items()) {
      const std::string path = FindInput("texts", text);
      if (path.empty()) {
        std::printf("%s is not here\n", text.c_str());
        continue;
      }
      const EvaluateReport got = Score(*engine, ReadText(path), 40);
      EXPECT_EQ(got.tokens, want["tokens"].get<int64_t>());
      const double error = RelativeError(got, want["nll_per_token"]);
      EXPECT_LT(error, kTolerance);
      std::printf("%s %s: %lld tokens, perplexity %.6f, relative error %.2e, %.1f s\n", name, text.c_str(),
                  static_cast<long long>(got.tokens), got.perplexity, error, got.seconds);
      ++compared;
    }
  }
  EXPECT_GT(compared, 0);
}

}  // namespace
}  // namespace nibble
