// SPDX-License-Identifier: Apache-2.0
// Floor 9. `nibble compare`: what recipes cost and gain on one model and text.
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <set>

#include "apps/cli/common.h"
#include "apps/cli/compare_recipes.h"
#include "apps/cli/compare_report.h"
#include "apps/cli/progress.h"

namespace nibble::cli {
namespace {

constexpr int kMaxWindow = 1 << 24;

struct Options {
  CommonOptions common;
  std::string model, reference, text, calibration, page;
  std::vector<std::string> lists, tasks, recipes;
  bool all = false, json = false;
  CompareOptions compare;
};

// A page that appears when it is complete. Opened before the work, so that a bad path costs no minutes.
class PageFile {
 public:
  explicit PageFile(std::string path) : path_(std::move(path)), part_(path_ + ".part") {}
  ~PageFile() {
    if (file_ == nullptr) return;
    std::fclose(file_);
    std::remove(part_.c_str());
  }
  PageFile(const PageFile&) = delete;
  PageFile& operator=(const PageFile&) = delete;

  Status Open() {
    file_ = std::fopen(part_.c_str(), "wb");
    return file_ != nullptr ? Status() : Error(Code::kIo, "{}: {}", part_, std::strerror(errno));
  }
  Status Write(const std::string& page) {
    const bool written = std::fwrite(page.data(), 1, page.size(), file_) == page.size();
    const bool closed = std::fclose(std::exchange(file_, nullptr)) == 0;
    if (written && closed && std::rename(part_.c_str(), path_.c_str()) == 0) return {};
    const Status status = Error(Code::kIo, "{}: {}", path_, std::strerror(errno));
    std::remove(part_.c_str());
    return status;
  }

 private:
  const std::string path_, part_;
  std::FILE* file_ = nullptr;
};

CompareOptions ToCompareOptions(const Options& o) {
  CompareOptions options = o.compare;
  options.engine = ToEngineOptions(o.model, o.common);
  options.reference = o.reference;
  const auto wants = [&](const char* task) {
    return o.tasks.empty() || std::find(o.tasks.begin(), o.tasks.end(), task) != o.tasks.end();
  };
  options.perplexity = wants("ppl");
  options.passkey = wants("passkey");
  options.repetition = wants("repetition");
  options.calibration_name = o.calibration;
  return options;
}

Result<int> Run(const Options& o) {
  NIBBLE_ASSIGN(const std::string text, ReadText(o.text));
  CompareOptions options = ToCompareOptions(o);
  if (!o.calibration.empty()) {
    NIBBLE_ASSIGN(options.calibration, ReadText(o.calibration));
  }
  std::optional<PageFile> page;
  if (!o.page.empty()) NIBBLE_RETURN_IF_ERROR(page.emplace(o.page).Open());

  const SignalGuard guard;
  Progress progress("compare", o.common.quiet);
  options.on_progress = [&](std::string_view, int64_t done, int64_t total) { progress.Update(done, total); };
  options.cancel = guard.flag();
  const auto report = Compare(o.recipes, text, options);
  progress.Wipe();
  if (!report.ok() && report.status().code() == Code::kCancelled) return guard.ExitCode();
  if (!report.ok() && report.status().code() == Code::kInvalidArgument)
    return Error(Code::kInvalidArgument, "{}: {}", o.text, report.status().message());
  if (!report.ok()) return report.status();

  const CompareSource source{o.model,         o.reference.empty() ? o.model : o.reference,
                             o.text,          o.common.dtype,
                             o.calibration,   o.compare.window,
                             o.compare.trials};
  const Json json = CompareToJson(source, *report);
  if (page) NIBBLE_RETURN_IF_ERROR(page->Write(CompareToPage(json)));
  if (o.json)
    PrintJson(json);
  else
    Print(CompareToTable(source, *report));
  return report->cancelled ? guard.ExitCode() : kExitOk;
}

// Usage errors: what the command line alone shows to be wrong.
void Check(Options* o, Parser parser) {
  if (parser.Given("--recipe")) throw UsageError("--recipe", "compare takes a list: --recipes");
  if (o->all == !o->lists.empty())
    throw UsageError("--recipes", "give a list of recipes, or --all (one of the two)");
  if (!o->calibration.empty() && !o->common.plan.empty())
    throw UsageError("--calibrate", "a plan for each recipe, and --plan one for all: give one of the two");
  std::vector<std::string> recipes = o->all ? AllRecipes() : std::vector<std::string>{};
  for (const std::string& list : o->lists) {
    auto split = SplitRecipes(list, ToDType(o->common.dtype));
    if (!split.ok()) throw UsageError("--recipes", split.status().message());
    recipes.insert(recipes.end(), split->begin(), split->end());
  }
  o->recipes = WithExact(recipes);
}

void AddMeasures(Parser parser, Options* o) {
  const char* group = "Measures";
  const auto count = [&](const char* name, int& value, int least, const char* help) {
    parser.Add(name, value, help).Range(least, kMaxWindow).Type("N").Group(group);
  };
  parser.Add("--tasks", o->tasks, "Of ppl, passkey, repetition, joined by commas [all]")
      .List()
      .OneOf({"ppl", "passkey", "repetition"})
      .Type("LIST")
      .Group(group);
  count("--window", o->compare.window, 2, "Tokens a perplexity window [2048]");
  count("--max-windows", o->compare.max_windows, 1, "Score at most N windows [4]");
  count("--trials", o->compare.trials, 1, "Texts a retrieval task and context length [1]");
  parser
      .Add("--context", o->compare.context,
           "Tokens before a decode step, and of the longest retrieval text [3500, or what fits]")
      .Range(kShortestContext, kMaxWindow)
      .Type("N")
      .Group(group);
  parser
      .Add("--contexts", o->compare.contexts,
           "Tokens of the retrieval texts, joined by commas [--context and its halves]")
      .List()
      .Range(kShortestContext, kMaxWindow)
      .Type("LIST")
      .Group(group);
  parser.Add("--seed", o->compare.seed, "Of the retrieval texts [1]").Type("S").Group(group);
}

}  // namespace

Command AddCompare(Parser app) {
  auto o = std::make_shared<Options>();
  const Parser parser = app.Command("compare", "Measure what recipes cost and gain, side by side");
  AddModel(parser, o->model);
  parser.Add("--text", o->text, "Text file to measure on").Required().Type("FILE");
  parser.Add("--recipes", o->lists, "Recipes, joined by commas; may be given again").Repeats().Type("LIST");
  parser.Flag("--all", o->all, "Every preset, and combinations that make sense");
  parser.Add("--reference", o->reference, "Folder that the exact reference runs [the same as -m]")
      .Type("DIR");
  parser
      .Add("--calibrate", o->calibration,
           "Measure each recipe a second time, with a plan from this text [none]")
      .Type("FILE");
  parser.Add("-o,--out", o->page, "Write a page for a browser, one file that needs nothing else")
      .Type("FILE");
  parser.Flag("--json", o->json, "Print one JSON object");
  AddMeasures(parser, o.get());
  AddCommon(parser, o->common);
  parser.Check([o, parser] { Check(o.get(), parser); });
  parser.Footer(
      "Examples:\n"
      "  nibble compare -m models/novelist-10m --text texts/Doyle_Hound_1902.txt --all -o report.html\n"
      "  nibble compare -m models/novelist-10m --text novel.txt --recipes kv8,kivi4,qserve --tasks ppl\n"
      "  nibble compare -m novelist-w4 --reference models/novelist-10m --text novel.txt --recipes qserve "
      "--json");
  return {parser, [o] { return Run(*o); }};
}

}  // namespace nibble::cli
