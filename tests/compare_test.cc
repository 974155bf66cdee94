// SPDX-License-Identifier: Apache-2.0
// `nibble compare` as a user meets it: keys, order of recipes by quality, what is refused and how, the same
// figures for every thread count.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/support/run_nibble.h"
#include "tests/support/temp_dir.h"

namespace nibble::test {
namespace {

using nlohmann::json;

// K by token in groups and V by channel: KIVI the wrong way round, with the same bits.
constexpr const char* kReversed = "k=int2-group v=int2-channel";

class CompareCommand : public testing::Test {
 protected:
  nibble::TempDir dir_;
  std::string Text(size_t bytes = 60000) {
    return WriteFile(dir_ / "text.txt", ReadTestFile(Hound()).substr(0, bytes));
  }
  Args Command(const std::string& recipes, const Args& more = {}) {
    Args args{"compare", "-m", Model10m(), "--text", Text(), "--recipes", recipes, "--json"};
    for (const char* a : {"--window", "256", "--max-windows", "1", "--context", "320", "--trials", "1"})
      args.emplace_back(a);
    args.insert(args.end(), more.begin(), more.end());
    return args;
  }
  json Run(const std::string& recipes, const Args& more = {}) {
    const RunResult r = RunNibble(Command(recipes, more));
    EXPECT_EQ(r.exit_code, 0) << r.err;
    return r.exit_code == 0 ? json::parse(r.out) : json::object();
  }
  // Exit code 1 or 2 and one line that holds `part`.
  void ExpectError(const Args& args, int code, const std::string& part) {
    const RunResult r = RunNibble(args);
    EXPECT_EQ(r.exit_code, code) << r.err;
    EXPECT_EQ(std::count(r.err.begin(), r.err.end(), '\n'), 1) << r.err;
    EXPECT_NE(r.err.find(part), std::string::npos) << r.err;
    EXPECT_EQ(r.out, "");
  }
};

json Find(const json& report, const std::string& recipe) {
  for (const json& r : report["recipes"])
    if (r["recipe"] == recipe) return r;
  ADD_FAILURE() << recipe << " is not in the report";
  return {};
}

TEST_F(CompareCommand, KeysAndOrderOfQuality) {
  const json report = Run(std::string("kv8,kivi4,kivi2,") + kReversed);
  for (const char* key : {"model",
                          "reference",
                          "text",
                          "dtype",
                          "windows",
                          "window",
                          "tokens",
                          "context",
                          "contexts",
                          "trials",
                          "attention_tokens",
                          "headline",
                          "recommended",
                          "recommended_is_good",
                          "good",
                          "least_read",
                          "best_by_bits",
                          "bits_front",
                          "read_front",
                          "recipes",
                          "refused",
                          "seconds"})
    EXPECT_TRUE(report.contains(key)) << key;
  EXPECT_EQ(report["windows"], 1);
  EXPECT_EQ(report["tokens"], 255);
  ASSERT_EQ(report["recipes"].size(), 5u);
  EXPECT_EQ(report["recipes"][0]["recipe"], "exact");
  double last = -1, last_layer = -1;
  for (const char* recipe : {"exact", "kv8", "kivi4", "kivi2", kReversed}) {
    const json r = Find(report, recipe);
    for (const char* key :
         {"canonical", "kind", "kv_bits_per_value", "kv_bytes_per_token", "loss", "perplexity",
          "nll_per_token", "kld_mean", "kld_median", "kld_p99", "kld_max", "same_top", "delta_p_rms",
          "passkey", "repetition", "layers", "bytes_per_step", "scalars_per_step", "step_seconds"})
      EXPECT_TRUE(r.contains(key)) << recipe << " " << key;
    const double kld = r["kld_mean"], layer = r["layers"]["isolated"][3]["relative_l1"];
    EXPECT_GT(kld, last) << recipe;
    EXPECT_GT(layer, last_layer) << recipe;
    last = kld, last_layer = layer;
    EXPECT_EQ(r["layers"]["accumulated"].size(), 6u);
    EXPECT_EQ(r["passkey"].size(), report["contexts"].size());
    EXPECT_GT(r["step_seconds"], 0);
  }
  EXPECT_EQ(Find(report, "exact")["kld_mean"], 0);
  EXPECT_EQ(Find(report, "exact")["kv_bits_per_value"], 32);
  EXPECT_EQ(Find(report, "exact")["passkey"][0]["of_exact"], 1);
  EXPECT_GT(Find(report, kReversed)["kld_mean"], 3 * Find(report, "kivi2")["kld_mean"].get<double>());
  EXPECT_LT(Find(report, "kivi2")["bytes_per_step"], Find(report, "kivi4")["bytes_per_step"]);
  EXPECT_EQ(report["recommended"], "kivi4");
  const json& front = report["bits_front"];
  EXPECT_EQ(std::count(front.begin(), front.end(), kReversed), 0);
  EXPECT_EQ(std::count(front.begin(), front.end(), "kivi2"), 1);
}

TEST_F(CompareCommand, ThreadsChangeNoFigure) {
  std::vector<json> reports;
  for (const char* threads : {"1", "3"}) {
    json report = Run("kivi2", {"-t", threads});
    report.erase("seconds");
    for (json& r : report["recipes"]) r.erase("step_seconds");
    reports.push_back(std::move(report));
  }
  EXPECT_EQ(reports[0], reports[1]);
  json other = Run("kivi2", {"--seed", "9", "--tasks", "repetition"});
  EXPECT_NE(other["recipes"][1]["repetition"], reports[0]["recipes"][1]["repetition"]);
}

// Where outliers are few a plan still changes the grids; what has no grid has no plan.
TEST_F(CompareCommand, PlansAreMeasuredBesideTheirRecipes) {
  const std::string treasure = NIBBLE_SOURCE_DIR "/texts/Stevenson_Treasure_1883.txt";
  const json report = Run("qserve,kv16", {"--tasks", "ppl", "--calibrate", treasure});
  EXPECT_EQ(report["calibration"], treasure);
  const json qserve = Find(report, "qserve");
  ASSERT_TRUE(qserve.contains("planned"));
  EXPECT_GT(qserve["planned"]["kld_mean"], 0);
  EXPECT_LT(qserve["planned"]["kld_mean"], 0.9 * qserve["kld_mean"].get<double>());
  EXPECT_FALSE(Find(report, "kv16").contains("planned"));
  EXPECT_FALSE(Find(report, "exact").contains("planned"));
  const json plain = Run("qserve", {"--tasks", "ppl"});
  EXPECT_FALSE(plain.contains("calibration"));
  EXPECT_EQ(Find(plain, "qserve")["kld_mean"], qserve["kld_mean"]);
}

// qaq chooses bits as it runs: bits and bytes are those in use and not the most there may be.
TEST_F(CompareCommand, SizesOfQaqAreThoseInUse) {
  const std::string narrow = "k=qaq:max=2 v=qaq:max=2", wide = "k=qaq:max=8,min=8 v=qaq:max=8,min=8";
  const std::string free = "k=qaq:sigma=1000 v=qaq:sigma=1000";  // any error will do
  const json report = Run(narrow + "," + wide + "," + free, {"--tasks", "passkey"});
  const auto size = [&](const std::string& recipe, const char* key) {
    return Find(report, recipe)[key].get<double>();
  };
  EXPECT_LT(size(narrow, "kv_bits_per_value"), 4);
  EXPECT_GT(size(wide, "kv_bits_per_value"), 8);
  EXPECT_LT(size(free, "kv_bits_per_value"), 4);  // its pages may hold 5 bits and more, and drop them
  EXPECT_LT(size(narrow, "bytes_per_step"), 0.6 * size(wide, "bytes_per_step"));
  EXPECT_LT(size(free, "bytes_per_step"), 0.6 * size(wide, "bytes_per_step"));
}

TEST_F(CompareCommand, TasksAreLeftOut) {
  const json report = Run("kivi4", {"--tasks", "repetition"});
  const json r = Find(report, "kivi4");
  EXPECT_TRUE(r.contains("repetition"));
  for (const char* key : {"kld_mean", "layers", "passkey"}) EXPECT_FALSE(r.contains(key)) << key;
  EXPECT_NEAR(r["loss"], std::max(0.0, 1 - r["repetition"][0]["of_exact"].get<double>()), 1e-9);
}

// The trials of a length are the same whether it stands alone or not.
TEST_F(CompareCommand, RetrievalAtLengthsOfOnesChoice) {
  const auto with = [&](const char* list) {
    const RunResult r =
        RunNibble({"compare", "-m", Model10m(), "--text", Text(), "--recipes", "kivi2", "--tasks",
                   "repetition", "--context", "640", "--contexts", list, "--window", "256", "--json"});
    EXPECT_EQ(r.exit_code, 0) << r.err;
    return json::parse(r.out, nullptr, false);
  };
  const json one = with("640"), both = with("640,320");
  EXPECT_EQ(one["contexts"], json::array({640}));
  EXPECT_EQ(both["contexts"], json::array({320, 640}));
  const json alone = Find(one, "kivi2")["repetition"], beside = Find(both, "kivi2")["repetition"];
  ASSERT_EQ(alone.size(), 1u);
  ASSERT_EQ(beside.size(), 2u);
  EXPECT_EQ(alone[0], beside[1]);
}

TEST_F(CompareCommand, ARecipeThatCannotRunIsListedWithItsReason) {
  const json report = Run("qk=bf16,kv8", {"--tasks", "passkey"});
  ASSERT_EQ(report["refused"].size(), 1u);
  EXPECT_EQ(report["refused"][0]["recipe"], "qk=bf16");
  EXPECT_NE(report["refused"][0]["reason"].get<std::string>().find("--dtype bf16"), std::string::npos);
  EXPECT_EQ(report["recipes"].size(), 2u);
}

TEST_F(CompareCommand, ParametersWithCommasStayWithTheirRecipe) {
  const json report = Run("select=sparq:r=16,k=128,k=int8-token v=int4-token", {"--tasks", "passkey"});
  std::vector<std::string> names;
  for (const char* list : {"recipes", "refused"})
    for (const json& r : report[list]) names.push_back(r["recipe"]);
  std::sort(names.begin(), names.end());
  EXPECT_EQ(names,
            (std::vector<std::string>{"exact", "k=int8-token v=int4-token", "select=sparq:r=16,k=128"}));
}

TEST_F(CompareCommand, ListsAddUp) {
  const json report = Run("kv8", {"--recipes", "kv16", "--tasks", "ppl"});
  ASSERT_EQ(report["recipes"].size(), 3u);
  EXPECT_EQ(Find(report, "kv16")["recipe"], "kv16");
}

TEST_F(CompareCommand, UsageErrorsComeBeforeAnyWork) {
  const Args base{"compare", "-m", "no-such-folder", "--text", "no-such-text"};
  const auto with = [&](Args more) {
    more.insert(more.begin(), base.begin(), base.end());
    return more;
  };
  ExpectError(with({"--recipes", "kv8,kivi5"}), 2, "did you mean 'kivi");
  ExpectError(with({"--recipes", "kv8,"}), 2, "recipe: empty");
  ExpectError(with({}), 2, "--all");
  ExpectError(with({"--all", "--recipes", "kv8"}), 2, "one of the two");
  ExpectError(with({"--all", "--recipe", "kv8"}), 2, "--recipes");
  ExpectError(with({"--all", "--tasks", "poetry"}), 2, "poetry");
  ExpectError(with({"--all", "--context", "12"}), 2, "--context");
  ExpectError(with({"--all", "--contexts", "400,12"}), 2, "--contexts");
  ExpectError(with({"--all", "--plan", "p.json", "--calibrate", "t.txt"}), 2, "one of the two");
}

TEST_F(CompareCommand, TextsAndContextsThatDoNotFit) {
  const auto with = [&](const std::string& text, const Args& more) {
    Args args{"compare", "-m", Model10m(), "--text", text, "--recipes", "kv8"};
    args.insert(args.end(), more.begin(), more.end());
    return args;
  };
  ExpectError(with(WriteFile(dir_ / "empty.txt", ""), {}), 1, "0 tokens");
  ExpectError(with(Text(2000), {}), 1, "fewer than one window of 2048");
  ExpectError(with(Text(9000), {"--window", "512"}), 1, "fewer than the context of 3500");
  ExpectError(with(Text(), {"--context", "4000"}), 1, "context of 4096");
  ExpectError(with(Text(), {"--contexts", "500,3501"}), 1, "320 to 3500 tokens (the context), not 3501");
  ExpectError(with(Text(), {"--contexts", "500,500"}), 1, "given twice");
  ExpectError(with(Text(), {"--window", "5000"}), 1, "window of 5000");
  ExpectError(with(Text(), {"--calibrate", WriteFile(dir_ / "short.txt", "Ahoy!")}), 1,
              "short.txt: calibration");
  ExpectError(with(Text(), {"-o", dir_ / "none/page.html"}), 1, "none/page.html");
}

TEST_F(CompareCommand, ThePageHoldsNamesAsDataOnly) {
  const std::string text = WriteFile(dir_ / "<script>alert(1)<!--.txt", ReadTestFile(Text()));
  const std::string page = dir_ / "page.html";
  const RunResult r =
      RunNibble({"compare", "-m", Model10m(), "--text", text, "--recipes", "kv8", "--tasks", "repetition",
                 "--context", "400", "--window", "512", "--trials", "1", "-o", page});
  ASSERT_EQ(r.exit_code, 0) << r.err;
  EXPECT_NE(r.out.find("Use kv8"), std::string::npos) << r.out;
  const std::string html = ReadTestFile(page);
  EXPECT_EQ(html.find("<script>alert"), std::string::npos);
  EXPECT_NE(html.find("\\u003cscript>alert(1)\\u003c!--"), std::string::npos);
  EXPECT_EQ(html.find("{{DATA}}"), std::string::npos);
  EXPECT_EQ(html.find("src=\"http"), std::string::npos);
  EXPECT_FALSE(std::ifstream(page + ".part").good());
}

}  // namespace
}  // namespace nibble::test
