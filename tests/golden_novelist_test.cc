// SPDX-License-Identifier: Apache-2.0
// Tests. The trained novelist models through the engine against golden.json: logits, greedy text, every
// thread count.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/engine.h"

namespace nibble {
namespace {

using nlohmann::json;

constexpr double kLogitTolerance = 1e-3;
constexpr int kNewTokens = 64;
constexpr int kTop = 64;  // of the logits asked for, so that the 16 compared ones are found in any order

// "" when the model is not there, after saying so.
std::string ModelDir(const std::string& name) {
  const std::string embedded = std::string(NIBBLE_SOURCE_DIR) + "/models/" + name;
  if (std::filesystem::exists(embedded)) return embedded;
  const char* models = std::getenv("NIBBLE_TEST_MODELS");
  if (models == nullptr) return "";
  const std::string dir = std::string(models) + "/" + name;
  return std::filesystem::exists(dir) ? dir : "";
}

json ReadGolden(const std::string& dir) {
  std::ifstream file(dir + "/golden.json");
  return json::parse(file);
}

std::unique_ptr<Engine> LoadEngine(const std::string& dir, int threads, DType dtype = DType::kF32) {
  EngineOptions options;
  options.model = dir;
  options.threads = threads;
  options.dtype = dtype;
  auto engine = Engine::Load(options);
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  return engine.ok() ? *std::move(engine) : nullptr;
}

// All prompts of golden.json in one batch.
std::vector<Completion> Generate(Engine& engine, const json& golden) {
  std::vector<Request> requests;
  for (const json& entry : golden["generation"]) {
    Request request;
    request.prompt = entry["ids"].get<std::vector<int32_t>>();
    request.max_tokens = kNewTokens;
    request.ignore_eos = true;
    request.logits_top = kTop;
    requests.push_back(std::move(request));
  }
  auto completions = engine.Generate(requests);
  EXPECT_TRUE(completions.ok()) << completions.status().message();
  return completions.ok() ? *std::move(completions) : std::vector<Completion>{};
}

// Largest difference of the 16 best logits, compared by rank and by token.
double TopDifference(const json& entry, const Completion& completion) {
  const auto& got = completion.last_prompt_logits;
  double worst = 0;
  for (size_t rank = 0; rank < entry["last_logits_top16"].size(); ++rank) {
    const int32_t id = entry["last_logits_top16"][rank][0];
    const double wanted = entry["last_logits_top16"][rank][1];
    const auto at = std::find_if(got.begin(), got.end(), [&](const auto& pair) { return pair.first == id; });
    if (at == got.end() || rank >= got.size()) return INFINITY;
    worst =
        std::max({worst, std::abs(double{at->second} - wanted), std::abs(double{got[rank].second} - wanted)});
  }
  return worst;
}

class GoldenNovelist : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    dir_ = ModelDir(GetParam());
    if (dir_.empty())
      GTEST_SKIP() << GetParam() << " is neither in models/ nor in the folder that NIBBLE_TEST_MODELS names";
    golden_ = ReadGolden(dir_);
    ASSERT_EQ(golden_["generation"].size(), 4u);
  }
  std::string dir_;
  json golden_;
};

TEST_P(GoldenNovelist, LogitsAndGreedyTokensEqualTransformers) {
  for (const int threads : {1, 2}) {
    const auto engine = LoadEngine(dir_, threads);
    ASSERT_TRUE(engine);
    const std::vector<Completion> completions = Generate(*engine, golden_);
    ASSERT_EQ(completions.size(), golden_["generation"].size());
    for (size_t i = 0; i < completions.size(); ++i) {
      const json& entry = golden_["generation"][i];
      SCOPED_TRACE(entry["prompt"].get<std::string>() + ", " + std::to_string(threads) + " threads");
      EXPECT_LE(TopDifference(entry, completions[i]), kLogitTolerance);
      EXPECT_EQ(completions[i].token_ids, entry["greedy64"].get<std::vector<int32_t>>());
      EXPECT_EQ(completions[i].text, entry["greedy64_text"]);
      EXPECT_EQ(completions[i].finish, FinishReason::kLength);
    }
  }
}

// Mean and norm of the logits of every prompt position.
TEST_P(GoldenNovelist, LogitsOfAllPositionsHaveTheirMeanAndNorm) {
  const auto engine = LoadEngine(dir_, 2);
  ASSERT_TRUE(engine);
  for (const json& entry : golden_["generation"]) {
    SCOPED_TRACE(entry["prompt"].get<std::string>());
    double sum = 0, squares = 0;
    int64_t count = 0;
    const Status status =
        engine->Score(entry["ids"].get<std::vector<int32_t>>(), [&](int64_t, Tensor logits) {
          for (int64_t row = 0; row < logits.dim[0]; ++row) {
            for (int64_t i = 0; i < logits.dim[1]; ++i, ++count) {
              const double logit = logits.as<float>()[row * logits.stride[0] + i];
              sum += logit;
              squares += logit * logit;
            }
          }
          return Status{};
        });
    ASSERT_TRUE(status.ok()) << status.message();
    const double mean = entry["logits_mean"], norm = entry["logits_l2"];
    EXPECT_NEAR(sum / static_cast<double>(count), mean, kLogitTolerance);
    EXPECT_NEAR(std::sqrt(squares), norm, 1e-5 * norm);
  }
}

// Another arithmetic must not pass as float32: the tolerance above is tight enough to see it.
TEST_P(GoldenNovelist, Bf16IsSeen) {
  const auto engine = LoadEngine(dir_, 2, DType::kBF16);
  ASSERT_TRUE(engine);
  const std::vector<Completion> completions = Generate(*engine, golden_);
  ASSERT_EQ(completions.size(), golden_["generation"].size());
  for (size_t i = 0; i < completions.size(); ++i) {
    const double difference = TopDifference(golden_["generation"][i], completions[i]);
    EXPECT_GT(difference, kLogitTolerance);
    EXPECT_LT(difference, 1.0);  // the best logits are about 10
  }
}

INSTANTIATE_TEST_SUITE_P(Models, GoldenNovelist, testing::Values("novelist-10m", "novelist-29m"),
                         [](const auto& suite) { return suite.param.substr(suite.param.find('-') + 1); });

}  // namespace
}  // namespace nibble
