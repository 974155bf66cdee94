// SPDX-License-Identifier: Apache-2.0
// Floor 9. `nibble calibrate`: a plan for a model and a recipe.
#include "engine/calibrate.h"

#include "apps/cli/common.h"
#include "apps/cli/progress.h"
#include "apps/cli/table.h"
#include "model/plan_file.h"

namespace nibble::cli {
namespace {

constexpr int kMaxWindow = 1 << 24;

struct Options {
  CommonOptions common;
  std::string model, text, out;
  int tokens = 4096, window = 2048;
  double min_score = 0.97, budget = 1;
  bool json = false;
};

Json ErrorJson(const OutputError& e) {
  return {{"cosine", e.Cosine()}, {"relative_l1", e.RelativeL1()}, {"relative_l2", e.RelativeL2()}};
}

void PrintReport(const Options& o, const CalibrateReport& report) {
  if (o.json) {
    Json layers = Json::array();
    for (const LayerReport& l : report.layers)
      layers.push_back(
          {{"before", ErrorJson(l.before)}, {"after", ErrorJson(l.after)}, {"choices", l.choices}});
    PrintJson({{"plan", o.out},
               {"recipe", report.plan.recipe},
               {"fingerprint", report.plan.fingerprint},
               {"tokens", report.tokens},
               {"layers", std::move(layers)},
               {"seconds", report.seconds}});
    return;
  }
  Table table("rrrrl");
  table.AddRow({"layer", "rel. L2 before", "after", "cosine after", "choices"});
  table.AddRule();
  for (size_t i = 0; i < report.layers.size(); ++i) {
    const LayerReport& l = report.layers[i];
    table.AddRow({fmt::format("{}", i), fmt::format("{:.5f}", l.before.RelativeL2()),
                  fmt::format("{:.5f}", l.after.RelativeL2()), fmt::format("{:.6f}", l.after.Cosine()),
                  l.choices});
  }
  Print(table.ToString());
  Print(fmt::format("{}: {} on {} tokens, {:.1f} s\n", o.out, report.plan.recipe, report.tokens,
                    report.seconds));
}

Result<int> Run(const Options& o) {
  NIBBLE_ASSIGN(const std::string text, ReadText(o.text));
  const SignalGuard guard;
  Progress progress("calibrate", o.common.quiet);
  CalibrateOptions options;
  options.model = o.model;
  options.recipe = o.common.recipe;
  options.dtype = ToDType(o.common.dtype);
  options.tokens = o.tokens, options.window = o.window;
  options.device = ToDevice(o.common.device);
  options.threads = o.common.threads;
  options.min_score = o.min_score, options.budget = o.budget;
  options.on_progress = [&](int64_t done, int64_t total) { progress.Update(done, total); };
  options.cancel = guard.flag();
  const auto report = Calibrate(options, text);
  progress.Wipe();
  if (!report.ok() && report.status().code() == Code::kCancelled) return guard.ExitCode();
  if (!report.ok()) return Error(report.status().code(), "{}: {}", o.text, report.status().message());
  NIBBLE_RETURN_IF_ERROR(WritePlan(o.out, report->plan));
  PrintReport(o, *report);
  return kExitOk;
}

}  // namespace

Command AddCalibrate(Parser app) {
  auto o = std::make_shared<Options>();
  const Parser parser = app.Command("calibrate", "Find a plan for a model and a recipe");
  AddModel(parser, o->model);
  parser.Add("--text", o->text, "Calibration text").Required().Type("FILE");
  parser.Add("-o,--out", o->out, "Plan to write").Required().Type("FILE");
  parser.Add("--tokens", o->tokens, "Tokens of the text to use [4096]").Range(2, kMaxWindow).Type("N");
  parser.Add("--window", o->window, "Tokens a sequence [2048]").Range(65, kMaxWindow).Type("N");
  parser
      .Add("--min-score", o->min_score,
           "INT4 scores stay where cosine * (1 - relative L1) reaches this [0.97]")
      .Range(0.0, 1.0)
      .Type("X");
  parser
      .Add("--budget", o->budget,
           "What heads may spend together under sparq and qaq, in the recipe's own cost [1]")
      .Range(0.25, 4.0)
      .Type("X");
  parser.Flag("--json", o->json, "Print one JSON object");
  AddCommon(parser, o->common);
  parser.Check([o] {
    CheckRecipe("--recipe", o->common.recipe, o->common.dtype);
    if (!o->common.plan.empty()) throw UsageError("--plan", "calibrate makes a plan, it takes none");
  });
  parser.Footer(
      "Examples:\n"
      "  nibble calibrate -m models/novelist-10m --text novel.txt --recipe qserve -o qserve.plan.json\n"
      "  nibble eval -m models/novelist-10m --recipe qserve --plan qserve.plan.json --text other.txt");
  return {parser, [o] { return Run(*o); }};
}

}  // namespace nibble::cli
