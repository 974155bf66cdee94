// SPDX-License-Identifier: Apache-2.0
// Floor 9. `nibble bench`: tokens per second of prompts and of generation, at any depth of the context, in
// the conventions of llama-bench.
#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "apps/cli/bench_run.h"
#include "apps/cli/bench_serve.h"
#include "apps/cli/bench_weights.h"
#include "apps/cli/common.h"
#include "apps/cli/table.h"

namespace nibble::cli {
namespace {

constexpr int kMaxTokens = 1 << 20, kMaxRepetitions = 1000, kMaxBatch = 8192, kMaxSeqs = 1024;
constexpr const char* kRandomWeights = "random weights: speed alone, quality means nothing";
constexpr const char* kRandomDepth = "the depth is filled with random keys and values";

struct Options {
  CommonOptions common;
  std::string model, shape, weights = "w4a8-g128", output = "md";
  std::vector<int> prompt{512}, generate{128};
  std::vector<int> depth{0}, seqs{1};
  int repetitions = 5, batch = 512;
  bool weights_given = false;
};

std::vector<BenchCase> Cases(const Options& o) {
  std::vector<BenchCase> cases;
  for (int depth : o.depth) {
    for (int n : o.prompt)
      if (n > 0) cases.push_back({.prompt = n, .depth = depth});
    for (int n : o.generate)
      for (int seqs : o.seqs)
        if (n > 0) cases.push_back({.generate = n, .depth = depth, .seqs = seqs});
  }
  return cases;
}

std::string CaseName(const BenchCase& c) {
  std::string name = c.prompt > 0 ? fmt::format("pp{}", c.prompt) : fmt::format("tg{}", c.generate);
  if (c.depth > 0) name += fmt::format(" @ d{}", c.depth);
  if (c.seqs > 1) name += fmt::format(" x {}", c.seqs);
  return name;
}

struct Rates {  // tokens a second
  std::vector<double> samples;
  double mean = 0, deviation = 0, median = 0;
};

Rates RatesOf(const BenchCase& c, const BenchResult& result) {
  Rates r;
  for (double seconds : result.seconds) r.samples.push_back(c.tokens() / seconds);
  const auto n = double(r.samples.size());
  r.mean = std::accumulate(r.samples.begin(), r.samples.end(), 0.0) / n;
  for (double x : r.samples) r.deviation += (x - r.mean) * (x - r.mean);
  r.deviation = n > 1 ? std::sqrt(r.deviation / (n - 1)) : 0;
  std::vector<double> sorted = r.samples;
  std::sort(sorted.begin(), sorted.end());
  const size_t half = sorted.size() / 2;
  r.median = sorted.size() % 2 == 1 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
  return r;
}

int64_t PeakBytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;
}

Json ToJson(const Options& o, BenchRun& run, const BenchCase& c, const BenchResult& result) {
  const Rates rates = RatesOf(c, result);
  const std::string& format = run.config().weights.format;
  Json json;
  json["version"] = NIBBLE_VERSION;
  json["device"] = run.backend().Info().name;
  json["model"] = o.shape.empty() ? o.model : o.shape;
  json["weights"] = !o.shape.empty() ? o.weights : format.empty() ? "float" : format;
  json["weight_bytes"] = run.model().weight_bytes();
  json["recipe"] = ToString(run.recipe());
  json["dtype"] = o.common.dtype;
  json["threads"] = run.backend().Info().threads;
  json["batch"] = o.batch;
  json["test"] = CaseName(c);
  json["n_prompt"] = c.prompt;
  json["n_gen"] = c.generate;
  json["n_depth"] = c.depth;
  json["n_seqs"] = c.seqs;
  json["median_ts"] = rates.median;
  json["avg_ts"] = rates.mean;
  json["stddev_ts"] = rates.deviation;
  json["samples_ts"] = rates.samples;
  json["kv_bytes"] = result.kv_bytes;
  json["planned_bytes"] = result.planned_bytes;
  if (const int64_t most = run.backend().MostAllocated(); most > 0) json["device_bytes"] = most;
  json["load_seconds"] = run.load_seconds();
  json["peak_bytes"] = PeakBytes();
  json["random_weights"] = !o.shape.empty();
  json["random_depth"] = c.depth > 0 && !run.FillsByModel();
  return json;
}

std::string CsvCell(const Json& value) {
  if (value.is_array()) {
    std::string cell;
    for (const Json& x : value) cell += (cell.empty() ? "" : ";") + x.dump();
    return cell;
  }
  if (!value.is_string()) return value.dump();
  std::string quoted = "\"";
  for (char c : value.get<std::string>()) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
  return quoted + "\"";
}

void PrintCsv(const Json& row, bool header) {
  std::string names, cells;
  for (const auto& [key, value] : row.items()) {
    names += (names.empty() ? "" : ",") + key;
    cells += (cells.empty() ? "" : ",") + CsvCell(value);
  }
  Print((header ? names + "\n" : "") + cells + "\n");
}

void PrintMarkdown(const Options& o, const Json& row, bool header) {
  if (header) {
    Print("| model | weights | size | recipe | threads | test | tokens/s | KV cache |\n");
    Print("| :-- | :-- | --: | :-- | --: | --: | --: | --: |\n");
  }
  Print(fmt::format("| {} | {} | {} | {} | {} | {} | {:.2f} ± {:.2f} | {} |\n",
                    row["model"].get<std::string>(), row["weights"].get<std::string>(),
                    HumanBytes(row["weight_bytes"]), o.common.recipe, row["threads"].get<int>(),
                    row["test"].get<std::string>(), row["median_ts"].get<double>(),
                    row["stddev_ts"].get<double>(), HumanBytes(row["kv_bytes"])));
}

void PrintFooter(const Options& o, BenchRun& run) {
  Print(fmt::format("\n{}; median ± standard deviation of {}; loaded in {:.2f} s; {} at most in memory\n",
                    run.backend().Info().name, o.repetitions, run.load_seconds(),
                    HumanBytes(uint64_t(PeakBytes()))));
  if (!o.shape.empty()) Print(std::string(kRandomWeights) + "\n");
  const bool deep = std::any_of(o.depth.begin(), o.depth.end(), [](int d) { return d > 0; });
  if (deep && !run.FillsByModel()) Print(std::string(kRandomDepth) + "\n");
}

Status CheckContext(const std::vector<BenchCase>& cases, const Options& o, const ModelConfig& config) {
  for (const BenchCase& c : cases) {
    const int64_t most = c.depth + int64_t{c.tokens() / c.seqs} * (c.depth > 0 ? o.repetitions + 1 : 1);
    if (most > config.max_position)
      return Error(Code::kInvalidArgument,
                   "bench: {} with {} repetitions needs {} tokens of context, the model has {}", CaseName(c),
                   o.repetitions, most, config.max_position);
  }
  return {};
}

Result<int> Run(const Options& o) {
  NIBBLE_ASSIGN(const std::unique_ptr<BenchRun> run,
                BenchRun::Make({.model = o.model,
                                .shape = o.shape,
                                .storage = *weight::FindStorage(o.weights),
                                .recipe = o.common.recipe,
                                .dtype = ToDType(o.common.dtype),
                                .device = ToDevice(o.common.device),
                                .threads = o.common.threads,
                                .numa = ToNumaMode(o.common.numa),
                                .pack_cache = ToPackCache(o.common.pack_cache),
                                .batch = o.batch,
                                .max_seqs = *std::max_element(o.seqs.begin(), o.seqs.end())}));
  const std::vector<BenchCase> cases = Cases(o);
  NIBBLE_RETURN_IF_ERROR(CheckContext(cases, o, run->config()));
  PrintNotes(run->config().notes, o.common);
  if (o.common.explain) {
    fmt::print(stderr, "device: {}\nattention: {}\n", run->backend().Info().name,
               run->backend().ExplainAttention(run->recipe()));
    for (const std::string& line : run->model().Explain()) fmt::print(stderr, "{}\n", line);
  }
  const SignalGuard guard;
  Json all = Json::array();
  for (const BenchCase& c : cases) {
    const auto result = run->Run(c, o.repetitions, *guard.flag());
    if (result.status().code() == Code::kCancelled) break;
    if (!result.ok()) return result.status();
    if (o.common.explain)
      for (const std::string& line : result->memory) fmt::print(stderr, "{}: {}\n", CaseName(c), line);
    const Json row = ToJson(o, *run, c, *result);
    if (o.output == "md") PrintMarkdown(o, row, all.empty());
    if (o.output == "csv") PrintCsv(row, all.empty());
    all.push_back(row);
  }
  if (o.output == "md" && !all.empty()) PrintFooter(o, *run);
  if (o.output == "json") PrintJson(all);
  return guard.ExitCode();
}

void CheckOptions(const Options& o) {
  if (o.model.empty() == o.shape.empty())
    throw UsageError("bench", "give either -m (a folder) or --shape (random weights)");
  if (o.weights_given && o.shape.empty())
    throw UsageError("--weights", "belongs to --shape; a folder has its own format");
  if (!o.common.plan.empty()) throw UsageError("--plan", "bench runs without plans");
  if (o.model.empty() && o.common.pack_cache != "off")
    throw UsageError("--pack-cache", "random weights of --shape are in no folder that could hold the file");
  if (Cases(o).empty()) throw UsageError("-p, -n", "nothing to measure: both are 0");
  CheckRecipe("--recipe", o.common.recipe, o.common.dtype);
}

const Option AddCounts(Parser parser, const char* name, std::vector<int>& counts, int least, int most,
                       const char* text) {
  return parser.Add(name, counts, text).List().Range(least, most).Type("LIST");
}

}  // namespace

