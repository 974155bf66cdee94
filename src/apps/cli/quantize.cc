// SPDX-License-Identifier: Apache-2.0
// Floor 9. `nibble quantize`: a model folder with float weights becomes one with few bits.
#include <sys/stat.h>

#include "apps/cli/common.h"
#include "apps/cli/progress.h"
#include "apps/cli/table.h"
#include "base/thread_pool.h"
#include "model/qoq/folder.h"
#include "model/qoq/resume.h"
#include "model/quantize_folder.h"

namespace nibble::cli {
namespace {

struct Format {
  const char* name;
  weight::Storage storage;
};
constexpr Format kFormats[] = {{"w4a8-g128", weight::Storage::kW4A8Group},
                               {"w4a8-chn", weight::Storage::kW4A8Channel},
                               {"w8a8", weight::Storage::kW8A8}};

constexpr char kDefaultText[] = "texts/Stevenson_Treasure_1883.txt";
constexpr int kMinWindow = 64, kMaxWindow = 1 << 20;

struct Options {
  CommonOptions common;
  std::string model, out, weights, embedding, method = "qoq", calibration = kDefaultText;
  std::vector<std::string> passes;
  double alpha = 0;
  bool has_alpha = false, has_passes = false, json = false;
  QoqOptions qoq;
};

Json ToJson(const qoq::LayerReport& layer) {
  Json json;
  json["layer"] = layer.index;
  json["attention"] = {{"alpha", layer.key_alpha},
                       {"beta", layer.key_beta},
                       {"key_error_before", layer.key_error_before},
                       {"key_error", layer.key_error_after}};
  json["value"] = {{"alpha", layer.value_alpha}, {"beta", layer.value_beta}};
  json["mlp"] = {{"alpha", layer.mlp_alpha}, {"beta", layer.mlp_beta}};
  for (int id = 0; id < qoq::kLinears; ++id) {
    const qoq::LinearReport& linear = layer.linear[size_t(id)];
    json["linears"][std::string(qoq::kLinearNames[size_t(id)])] = {{"rtn_error", linear.nearest},
                                                                   {"error", linear.error}};
  }
  json["stream_error"] = layer.stream_error;
  return json;
}

std::string ToTable(const std::vector<qoq::LayerReport>& layers) {
  Table table("rrrrrrrrrrr");
  table.AddRow({"layer", "keys a/b", "values a/b", "mlp a/b", "q", "k", "v", "o", "gate", "up", "down"});
  table.AddRule();
  const auto exponents = [](double a, double b) { return fmt::format("{:.2f}/{:.2f}", a, b); };
  for (const qoq::LayerReport& layer : layers) {
    std::vector<std::string> row = {
        fmt::format("{}", layer.index), exponents(layer.key_alpha, layer.key_beta),
        exponents(layer.value_alpha, layer.value_beta), exponents(layer.mlp_alpha, layer.mlp_beta)};
    for (const qoq::LinearReport& linear : layer.linear)
      row.push_back(linear.nearest > 0 ? fmt::format("{:.2f}", linear.error / linear.nearest) : "-");
    table.AddRow(std::move(row));
  }
  return table.ToString() +
         "  a/b: exponents of the smoothing factors; q ... down: squared output error on the calibration "
         "text "
         "over that of\n  rounding to nearest\n";
}

void PrintReport(const Options& o, const QuantizeReport& r) {
  if (o.json) {
    Json json = {{"bytes_before", r.bytes_before},
                 {"bytes_after", r.bytes_after},
                 {"tensors", r.tensors},
                 {"seconds", r.seconds}};
    if (o.method == "qoq") {
      json["resumed_layers"] = r.resumed_layers;
      for (const qoq::LayerReport& layer : r.layers) json["layers"].push_back(ToJson(layer));
    }
    return PrintJson(json);
  }
  const double percent = r.bytes_before > 0 ? 100.0 * double(r.bytes_after) / double(r.bytes_before) : 0;
  if (!r.layers.empty()) Print(ToTable(r.layers));
  const std::string resumed =
      r.resumed_layers > 0 ? fmt::format(" ({} layers from an earlier run)", r.resumed_layers) : "";
  Print(fmt::format("{}: {} tensors in {}, {} -> {} ({:.0f}%), {:.2f} s{}\n", o.out, r.tensors, o.weights,
                    HumanBytes(r.bytes_before), HumanBytes(r.bytes_after), percent, r.seconds, resumed));
}

Result<QoqOptions> ToQoqOptions(const Options& o) {
  // A model that cannot be read is the better message when the text cannot either.
  NIBBLE_RETURN_IF_ERROR(ReadModelConfig(o.model).status());
  QoqOptions options = o.qoq;
  auto text = ReadText(o.calibration);
  if (text.status().code() == Code::kNotFound)
    return Error(Code::kNotFound, "{}; name a text with --calibration FILE, or use --method rtn",
                 text.status().message());
  NIBBLE_RETURN_IF_ERROR(text.status());
  options.text = *std::move(text);
  options.text_name = o.calibration;
  NIBBLE_ASSIGN(options.recipe, ParseRecipe(o.common.recipe, DType::kF32));
  if (o.has_alpha) options.attention_alpha = o.alpha;
  if (o.has_passes) {
    NIBBLE_ASSIGN(options.passes, qoq::ParsePasses(o.passes));
  }
  return options;
}

Result<int> Run(const Options& o) {
  const SignalGuard guard;
  Progress progress("quantize", o.common.quiet);
  QuantizeOptions options;
  for (const Format& format : kFormats)
    if (o.weights == format.name) options.storage = format.storage;
  options.int8_embedding = o.embedding == "int8";
  if (o.method == "qoq") {
    NIBBLE_ASSIGN(options.qoq, ToQoqOptions(o));
  }
  options.threads = o.common.threads > 0 ? o.common.threads : AvailableCpus();
  options.on_progress = [&](int64_t done, int64_t total) { progress.Update(done, total); };
  options.cancel = guard.flag();
  const auto report = QuantizeFolder(o.model, o.out, options);
  progress.Wipe();
  if (report.ok()) {
    PrintReport(o, *report);
    return kExitOk;
  }
  if (report.status().code() != Code::kCancelled || guard.ExitCode() == kExitOk) return report.status();
  // Who pressed Ctrl-C needs no explanation, only to know that work was kept.
  struct stat info;
  const std::string state = qoq::StateFolder(o.out);
  if (!o.common.quiet && stat(state.c_str(), &info) == 0)
    fmt::print(stderr, "nibble: note: finished layers are kept in {}; the same command continues there\n",
               state);
  return guard.ExitCode();
}

void AddQoqOptions(Parser parser, const std::shared_ptr<Options>& o) {
  const char* group = "QoQ";
  parser.Add("--calibration", o->calibration, fmt::format("Text to calibrate on [{}]", kDefaultText))
      .Type("FILE")
      .Group(group);
  parser.Add("--calibration-tokens", o->qoq.tokens, "Its first N tokens, 0 for all [32768]")
      .NonNegative()
      .Type("N")
      .Group(group);
  parser.Add("--calibration-window", o->qoq.window, "Tokens a window, at most the model's context [2048]")
      .Range(kMinWindow, kMaxWindow)
      .Type("N")
      .Group(group);
  parser
      .Add("--passes", o->passes,
           fmt::format("Some of {} [all]", fmt::join(qoq::PassNames(qoq::Passes{}), ",")))
      .List()
      .Type("LIST")
      .Group(group);
  parser.Add("--alpha", o->alpha, "Exponent of SmoothAttention [searched for each KV head]")
      .Range(0.0, 1.0)
      .Type("A")
      .Group(group);
  parser.Add("--damping", o->qoq.damping, "Damping of GPTQ, as a share of the mean diagonal [0.01]")
      .Range(1e-6, 1e3)
      .Type("D")
      .Group(group);
}

// Options that the chosen method would ignore are mistakes.
void CheckOptions(Parser parser, Options& o) {
  o.has_alpha = parser.Given("--alpha");
  o.has_passes = parser.Given("--passes");
  for (const char* name : {"--calibration", "--calibration-tokens", "--calibration-window", "--passes",
                           "--alpha", "--damping"}) {
    if (o.method == "rtn" && parser.Given(name)) throw UsageError(name, "has no meaning with --method rtn");
  }
  CheckRecipe("--recipe", o.common.recipe, "f32");
  if (o.common.device == "cuda")
    throw UsageError("--device", "quantizing runs on the CPU; leave it out, or say cpu or auto");
  if (!o.has_passes) return;
  const auto passes = qoq::ParsePasses(o.passes);
  if (!passes.ok()) throw UsageError("--passes", passes.status().message());
  if (o.has_alpha && !passes->smooth_attention)
    throw UsageError("--alpha", "needs the pass smooth-attention");
  if (parser.Given("--damping") && !passes->gptq && !passes->clip)
    throw UsageError("--damping", "needs the pass gptq or clip");
}

}  // namespace

Command AddQuantize(Parser app) {
  auto o = std::make_shared<Options>();
  const Parser parser = app.Command("quantize", "Write a model folder with quantized weights");
  AddModel(parser, o->model);
  parser.Add("-o,--out", o->out, "Folder to write; it must not exist or be empty").Required().Type("DIR");
  std::vector<std::string> names;
  for (const Format& format : kFormats) names.emplace_back(format.name);
  parser.Add("--weights", o->weights, "w4a8-g128, w4a8-chn or w8a8").Required().OneOf(names).Type("FORMAT");
  parser.Add("--method", o->method, "qoq: calibrated; rtn: round to nearest [qoq]")
      .OneOf({"qoq", "rtn"})
      .Type("M");
  parser.Add("--quantize-embedding", o->embedding, "int8: embedding and head too (16-bit otherwise)")
      .OneOf({"int8"})
      .Type("TYPE");
  AddQoqOptions(parser, o);
  parser.Flag("--json", o->json, "Print sizes, time and the report by layer as one JSON object");
  AddCommon(parser, o->common);
  parser.Check([o, parser] { CheckOptions(parser, *o); });
  parser.Footer(
      "Examples:\n"
      "  nibble quantize -m models/novelist-10m -o out/novelist-w4a8 --weights w4a8-g128\n"
      "  nibble quantize -m models/novelist-10m -o out/novelist-w4a8 --weights w4a8-g128 --calibration "
      "novel.txt "
      "--passes fold,rotate,gptq\n"
      "  nibble quantize -m models/novelist-10m -o out/novelist-w8a8 --weights w8a8 --method rtn "
      "--quantize-embedding int8");
  return {parser, [o] { return Run(*o); }};
}

}  // namespace nibble::cli
