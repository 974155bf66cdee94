// SPDX-License-Identifier: Apache-2.0
// Floor 9. `nibble quantize`: a model folder with float weights becomes one with few bits.
#include "apps/cli/common.h"
#include "apps/cli/progress.h"
#include "apps/cli/table.h"
#include "base/thread_pool.h"
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

struct Options {
  CommonOptions common;
  std::string model, out, weights, embedding;
  bool json = false;
};

void PrintReport(const Options& o, const QuantizeReport& r) {
  if (o.json) {
    PrintJson({{"bytes_before", r.bytes_before},
               {"bytes_after", r.bytes_after},
               {"tensors", r.tensors},
               {"seconds", r.seconds}});
    return;
  }
  const double percent = r.bytes_before > 0 ? 100.0 * double(r.bytes_after) / double(r.bytes_before) : 0;
  Print(fmt::format("{}: {} tensors in {}, {} -> {} ({:.0f}%), {:.2f} s\n", o.out, r.tensors, o.weights,
                    HumanBytes(r.bytes_before), HumanBytes(r.bytes_after), percent, r.seconds));
}

Result<int> Run(const Options& o) {
  const SignalGuard guard;
  Progress progress("quantize", o.common.quiet);
  QuantizeOptions options;
  for (const Format& format : kFormats)
    if (o.weights == format.name) options.storage = format.storage;
  options.int8_embedding = o.embedding == "int8";
  options.threads = o.common.threads > 0 ? o.common.threads : AvailableCpus();
  options.on_progress = [&](int64_t done, int64_t total) { progress.Update(done, total); };
  options.cancel = guard.flag();
  const auto report = QuantizeFolder(o.model, o.out, options);
  progress.Wipe();
  if (!report.ok()) {
    // Nothing is left behind, and who pressed Ctrl-C needs no explanation.
    if (report.status().code() == Code::kCancelled && guard.ExitCode() != kExitOk) return guard.ExitCode();
    return report.status();
  }
  PrintReport(o, *report);
  return kExitOk;
}

}  // namespace

Command AddQuantize(CLI::App& app) {
  auto o = std::make_shared<Options>();
  CLI::App* parser = app.add_subcommand("quantize", "Write a model folder with quantized weights");
  AddModel(*parser, o->model);
  parser->add_option("-o,--out", o->out, "Folder to write; it must not exist or be empty")
      ->required()
      ->type_name("DIR");
  std::vector<std::string> names;
  for (const Format& format : kFormats) names.emplace_back(format.name);
  parser->add_option("--weights", o->weights, "w4a8-g128, w4a8-chn or w8a8")
      ->required()
      ->check(CLI::IsMember(names).description(""))
      ->type_name("FORMAT");
  parser->add_option("--quantize-embedding", o->embedding, "int8: embedding and head too (16-bit otherwise)")
      ->check(CLI::IsMember({"int8"}).description(""))
      ->type_name("TYPE");
  parser->add_flag("--json", o->json, "Print sizes and time as one JSON object");
  AddCommon(*parser, o->common);
  parser->footer(
      "Examples:\n"
      "  nibble quantize -m models/novelist-10m -o out/novelist-w4a8 --weights w4a8-g128\n"
      "  nibble quantize -m models/novelist-10m -o out/novelist-w8a8 --weights w8a8 --quantize-embedding "
      "int8");
  return {parser, [o] { return Run(*o); }};
}

}  // namespace nibble::cli
