// SPDX-License-Identifier: Apache-2.0
// Whole models on the GPU: the tiny models of every architecture and the trained one against transformers,
// recipes against the CPU's figures. Skips without a GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "engine/evaluate.h"
#include "tests/support/cuda.h"
#include "tests/support/tiny_model.h"

namespace nibble {
namespace {

using nlohmann::json;
using Ids = std::vector<int32_t>;

class CudaModel : public test::OnGpu {};

// Logits of all prompt rows, the prompt cut into chunks.
std::vector<float> Logits(Backend& backend, Model& model, const AttentionRecipe& recipe, const Ids& tokens,
                          size_t chunk) {
  const ModelConfig& c = model.config();
  const auto cache = *KvCache::Make(backend, {.shape = {c.layers, c.kv_heads, c.head_dim},
                                              .heads = c.heads,
                                              .recipe = recipe,
                                              .max_seqs = 1,
                                              .max_step_tokens = 512,
                                              .max_tokens = 512});
  const SeqId seq = *cache->Open();
  std::vector<float> all;
  for (size_t begin = 0; begin < tokens.size(); begin += chunk) {
    const size_t count = std::min(chunk, tokens.size() - begin);
    const int32_t counts[] = {int32_t(count)};
    EXPECT_TRUE(cache->BeginStep({&seq, 1}, counts).ok());
    Ids wanted(count);
    std::iota(wanted.begin(), wanted.end(), 0);
    const Tensor logits = model.Forward({{tokens.data() + begin, count}, wanted}, *cache);
    std::vector<float> rows(count * size_t(c.vocab));
    backend.Download(static_cast<const std::byte*>(logits.data), rows.data(), rows.size() * sizeof(float));
    backend.Sync();
    all.insert(all.end(), rows.begin(), rows.end());
  }
  return all;
}

double WorstDifference(const json& golden, const std::vector<float>& logits) {
  double worst = 0;
  for (size_t i = 0; i < golden["positions"].size(); ++i) {
    const std::vector<float> wanted = golden["logits"][i];
    const size_t first = golden["positions"][i].get<size_t>() * wanted.size();
    for (size_t j = 0; j < wanted.size(); ++j) {
      const double difference = std::fabs(double(logits.at(first + j)) - double(wanted[j]));
      worst = std::isnan(difference) ? INFINITY : std::max(worst, difference);
    }
  }
  return worst;
}

TEST_F(CudaModel, TinyModelsEqualTransformers) {
  constexpr double kTolerance = 1e-4;  // float32 here against float32 there
  for (const std::string& name : test::TinyModelNames()) {
    SCOPED_TRACE(name);
    const json golden = test::ReadTinyGolden(name);
    const Ids prompt = golden["prompt"];
    for (const bool broken : {false, true}) {
      const test::TempDir dir;
      test::WriteTinyModel(golden, broken ? golden["broken"] : json::object(), dir.path());
      const auto model = Model::Load(dir.path(), *gpu_, {DType::kF32, 512, 512});
      ASSERT_TRUE(model.ok()) << model.status().message();
      const auto exact = *ParseRecipe("exact", DType::kF32);
      const auto whole = Logits(*gpu_, **model, exact, prompt, prompt.size());
      if (broken) {
        EXPECT_GT(WorstDifference(golden, whole), 4 * kTolerance) << "another config is seen";
        continue;
      }
      EXPECT_LE(WorstDifference(golden, whole), kTolerance);
      EXPECT_EQ(Logits(*gpu_, **model, exact, prompt, 7), whole) << "chunks of 7";
      EXPECT_EQ(Logits(*gpu_, **model, exact, prompt, 1), whole) << "token by token";
    }
  }
}

std::string NovelistDir() { return std::string(NIBBLE_SOURCE_DIR) + "/models/novelist-10m"; }

std::unique_ptr<Engine> LoadNovelist(DeviceChoice device, const std::string& recipe,
                                     DType dtype = DType::kF32) {
  EngineOptions options;
  options.dtype = dtype;
  options.score_as_prompt = dtype == DType::kBF16;  // which has kernels of its own there
  options.model = NovelistDir();
  options.recipe = recipe;
  options.device = device;
  options.max_seqs = 4;
  auto engine = Engine::Load(options);
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  return engine.ok() ? *std::move(engine) : nullptr;
}

TEST_F(CudaModel, NovelistLogitsAndGreedyTokensEqualTransformers) {
  const json golden = json::parse(std::ifstream(NovelistDir() + "/golden.json"));
  const auto engine = LoadNovelist(DeviceChoice::kCuda, "exact");
  ASSERT_TRUE(engine);
  std::vector<Request> requests;
  for (const json& entry : golden["generation"])
    requests.push_back(
        {.prompt = entry["ids"].get<Ids>(), .max_tokens = 64, .ignore_eos = true, .logits_top = 16});
  const auto completions = engine->Generate(requests);
  ASSERT_TRUE(completions.ok()) << completions.status().message();
  for (size_t i = 0; i < requests.size(); ++i) {
    const json& entry = golden["generation"][i];
    EXPECT_EQ((*completions)[i].token_ids, entry["greedy64"].get<Ids>());
    for (size_t rank = 0; rank < 16; ++rank)
      EXPECT_NEAR((*completions)[i].last_prompt_logits[rank].second,
                  entry["last_logits_top16"][rank][1].get<double>(), 1e-3);
  }
}

TEST_F(CudaModel, DrawnTextsEqualThoseOfTheCpu) {
  const json golden = json::parse(std::ifstream(NovelistDir() + "/golden.json"));
  std::vector<Request> requests;
  uint64_t seed = 0;
  for (const json& entry : golden["generation"])
    for (const SamplingParams& sampling :
         {SamplingParams{.temperature = 0.8f}, SamplingParams{.temperature = 1, .top_k = 40, .top_p = 0.9f},
          SamplingParams{.temperature = 0.9f,
          .min_p = 0.02f,
          .repetition_penalty = 1.2f,
          .frequency_penalty = 0.1f,
          .presence_penalty = 0.1f}}) {
      requests.push_back(
          {.prompt = entry["ids"].get<Ids>(), .sampling = sampling, .max_tokens = 48, .ignore_eos = true});
      requests.back().sampling.seed = ++seed;
    }
  std::vector<std::vector<int32_t>> texts[2];
  for (const bool on_gpu : {false, true}) {
    const auto engine = LoadNovelist(on_gpu ? DeviceChoice::kCuda : DeviceChoice::kCpu, "exact");
    ASSERT_TRUE(engine);
    const auto completions = engine->Generate(requests);
    ASSERT_TRUE(completions.ok()) << completions.status().message();
    for (const Completion& c : *completions) texts[on_gpu ? 1 : 0].push_back(c.token_ids);
  }
  EXPECT_EQ(texts[1], texts[0]);
  EXPECT_NE(texts[0][0], texts[0][1]) << "another seed and filter is another text";
}

TEST_F(CudaModel, RecipesDivergeAsOnTheCpu) {
  std::ifstream file(std::string(NIBBLE_SOURCE_DIR) + "/texts/Doyle_Hound_1902.txt");
  const std::string text(std::istreambuf_iterator<char>(file), {});
  const auto kld = [&](DeviceChoice device, const std::string& recipe, DType dtype) {
    const auto model = LoadNovelist(device, recipe, dtype), exact = LoadNovelist(device, "exact");
    // Rounding to bf16 moves the divergence of two windows by several percent: those rows see more of them.
    const int windows = dtype == DType::kBF16 ? 10 : 2;
    const auto report = Evaluate(*model, exact.get(), std::string_view(text).substr(0, windows * 6000),
                                 {.window = 1024, .max_windows = windows});
    EXPECT_TRUE(report.ok()) << report.status().message();
    return report->reference->kld.mean;
  };
  for (const std::string recipe :
       {"kv8", "qserve", "flashq2", "kivi2", "qaq", "sage2-8b", "sage2-4b", "turbo", "sas"}) {
    const double cpu = kld(DeviceChoice::kCpu, recipe, DType::kF32),
                 gpu = kld(DeviceChoice::kCuda, recipe, DType::kF32);
    EXPECT_NEAR(gpu, cpu, std::max(0.0005, 0.05 * cpu)) << recipe;
    fmt::print("{}: KL divergence {:.6f} on the CPU, {:.6f} on the GPU\n", recipe, cpu, gpu);
  }
  for (const std::string recipe : {"exact", "kv8", "qserve", "flashq4", "flashq2", "kivi2", "turboquant4",
                                   "qaq", "sage2-8b", "sage2-4b", "turbo", "turbo-mixed"}) {
    const double cpu = kld(DeviceChoice::kCpu, recipe, DType::kBF16),
                 gpu = kld(DeviceChoice::kCuda, recipe, DType::kBF16);
    EXPECT_NEAR(gpu, cpu, std::max(0.0005, 0.05 * cpu)) << recipe << ", prompts in bf16";
    fmt::print("{}, prompts in bf16: KL divergence {:.6f} on the CPU, {:.6f} on the GPU\n", recipe, cpu, gpu);
  }
}

}  // namespace
}  // namespace nibble
