// SPDX-License-Identifier: Apache-2.0
// Floor 9. `nibble eval`: perplexity of a text, and the divergence from a reference.
#include <optional>

#include "apps/cli/common.h"
#include "apps/cli/progress.h"
#include "apps/cli/table.h"
#include "engine/evaluate.h"
#include "quant/kv/registry.h"

namespace nibble::cli {
namespace {

constexpr int kMaxWindow = 1 << 24;

struct Options {
  CommonOptions common;
  std::string model, text;
  int window = 2048, max_windows = 40;
  std::string reference, reference_recipe = "exact", reference_dtype = "f32";
  bool has_reference = false, json = false, as_prompt = false;
};

// QAQ: what its widths came to, and what the paper's formula makes of it.
void AddUsage(Json& json, const KvSizes& kv, const Engine& engine) {
  const AttentionRecipe& recipe = engine.recipe();
  if (!kv::Get(recipe.k).requantizes && !kv::Get(recipe.v).requantizes) return;
  const KvUsage &k = kv.k_usage, &v = kv.v_usage;
  const auto paper = [](const KvUsage& u, double bits) {
    return u.values == 0 ? bits : double(u.paper_bits) / double(u.values);
  };
  json["kv_bits_k"] = kv.k_bits;
  json["kv_bits_v"] = kv.v_bits;
  json["kv_bits_paper"] = (paper(k, kv.k_bits) + paper(v, kv.v_bits)) / 2;
  json["kv_ratio"] = 16 / kv.bits_per_value;
  json["kv_ratio_paper"] = 16 / double(json["kv_bits_paper"]);
  json["kv_narrowings"] = k.narrowings + v.narrowings;
  json["kv_widenings"] = k.widenings + v.widenings;
  json["kv_starved"] = k.starved + v.starved;
  json["kv_host_bytes"] = k.host_bytes + v.host_bytes;
}

Json ToJson(const EvaluateReport& report, const Engine& engine, const RowReads& reads) {
  const KvSizes kv = engine.kv_sizes();
  Json json;
  json["windows"] = report.windows;
  json["tokens"] = report.tokens;
  json["nll_per_token"] = report.nll_per_token;
  json["perplexity"] = report.perplexity;
  if (report.reference) {
    const ReferenceReport& r = *report.reference;
    json["reference_nll_per_token"] = r.nll_per_token;
    json["reference_perplexity"] = r.perplexity;
    json["kld_mean"] = r.kld.mean;
    json["kld_median"] = r.kld.median;
    json["kld_p99"] = r.kld.p99;
    json["kld_p999"] = r.kld.p999;
    json["kld_max"] = r.kld.max;
    json["same_top"] = r.same_top;
    json["delta_p_rms"] = r.delta_p_rms;
  }
  json["recipe"] = ToString(engine.recipe());
  json["kv_bits_per_value"] = kv.bits_per_value;
  json["kv_bytes_per_token"] = kv.bytes_per_token;
  AddReads(reads, &json);
  AddUsage(json, kv, engine);
  json["weight_bytes"] = engine.weight_bytes();
  json["seconds"] = report.seconds;
  if (report.cancelled) json["cancelled"] = true;
  return json;
}

std::string ToTable(const Options& o, const EvaluateReport& report, const Engine& engine,
                    const RowReads& reads) {
  const KvSizes kv = engine.kv_sizes();
  Table table("ll");
  const auto row = [&table](const char* name, std::string value) { table.AddRow({name, std::move(value)}); };
  row("model", o.model);
  row("recipe", ToString(engine.recipe()));
  row("text", fmt::format("{}: {} tokens in {} windows of {}{}", o.text, HumanCount(report.tokens),
                          report.windows, o.window, report.cancelled ? " (interrupted)" : ""));
  row("perplexity", fmt::format("{:.4f}", report.perplexity));
  row("nll per token", fmt::format("{:.6f}", report.nll_per_token));
  row("KV bits per value", fmt::format("{:.3f}", kv.bits_per_value));
  row("KV bytes per token", HumanCount(kv.bytes_per_token));
  row("KV read per token", HumanBytes(size_t(reads.bytes)));
  row("weights in memory", HumanBytes(engine.weight_bytes()));
  if (reads.sas_rows > 0)
    row("dropped by SAS",
        fmt::format("{:.4f}% of the weight, {:.1f} tokens a row", 100 * reads.sas_mass, reads.sas_weights));
  if (reads.tail_values > 0)
    row("clamped in open pages", fmt::format("{:.4f}% of the values", 100 * reads.tail_clamped));
  row("time", fmt::format("{:.2f} s", report.seconds));
  if (report.reference) {
    const ReferenceReport& r = *report.reference;
    table.AddRule();
    row("reference", o.reference);
    row("reference recipe", fmt::format("{} ({})", o.reference_recipe, o.reference_dtype));
    row("reference perplexity",
        fmt::format("{:.4f} (ratio {:.5f})", r.perplexity, report.perplexity / r.perplexity));
    row("KL divergence, mean", fmt::format("{:.6f}", r.kld.mean));
    row("KL divergence, median", fmt::format("{:.6f}", r.kld.median));
    row("KL divergence, p99", fmt::format("{:.6f}", r.kld.p99));
    row("KL divergence, p99.9", fmt::format("{:.6f}", r.kld.p999));
    row("KL divergence, max", fmt::format("{:.6f}", r.kld.max));
    row("same top token", fmt::format("{:.2f}%", 100 * r.same_top));
    row("RMS change of p(token)", fmt::format("{:.3f}%", 100 * r.delta_p_rms));
  }
  return table.ToString();
}

Result<std::unique_ptr<Engine>> LoadReference(const Options& o) {
  CommonOptions common;  // its own recipe, dtype and no explanation of its own
  common.device = o.common.device;
  common.threads = o.common.threads;
  common.numa = o.common.numa;
  common.recipe = o.reference_recipe;
  common.dtype = o.reference_dtype;
  common.quiet = o.common.quiet || o.reference == o.model;  // the same notes once
  return LoadEngine(ToEngineOptions(o.reference, common), common);
}

Result<int> Run(const Options& o) {
  NIBBLE_ASSIGN(const std::string text, ReadText(o.text));
  EngineOptions engine_options = ToEngineOptions(o.model, o.common);
  engine_options.max_seqs = 1;
  engine_options.score_as_prompt = o.as_prompt;
  NIBBLE_ASSIGN(const std::unique_ptr<Engine> engine, LoadEngine(engine_options, o.common));
  std::unique_ptr<Engine> reference;
  if (o.has_reference) {
    NIBBLE_ASSIGN(reference, LoadReference(o));
  }

  const SignalGuard guard;
  Progress progress("eval", o.common.quiet);
  EvaluateOptions options;
  options.window = o.window;
  options.max_windows = o.max_windows;
  options.threads = o.common.threads;
  options.on_progress = [&](int64_t done, int64_t total) { progress.Update(done, total); };
  options.cancel = guard.flag();
  const auto report = Evaluate(*engine, reference.get(), text, options);
  progress.Wipe();
  if (!report.ok() && report.status().code() == Code::kCancelled) return guard.ExitCode();
  if (!report.ok()) return Error(report.status().code(), "{}: {}", o.text, report.status().message());
  const RowReads reads = engine->TakeReads();
  if (o.json)
    PrintJson(ToJson(*report, *engine, reads));
  else
    Print(ToTable(o, *report, *engine, reads));
  return report->cancelled ? guard.ExitCode() : kExitOk;
}

}  // namespace

Command AddEval(Parser app) {
  auto o = std::make_shared<Options>();
  const Parser parser = app.Command("eval", "Measure perplexity and the divergence from a reference");
  AddModel(parser, o->model);
  parser.Add("--text", o->text, "Text file to score").Required().Type("FILE");
  parser.Add("--window", o->window, "Tokens a window, the begin-of-text token included [2048]")
      .Range(2, kMaxWindow)
      .Type("N");
  parser.Add("--max-windows", o->max_windows, "Score at most N windows [40]").Range(1, kMaxWindow).Type("N");
  parser.Flag("--as-prompt", o->as_prompt, "Rows are a prompt's, not decoded ones: no token selection");
  const char* group = "Reference";
  const Option reference =
      parser.Add("--reference", o->reference, "Compare with this model folder [the same as -m]")
          .Type("DIR")
          .Group(group);
  const Option recipe =
      parser.Add("--reference-recipe", o->reference_recipe, "Compare with this recipe [exact]")
          .Type("R")
          .Group(group);
  const Option dtype =
      parser.Add("--reference-dtype", o->reference_dtype, "Arithmetic of the reference: f32 or bf16 [f32]")
          .OneOf({"f32", "bf16"})
          .Type("T")
          .Group(group);
  parser.Flag("--json", o->json, "Print one JSON object");
  AddPlacement(parser, o->common);
  AddCommon(parser, o->common);
  parser.Check([o, reference, recipe, dtype] {
    o->has_reference = reference.given() || recipe.given() || dtype.given();
    if (!reference.given()) o->reference = o->model;
    CheckRecipe("--recipe", o->common.recipe, o->common.dtype);
    CheckRecipe("--reference-recipe", o->reference_recipe, o->reference_dtype);
  });
  parser.Footer(
      "Examples:\n"
      "  nibble eval -m models/novelist-10m --text texts/Doyle_Hound_1902.txt\n"
      "  nibble eval -m out/novelist-w4a8 --reference models/novelist-10m --recipe qserve --text novel.txt "
      "--json\n"
      "  nibble eval -m models/novelist-10m --recipe \"k=int8-token v=int4-token\" --reference-recipe exact "
      "--text novel.txt");
  return {parser, [o] { return Run(*o); }};
}

}  // namespace nibble::cli
