// SPDX-License-Identifier: Apache-2.0
// Plans: the file reads back as written and is refused when it does not fit; the balance changes no logits of
// the exact recipe; a calibrated plan lowers the error on a text it has not seen, and one that is upside down
// raises it.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "engine/calibrate.h"
#include "engine/evaluate.h"
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
std::string FirstHalf() { return Text().substr(0, Text().size() / 2); }
std::string SecondHalf() { return Text().substr(Text().size() / 2); }

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
    layer.qk = QkArith::kInt4Thread, layer.pv = PvArith::kInt8, layer.sparq_r = 8, layer.sparq_k = 99;
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
    {"/layers/2/sparq_r", "65", "sparq_r"},
    {"/layers/2/sparq_k", "0", "sparq_k"},
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

EvaluateReport Score(const std::string& recipe, const std::string& plan, const std::string& text) {
  const auto model = Engine::Load({.model = kModel, .recipe = recipe, .plan = plan, .threads = 2});
  const auto exact = Engine::Load({.model = kModel, .threads = 2});
  EXPECT_TRUE(model.ok() && exact.ok());
  const auto report = Evaluate(**model, model->get() == nullptr ? nullptr : exact->get(), text,
                               {.window = 1024, .max_windows = 2});
  EXPECT_TRUE(report.ok()) << report.status().message();
  return *report;
}

TEST(Calibrate, LowersTheErrorOnAnUnseenText) {
  const TempDir dir;
  const std::string path = dir.path() + "/plan.json";
  CalibrateOptions o{.model = kModel, .recipe = "qserve", .tokens = 1024, .window = 1024, .threads = 2};
  const auto report = Calibrate(o, FirstHalf());
  ASSERT_TRUE(report.ok()) << report.status().message();
  ASSERT_TRUE(WritePlan(path, report->plan).ok());
  for (const LayerReport& l : report->layers) EXPECT_LE(l.after.error2, l.before.error2);
  const double plain = Score("qserve", "", SecondHalf()).reference->kld.mean;
  const double planned = Score("qserve", path, SecondHalf()).reference->kld.mean;
  EXPECT_LT(planned, 0.8 * plain);
  // A plan whose scales are upside down makes things worse: the figure is sensitive to what the plan says.
  Plan worse = report->plan;
  for (LayerPlan& l : worse.layers)
    for (float& x : l.k_scale) x = 1 / (x * x * x);
  ASSERT_TRUE(WritePlan(path, worse).ok());
  EXPECT_GT(Score("qserve", path, SecondHalf()).reference->kld.mean, plain);
}

TEST(Calibrate, ThreadsChangeNothing) {
  const TempDir dir;
  std::string texts[2];
  for (const int threads : {1, 2}) {
    CalibrateOptions o{.model = kModel, .recipe = "kivi2", .tokens = 512, .window = 256, .threads = threads};
    const auto report = Calibrate(o, FirstHalf());
    ASSERT_TRUE(report.ok());
    const std::string path = dir.path() + "/plan.json";
    ASSERT_TRUE(WritePlan(path, report->plan).ok());
    std::stringstream s;
    s << std::ifstream(path).rdbuf();
    texts[threads - 1] = s.str();
  }
  EXPECT_EQ(texts[0], texts[1]);
}

TEST(Calibrate, RefusesWithTheReason) {
  const auto message = [](CalibrateOptions o, const std::string& text) {
    o.model = kModel;
    const auto report = Calibrate(o, text);
    EXPECT_FALSE(report.ok());
    return report.status().message();
  };
  EXPECT_NE(message({.recipe = "exact"}, Text()).find("leaves nothing to choose"), std::string::npos);
  EXPECT_NE(message({.recipe = "qserve"}, "").find("has 0 tokens, fewer than a window of 2048"),
            std::string::npos);
  EXPECT_NE(message({.recipe = "qserve"}, "Too short.").find("fewer than a window"), std::string::npos);
  EXPECT_NE(message({.recipe = "qserve", .window = 1 << 20}, Text()).find("the model's context is"),
            std::string::npos);
}

}  // namespace
}  // namespace nibble
