// SPDX-License-Identifier: Apache-2.0
// Plans: the file reads back as written and is refused when it does not fit; the balance changes no logits of
// the exact recipe.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "engine/calibrate.h"
#include "engine/engine.h"
#include "model/plan_file.h"
#include "tests/support/temp_dir.h"

namespace nibble {
namespace {

const std::string kModel = std::string(NIBBLE_SOURCE_DIR) + "/models/novelist-10m";

std::string Text() {
  std::ifstream in(std::string(NIBBLE_SOURCE_DIR) + "/texts/Doyle_Hound_1902.txt", std::ios::binary);
  std::stringstream s;
  s << in.rdbuf();
  return s.str();
}

ModelConfig Config() {
  auto c = ReadModelConfig(kModel);
  EXPECT_TRUE(c.ok());
  return *std::move(c);
}

// Scales and shifts without pattern; k_scale RoPE-paired.
Plan RandomPlan(const ModelConfig& c, const std::string& fingerprint) {
  Plan plan{.fingerprint = fingerprint,
            .recipe = "qserve",
            .heads = c.heads,
            .kv_heads = c.kv_heads,
            .head_dim = c.head_dim,
            .layers = {}};
  uint32_t state = 7;
  const auto next = [&state] {
    return float((state = state * 1664525u + 1013904223u) >> 8) / float(1 << 24);
  };
  const auto width = size_t(c.kv_heads * c.head_dim);
  for (int l = 0; l < c.layers; ++l) {
    LayerPlan layer;
    layer.qk = QkArith::kInt4Thread, layer.pv = PvArith::kInt8, layer.sparq_r = {8, 64},
    layer.sparq_k = {99, 500};
    layer.k_qaq = {{0.001f, 0, 5}, {0.7f, 1, 6}}, layer.v_qaq = {{0.1f, 2, 2}, {1e-9f, 0, 1}};
    layer.k_two_bit = {true, false}, layer.v_two_bit = {false, true};
    for (size_t i = 0; i < width; ++i) {
      const size_t d = i % size_t(c.head_dim), half = size_t(c.head_dim) / 2;
      layer.k_scale.push_back(d < half ? 0.25f + 4 * next() : layer.k_scale[i - half]);
      layer.k_shift.push_back(next() - 0.5f);
      layer.v_scale.push_back(0.25f + 4 * next());
      layer.v_shift.push_back(next() - 0.5f);
      layer.k_mean.push_back(next());
    }
    for (int i = 0; i < c.heads * c.head_dim; ++i) layer.q_mean.push_back(next());
    plan.layers.push_back(layer);
  }
  return plan;
}

std::string FingerprintOf(const std::string& model) {
  CalibrateOptions o{.model = model, .recipe = "qserve", .tokens = 66, .window = 66};
  const auto report = Calibrate(o, Text());
  EXPECT_TRUE(report.ok()) << report.status().message();
  return report.ok() ? report->plan.fingerprint : "";
}

TEST(PlanFile, ReadsBackAsWritten) {
  const TempDir dir;
  const std::string path = dir.path() + "/plan.json";
  const ModelConfig c = Config();
  const Plan plan = RandomPlan(c, "ab12");
  ASSERT_TRUE(WritePlan(path, plan).ok());
  const auto back = ReadPlan(path, c, "ab12");
  ASSERT_TRUE(back.ok()) << back.status().message();
  ASSERT_EQ(back->layers.size(), plan.layers.size());
  for (size_t i = 0; i < plan.layers.size(); ++i) {
    const LayerPlan &a = plan.layers[i], &b = back->layers[i];
    EXPECT_EQ(a.qk, b.qk);
    EXPECT_EQ(a.pv, b.pv);
    EXPECT_EQ(a.sparq_r, b.sparq_r);
    EXPECT_EQ(a.sparq_k, b.sparq_k);
    EXPECT_EQ(a.k_qaq, b.k_qaq) << "to the bit";
    EXPECT_EQ(a.v_qaq, b.v_qaq);
    EXPECT_EQ(a.k_two_bit, b.k_two_bit);
    EXPECT_EQ(a.v_two_bit, b.v_two_bit);
    EXPECT_EQ(a.k_scale, b.k_scale) << "to the bit";
    EXPECT_EQ(a.k_shift, b.k_shift);
    EXPECT_EQ(a.v_scale, b.v_scale);
    EXPECT_EQ(a.v_shift, b.v_shift);
    EXPECT_EQ(a.k_mean, b.k_mean);
    EXPECT_EQ(a.q_mean, b.q_mean);
  }
}

struct Damage {
  const char* pointer;  // JSON pointer
  const char* value;    // JSON text
  const char* message;  // must occur
};
const Damage kDamages[] = {
    {"/nibble_plan", "2", "nibble_plan"},
    {"/nibble_plan", "\"1\"", "nibble_plan"},
    {"/model", "3", "model"},
    {"/model/layers", "7", "the plan is for 7, this model has 6"},
    {"/model/heads", "5", "the plan is for 5"},
    {"/model/head_dim", "128", "the plan is for 128, this model has 64"},
    {"/model/head_dim", "-1", "head_dim"},
    {"/model/fingerprint", "\"cd\"", "made for other weights (cd; this model is ab12)"},
    {"/recipe", "null", "recipe"},
    {"/layers", "{}", "expected 6 layers"},
    {"/layers", "[{}]", "expected 6 layers, found 1"},
    {"/layers/2", "4", "expected an object"},
    {"/layers/2/qk", "\"int3\"", "qk 'int3' is unknown; it may be int8-block, int8-thread, int4-thread"},
    {"/layers/2/pv", "\"fp4\"", "pv 'fp4' is unknown"},
    {"/layers/2/sparq_r", "8", "sparq_r: expected 2 numbers, one a KV head"},
    {"/layers/2/sparq_r", "[8]", "expected 2 numbers, one a KV head, found 1"},
    {"/layers/2/sparq_r/1", "65", "sparq_r[1]"},
    {"/layers/2/sparq_k/0", "0", "sparq_k[0]"},
    {"/layers/2/sparq_k/0", "1.5", "sparq_k[0]"},
    {"/layers/2/k_qaq_sigma", "[1.0]", "expected 2 entries, one a KV head, found 1"},
    {"/layers/2/k_qaq_sigma/0", "0.0", "is not above 0 and up to 1000"},
    {"/layers/2/v_qaq_sigma/1", "1e9", "is not above 0 and up to 1000"},
    {"/layers/2/v_qaq_bits", "[[1,2],[1,2],[1,2]]", "expected 2 entries, one a KV head, found 3"},
    {"/layers/2/v_qaq_bits/1", "[1,9]", "v_qaq_bits[1][1]"},
    {"/layers/2/v_qaq_bits/1", "[-1,3]", "v_qaq_bits[1][0]"},
    {"/layers/2/v_qaq_bits/1", "[5,4]", "5 bits at least and 4 at most"},
    {"/layers/2/v_qaq_bits/1", "[4]", "expected the least and the most bits"},
    {"/layers/2/k_bits", "[2]", "expected 2 bit widths"},
    {"/layers/2/k_bits/0", "3", "3 bits; a head has 2 or 4"},
    {"/layers/2/v_bits/1", "8", "v_bits[1]"},
    {"/layers/2/k_scale", "[]", "expected 2 arrays"},
    {"/layers/2/k_scale/1", "[1.0]", "expected 64 numbers"},
    {"/layers/2/k_scale/1/9", "0.0", "is not a scale"},
    {"/layers/2/k_scale/1/9", "-1.0", "is not a scale"},
    {"/layers/2/k_shift/1/9", "1e38", "is not a number within"},
    {"/layers/2/k_shift/1/9", "\"x\"", "k_shift[1][9]"},
    {"/layers/2/q_mean", "[[1.0]]", "expected 4 arrays"},
};

TEST(PlanFile, DamageIsNamed) {
  const TempDir dir;
  const std::string path = dir.path() + "/plan.json";
  const ModelConfig c = Config();
  ASSERT_TRUE(WritePlan(path, RandomPlan(c, "ab12")).ok());
  std::ifstream in(path);
  const nlohmann::json good = nlohmann::json::parse(in);
  for (const Damage& d : kDamages) {
    nlohmann::json bad = good;
    bad[nlohmann::json::json_pointer(d.pointer)] = nlohmann::json::parse(d.value);
    std::ofstream(path) << bad;
    const auto read = ReadPlan(path, c, "ab12");
    ASSERT_FALSE(read.ok()) << d.pointer;
    const std::string message = read.status().message();
    EXPECT_NE(message.find(d.message), std::string::npos) << d.pointer << ": " << message;
    EXPECT_NE(message.find("plan.json"), std::string::npos) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos);
  }
}

TEST(PlanFile, HalfASettingIsRefused) {
  const TempDir dir;
  const std::string path = dir.path() + "/plan.json";
  const ModelConfig c = Config();
  ASSERT_TRUE(WritePlan(path, RandomPlan(c, "ab12")).ok());
  std::ifstream in(path);
  const nlohmann::json good = nlohmann::json::parse(in);
  const std::pair<const char*, const char*> cases[] = {{"sparq_r", "sparq_k without sparq_r"},
                                                       {"sparq_k", "sparq_r without sparq_k"},
                                                       {"k_qaq_bits", "k_qaq_sigma without k_qaq_bits"},
                                                       {"v_qaq_sigma", "v_qaq_bits without v_qaq_sigma"}};
  for (const auto& [key, want] : cases) {
    nlohmann::json bad = good;
    bad["layers"][1].erase(key);
    std::ofstream(path) << bad;
    const auto read = ReadPlan(path, c, "ab12");
    ASSERT_FALSE(read.ok()) << key;
    EXPECT_NE(read.status().message().find(want), std::string::npos) << read.status().message();
  }
}

// A plan and a recipe that contradict each other, when the engine starts.
TEST(Plan, WhatTheRecipeCannotHaveIsRefused) {
  const auto message = [](std::string_view recipe, const LayerPlan& plan) {
    const auto parsed = ParseRecipe(recipe, DType::kF32);
    EXPECT_TRUE(parsed.ok()) << parsed.status().message();
    return CheckHeads(*parsed, plan, 2, 64).message();
  };
  LayerPlan plan;
  plan.sparq_r = {8, 80}, plan.sparq_k = {64, 64};
  plan.k_qaq = {{1, 0, 5}, {1, 1, 6}};
  EXPECT_EQ(message("qserve", plan), "") << "what does not concern a recipe is left alone";
  EXPECT_EQ(message("sparq:r=16", plan),
            "plan: KV head 1: recipe: select=sparq: r=80 exceeds the model's head size; use r=64 or less");
  plan.sparq_r = {8, 8}, plan.sparq_k = {64, 32};
  EXPECT_EQ(
      message("sparq:local=40", plan),
      "plan: KV head 1: recipe: select=sparq: k=32 is less than local=40 and sinks=0: they are part of k; "
      "use k=40 or more");
  EXPECT_EQ(message("sparq", plan), "") << "the local window follows k";
  EXPECT_EQ(message("qaq", plan), "");
  EXPECT_EQ(
      message("k=qaq:max=5", plan),
      "plan: k_qaq of KV head 1 has 1 to 6 bits, the recipe k=qaq 0 to 5; use the recipe the plan was made "
      "for, or min=0,max=6");
  EXPECT_NE(message("k=qaq:min=1,max=6", plan).find("KV head 0 has 0 to 5 bits"), std::string::npos);
}

// 300 random tokens of 4 query and 2 KV heads through one layer of the cache, each a decode step.
std::vector<float> Attend(const std::string& recipe, const LayerPlan* layer) {
  constexpr int kRows = 300, kHeads = 4, kKvHeads = 2, kDim = 64;
  const auto backend = MakeCpuBackend(2);
  EXPECT_TRUE(backend.ok() && (*backend)->Reserve(kRows, 256, kHeads, kKvHeads, kDim).ok());
  const Plan plan{.fingerprint = "",
                  .recipe = "",
                  .heads = kHeads,
                  .kv_heads = kKvHeads,
                  .head_dim = kDim,
                  .layers = {layer != nullptr ? *layer : LayerPlan{}}};
  const auto cache = KvCache::Make(**backend, {.shape = {1, kKvHeads, kDim},
                                               .heads = kHeads,
                                               .recipe = *ParseRecipe(recipe, DType::kF32),
                                               .plan = layer != nullptr ? &plan : nullptr,
                                               .max_seqs = 1,
                                               .max_step_tokens = kRows,
                                               .max_tokens = 512});
  EXPECT_TRUE(cache.ok());
  uint32_t state = 5;
  const auto random = [&state](int heads) {
    std::vector<float> x(size_t(kRows * heads * kDim));
    for (float& f : x) f = float((state = state * 1664525u + 1013904223u) >> 8) / float(1 << 23) - 1;
    return x;
  };
  std::vector<float> q = random(kHeads), k = random(kKvHeads), v = random(kKvHeads), out(q.size());
  const auto tensor = [](std::vector<float>& x, int heads) {
    return Tensor::Dense(x.data(), DType::kF32, Device::kCpu, {kRows, heads, kDim});
  };
  const SeqId seq = *(*cache)->Open();
  const int32_t count = kRows;
  EXPECT_TRUE((*cache)->BeginStep({&seq, 1}, {&count, 1}).ok());
  const KvView view = (*cache)->View(0);
  (*backend)->KvAppend({view, tensor(k, kKvHeads), tensor(v, kKvHeads)});
  (*backend)->Attention({view, tensor(q, kHeads), tensor(out, kHeads), kHeads, 0.5f, 0});
  (*backend)->Sync();
  return out;
}

// Each KV head attends as under a recipe with its own settings, bit for bit.
TEST(Plan, HeadsFollowTheirOwnSettings) {
  const auto differing = [](const std::vector<float>& a, const std::vector<float>& b, size_t head) {
    int count = 0;
    for (size_t i = 0; i < a.size(); ++i) count += i / 128 % 2 == head && a[i] != b[i];  // 2 query heads each
    return count;
  };
  LayerPlan sparq, qaq;
  sparq.sparq_r = {8, 48}, sparq.sparq_k = {32, 96};
  qaq.k_qaq = {{0.0001f, 0, 6}, {0.01f, 1, 3}}, qaq.v_qaq = {{0.02f, 0, 5}, {0.9f, 0, 2}};
  const struct {
    const char* recipe;
    const LayerPlan& plan;
    const char* of_head[2];
  } cases[] = {{"sparq:r=16,k=64", sparq, {"sparq:r=8,k=32", "sparq:r=48,k=96"}},
               {"qaq",
                qaq,
                {"qaq k=qaq:sigma=0.0001,max=6 v=qaq:sigma=0.02,max=5,window=32,decay=0.9",
                 "qaq k=qaq:sigma=0.01,min=1,max=3 v=qaq:sigma=0.9,max=2,window=32,decay=0.9"}}};
  for (const auto& c : cases) {
    const std::vector<float> planned = Attend(c.recipe, &c.plan), plain = Attend(c.recipe, nullptr);
    for (const size_t head : {0u, 1u}) {
      EXPECT_EQ(differing(planned, Attend(c.of_head[head], nullptr), head), 0) << c.of_head[head];
      EXPECT_GT(differing(planned, plain, head), 0) << "the settings show";
      EXPECT_GT(differing(planned, Attend(c.of_head[1 - head], nullptr), head), 0) << "heads exchanged";
    }
  }
}

// The largest difference of the logits of two engines on the same tokens.
double WorstLogit(const std::string& recipe, const std::string& plan) {
  const auto load = [](const std::string& r, const std::string& p) {
    EngineOptions o{.model = kModel, .recipe = r, .plan = p};
    auto e = Engine::Load(o);
    EXPECT_TRUE(e.ok()) << e.status().message();
    return *std::move(e);
  };
  const auto exact = load("exact", ""), balanced = load(recipe, plan);
  auto ids = exact->tokenizer().Encode(Text().substr(2000, 900), SpecialTokens::kAdd);
  EXPECT_TRUE(ids.ok());
  std::vector<float> want;
  const auto keep = [&](int64_t, Tensor t) -> Status {
    want.insert(want.end(), t.as<float>(), t.as<float>() + t.dim[0] * t.dim[1]);
    return {};
  };
  EXPECT_TRUE(exact->Score(*ids, keep).ok());
  double worst = 0;
  const auto compare = [&](int64_t first, Tensor t) -> Status {
    const int64_t n = t.dim[0] * t.dim[1];
    for (int64_t i = 0; i < n; ++i)
      worst =
          std::max(worst, std::fabs(double(t.as<float>()[i]) - double(want[size_t(first * t.dim[1] + i)])));
    return {};
  };
  EXPECT_TRUE(balanced->Score(*ids, compare).ok());
  return worst;
}

TEST(Plan, BalanceLeavesTheFunctionAsItIs) {
  const TempDir dir;
  const std::string path = dir.path() + "/plan.json";
  const Plan plan = RandomPlan(Config(), FingerprintOf(kModel));
  ASSERT_TRUE(WritePlan(path, plan).ok());
  EXPECT_LT(WorstLogit("exact", path), 1e-4);
  EXPECT_GT(WorstLogit("kv8", path), 1e-4) << "the measure sees small errors";
}

}  // namespace
}  // namespace nibble