Command AddBench(Parser app) {
  auto o = std::make_shared<Options>();
  const Parser parser = app.Command("bench", "Measure tokens per second");
  const std::vector<std::string> shapes(kShapeNames.begin(), kShapeNames.end());
  parser.Add("-m,--model", o->model, "Hugging Face model folder").Type("DIR");
  parser
      .Add("--shape", o->shape,
           "Random weights in the shape of a Llama instead: 1b, 3b, 8b, or four layers of it: 8b-4")
      .OneOf(shapes)
      .Type("S");
  const Option weights = parser.Add("--weights", o->weights,
                                    "Format of --shape: w4a8-g128, w4a8-chn, w8a8, bf16, f16, "
                                    "f32 [w4a8-g128]");
  weights.OneOf({"w4a8-g128", "w4a8-chn", "w8a8", "bf16", "f16", "f32"}).Type("F");
  AddCounts(parser, "-p,--n-prompt", o->prompt, 0, kMaxTokens, "Prompt tokens to process; 0: none [512]");
  AddCounts(parser, "-n,--n-gen", o->generate, 0, kMaxTokens, "Tokens to generate; 0: none [128]");
  AddCounts(parser, "-d,--n-depth", o->depth, 0, kMaxTokens, "Tokens of context before either [0]");
  AddCounts(parser, "-s,--n-seqs", o->seqs, 1, kMaxSeqs, "Sequences that generate together [1]");
  parser.Add("-r,--repetitions", o->repetitions, "Repetitions after a warm-up [5]")
      .Range(1, kMaxRepetitions)
      .Type("N");
  parser.Add("-b,--batch-size", o->batch, "Prompt tokens a step [512]").Range(1, kMaxBatch).Type("N");
  parser.Add("-o,--output", o->output, "md, csv or json [md]").OneOf({"md", "csv", "json"}).Type("FORMAT");
  AddPlacement(parser, o->common);
  AddCommon(parser, o->common);
  auto serve = std::make_shared<Command>(AddBenchServe(parser));
  parser.Check([o, weights, serve] {
    if (serve->parser.chosen()) return;
    o->weights_given = weights.given();
    CheckOptions(*o);
  });
  parser.Footer(
      "Examples:\n"
      "  nibble bench --shape 1b -p 512 -n 128\n"
      "  nibble bench --shape 1b --recipe qserve -p 0 -n 32 -d 0,4096,16384\n"
      "  nibble bench --shape 8b --device cuda --dtype bf16 --recipe qserve -p 0 -d 1024 -s 1,64\n"
      "  nibble bench -m models/novelist-10m -o json");
  return {parser, [o, serve] { return serve->parser.chosen() ? serve->run() : Run(*o); }};
}

}  // namespace nibble::cli
