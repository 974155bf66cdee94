// SPDX-License-Identifier: Apache-2.0
// Calibration: a plan lowers the error on a text it has not seen, one that is upside down raises it, heads
// share what the recipe spends, and what cannot be calibrated is refused.
#include "engine/calibrate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>

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

struct Outcome {
  double kld, spent;  // bits a value, or bytes read by a row
};
Outcome Measure(const std::string& recipe, const std::string& plan, const std::string& text) {
  const auto model = Engine::Load({.model = kModel, .recipe = recipe, .plan = plan, .threads = 2});
  const auto exact = Engine::Load({.model = kModel, .threads = 2});
  EXPECT_TRUE(model.ok() && exact.ok()) << model.status().message();
  const auto report = Evaluate(**model, exact->get(), text, {.window = 1024, .max_windows = 1});
  EXPECT_TRUE(report.ok()) << report.status().message();
  const bool selects = (*model)->recipe().select.kind != SelectKind::kAll;
  return {report->reference->kld.mean,
          selects ? (*model)->TakeReads().bytes : (*model)->kv_sizes().bits_per_value};
}

// By head: what the recipe spends as a whole, no more, spent better on a text the plan has not seen.
TEST(Calibrate, HeadsShareTheRecipesBudget) {
  const TempDir dir;
  const std::string path = dir.path() + "/plan.json";
  for (const char* recipe : {"qaq", "sparq:r=16,k=64"}) {
    CalibrateOptions o{.model = kModel, .recipe = recipe, .tokens = 1024, .window = 1024, .threads = 2};
    const auto report = Calibrate(o, FirstHalf());
    ASSERT_TRUE(report.ok()) << report.status().message();
    ASSERT_TRUE(WritePlan(path, report->plan).ok());
    const Outcome plain = Measure(recipe, "", SecondHalf()), planned = Measure(recipe, path, SecondHalf());
    EXPECT_LT(planned.kld, 0.9 * plain.kld) << recipe;
    EXPECT_LT(planned.spent, 1.02 * plain.spent) << recipe;  // bits and bytes depend on the text a little
    // The settings of the layers in reverse order must be seen to be worse.
    Plan reversed = report->plan;
    for (size_t i = 0, n = reversed.layers.size(); i < n; ++i) {
      const LayerPlan& from = report->plan.layers[n - 1 - i];
      LayerPlan& to = reversed.layers[i];
      to.k_qaq = from.k_qaq, to.v_qaq = from.v_qaq, to.sparq_r = from.sparq_r, to.sparq_k = from.sparq_k;
    }
    ASSERT_TRUE(WritePlan(path, reversed).ok());
    EXPECT_GT(Measure(recipe, path, SecondHalf()).kld, planned.kld) << recipe;
  }
}

// The balance of K alone, r and k as the recipe has them.
TEST(Calibrate, BalancedKeysRankBetter) {
  const TempDir dir;
  const std::string path = dir.path() + "/plan.json", recipe = "sparq:r=8,k=64";
  CalibrateOptions o{.model = kModel, .recipe = recipe, .tokens = 1024, .window = 1024, .threads = 2};
  const auto report = Calibrate(o, FirstHalf());
  ASSERT_TRUE(report.ok()) << report.status().message();
  Plan plan = report->plan;
  for (LayerPlan& l : plan.layers) l.sparq_r.clear(), l.sparq_k.clear();
  ASSERT_TRUE(WritePlan(path, plan).ok());
  const double plain = Measure(recipe, "", SecondHalf()).kld,
               planned = Measure(recipe, path, SecondHalf()).kld;
  EXPECT_LT(planned, 0.9 * plain);
  for (LayerPlan& l : plan.layers)
    for (float& x : l.k_scale) x = 1 / x;
  ASSERT_TRUE(WritePlan(path, plan).ok());
  EXPECT_GT(Measure(recipe, path, SecondHalf()).kld, planned) << "scales upside down";
  std::printf("[ figures  ] kld %.4f, with balanced keys %.4f\n", plain, planned);
}

TEST(Calibrate, AGreaterBudgetIsSpent) {
  double error[2] = {};
  int most_k[2] = {};
  for (const int i : {0, 1}) {
    CalibrateOptions o{
        .model = kModel, .recipe = "sparq:r=8,k=16", .tokens = 256, .window = 256, .threads = 2};
    o.budget = i + 1;
    const auto report = Calibrate(o, FirstHalf());
    ASSERT_TRUE(report.ok()) << report.status().message();
    for (const LayerReport& l : report->layers) error[i] += l.after.error2;
    for (const LayerPlan& l : report->plan.layers)
      for (const int k : l.sparq_k) most_k[i] = std::max(most_k[i], k);
  }
  EXPECT_LT(error[1], 0.8 * error[0]);
  EXPECT_EQ(most_k[0], 32) << "settings beyond twice the recipe's own take a greater budget";
  EXPECT_EQ(most_k[1], 64);
}

TEST(Calibrate, ThreadsChangeNothing) {
  const TempDir dir;
  std::string texts[2];
  for (const int threads : {1, 2}) {
    for (const char* recipe : {"kivi2", "qaq", "sparq:r=16,k=32"}) {
      CalibrateOptions o{.model = kModel, .recipe = recipe, .tokens = 512, .window = 256, .threads = threads};
      const auto report = Calibrate(o, FirstHalf());
      ASSERT_TRUE(report.ok());
      const std::string path = dir.path() + "/plan.json";
      ASSERT_TRUE(WritePlan(path, report->plan).ok());
      std::stringstream s;
      s << std::ifstream(path).rdbuf();
      texts[threads - 1] += s.str();
    }
  }
  EXPECT_EQ(texts[0], texts[1]);
}

// The plan names the heads with 2 bits, as many as the recipe's share says; the opposite heads do more harm;
// and another share is refused.
TEST(Calibrate, GivesTwoBitsWhereTheyHurtLeast) {
  const TempDir dir;
  const std::string path = dir.path() + "/plan.json";
  CalibrateOptions o{.model = kModel, .recipe = "turbo-mixed", .tokens = 1024, .window = 1024, .threads = 2};
  const auto report = Calibrate(o, FirstHalf());
  ASSERT_TRUE(report.ok()) << report.status().message();
  int named = 0;
  Plan opposite = report->plan;
  for (size_t i = 0; i < report->plan.layers.size(); ++i) {
    const LayerPlan& l = report->plan.layers[i];
    EXPECT_LE(report->layers[i].after.error2, report->layers[i].before.error2);
    for (const std::vector<bool>& two : {l.k_two_bit, l.v_two_bit}) {
      named += !two.empty();
      if (two.empty()) continue;
      EXPECT_EQ(std::count(two.begin(), two.end(), true), 1) << "of 2 KV heads";
    }
    opposite.layers[i].k_two_bit.flip(), opposite.layers[i].v_two_bit.flip();
  }
  EXPECT_GE(named, 10) << "of 6 layers, K and V";

  ASSERT_TRUE(WritePlan(path, report->plan).ok());
  const double planned = Score("turbo-mixed", path, SecondHalf()).reference->kld.mean;
  EXPECT_LT(planned, Score("turbo-mixed", "", SecondHalf()).reference->kld.mean);
  const auto engine = Engine::Load({.model = kModel, .recipe = "turbo-mixed", .plan = path});
  ASSERT_TRUE(engine.ok()) << engine.status().message();
  int told = 0;
  for (const std::string& line : (*engine)->Explain())
    told += line.find("heads in 2 bits: ") != std::string::npos;
  EXPECT_EQ(told, named);

  const auto refused =
      Engine::Load({.model = kModel, .recipe = "turbo-mixed v=flashq-mixed:2bit=1", .plan = path});
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(
      refused.status().message().find("2bit=1 to 2; use v=flashq-mixed:2bit=0.5 or run nibble calibrate"),
      std::string::npos)
      << refused.status().message();
  ASSERT_TRUE(WritePlan(path, opposite).ok());
  EXPECT_GT(Score("turbo-mixed", path, SecondHalf()).reference->kld.mean, planned);
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
