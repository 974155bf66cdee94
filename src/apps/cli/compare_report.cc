// SPDX-License-Identifier: Apache-2.0
#include "apps/cli/compare_report.h"

#include <algorithm>

#include "apps/cli/table.h"

namespace nibble::cli {
namespace {

// What a recipe saves on, for marks of one shape.
std::string Kind(const RecipeReport& r) {
  if (r.reads_all) return r.float_arithmetic ? "cache" : "arithmetic";
  return r.float_arithmetic ? "selection" : "selection+arithmetic";
}

Json ScoresToJson(const std::vector<RetrievalScore>& scores, const std::vector<RetrievalScore>& exact) {
  Json list = Json::array();
  for (size_t i = 0; i < scores.size(); ++i) {
    const RetrievalScore& s = scores[i];
    Json entry;
    entry["context"] = s.context;
    entry["questions"] = s.questions;
    entry["score"] = s.score();
    entry["of_exact"] =
        i < exact.size() && exact[i].score() > 0 ? Json(s.score() / exact[i].score()) : Json(nullptr);
    entry["all_right"] = s.exact_share;
    entry["by_depth"] = s.by_depth;
    list.push_back(std::move(entry));
  }
  return list;
}

Json ErrorsToJson(const std::vector<LayerError>& errors) {
  Json list = Json::array();
  for (const LayerError& e : errors) list.push_back({{"cosine", e.cosine}, {"relative_l1", e.relative_l1}});
  return list;
}

Json RecipeToJson(const RecipeReport& r, const RecipeReport& exact) {
  Json json;
  json["recipe"] = r.recipe;
  json["canonical"] = r.canonical;
  json["kind"] = Kind(r);
  json["kv_bits_per_value"] = r.kv.bits_per_value;
  json["kv_bytes_per_token"] = r.kv.bytes_per_token;
  json["loss"] = Loss(r, exact);
  if (r.quality) {
    json["perplexity"] = r.quality->perplexity;
    json["nll_per_token"] = r.quality->nll_per_token;
    const ReferenceReport& reference = *r.quality->reference;
    json["reference_perplexity"] = reference.perplexity;
    json["kld_mean"] = reference.kld.mean;
    json["kld_median"] = reference.kld.median;
    json["kld_p99"] = reference.kld.p99;
    json["kld_max"] = reference.kld.max;
    json["same_top"] = reference.same_top;
    json["delta_p_rms"] = reference.delta_p_rms;
  }
  if (r.planned) {
    json["planned"] = {{"kld_mean", r.planned->reference->kld.mean},
                       {"kld_p99", r.planned->reference->kld.p99},
                       {"same_top", r.planned->reference->same_top},
                       {"perplexity", r.planned->perplexity}};
  }
  if (!r.passkey.empty()) json["passkey"] = ScoresToJson(r.passkey, exact.passkey);
  if (!r.repetition.empty()) json["repetition"] = ScoresToJson(r.repetition, exact.repetition);
  if (!r.accumulated.empty())
    json["layers"] = {{"accumulated", ErrorsToJson(r.accumulated)}, {"isolated", ErrorsToJson(r.isolated)}};
  json["bytes_per_step"] = r.reads.rows > 0 ? Json(r.reads.bytes) : Json(nullptr);
  json["scalars_per_step"] = r.reads.rows > 0 ? Json(r.reads.scalars) : Json(nullptr);
  if (r.reads.tail_values > 0) json["tail_clamped"] = r.reads.tail_clamped;
  json["step_seconds"] = r.step_seconds;
  return json;
}

std::string Percent(double share) { return fmt::format("{:.1f}%", 100 * share); }

// "100 98 95": a score a context, as percent.
std::string Scores(const std::vector<RetrievalScore>& scores) {
  std::string text;
  for (const RetrievalScore& s : scores)
    text += fmt::format("{}{:.0f}", text.empty() ? "" : " ", 100 * s.score());
  return text.empty() ? "-" : text;
}

constexpr int kPlanColumn = 5;

double Worst(const std::vector<LayerError>& errors) {
  double worst = 0;
  for (const LayerError& e : errors) worst = std::max(worst, e.relative_l1);
  return worst;
}

// A row of the table; the column of plans is there when `plans`.
std::vector<std::string> Row(const RecipeReport& r, bool recommended, bool plans) {
  const ReferenceReport* q = r.quality && r.quality->reference ? &*r.quality->reference : nullptr;
  std::vector<std::string> row{recommended ? ">" : "",
                               r.recipe,
                               fmt::format("{:.2f}", r.kv.bits_per_value),
                               r.reads.rows > 0 ? HumanBytes(uint64_t(r.reads.bytes)) : "-",
                               q != nullptr ? fmt::format("{:.6f}", q->kld.mean) : "-",
                               r.planned ? fmt::format("{:.6f}", r.planned->reference->kld.mean) : "-",
                               q != nullptr ? fmt::format("{:.5f}", q->kld.p99) : "-",
                               q != nullptr ? Percent(q->same_top) : "-",
                               r.quality ? fmt::format("{:.3f}", r.quality->perplexity) : "-",
                               Scores(r.passkey),
                               Scores(r.repetition),
                               r.isolated.empty() ? "-" : fmt::format("{:.4f}", Worst(r.isolated)),
                               fmt::format("{:.2f} ms", 1000 * r.step_seconds)};
  if (!plans) row.erase(row.begin() + kPlanColumn);
  return row;
}

}  // namespace

Json CompareToJson(const CompareSource& source, const CompareReport& report) {
  const Advice advice = Advise(report);
  const auto name = [&](size_t i) { return report.recipes[i].recipe; };
  Json json;
  json["model"] = source.model;
  json["reference"] = source.reference;
  json["text"] = source.text;
  json["dtype"] = source.dtype;
  if (!source.calibration.empty()) json["calibration"] = source.calibration;
  json["windows"] = report.windows;
  json["window"] = source.window;
  json["tokens"] = report.window_tokens;
  json["context"] = report.context;
  json["contexts"] = report.contexts;
  json["trials"] = source.trials;
  json["attention_tokens"] = report.attention_tokens;
  json["headline"] = advice.headline;
  json["recommended"] = advice.recommended ? Json(name(*advice.recommended)) : Json(nullptr);
  json["recommended_is_good"] = advice.is_good;
  json["good"] = {
      {"kld_mean", kGoodKld}, {"passkey_of_exact", kGoodPassKey}, {"repetition_of_exact", kGoodRepetition}};
  json["least_read"] = advice.least_read ? Json(name(*advice.least_read)) : Json(nullptr);
  json["best_by_bits"] = Json::array();
  for (const Advice::Tier& tier : advice.tiers)
    json["best_by_bits"].push_back({{"max_bits", tier.max_bits}, {"recipe", name(tier.recipe)}});
  for (const auto& [key, front] :
       {std::pair{"bits_front", &advice.bits_front}, std::pair{"read_front", &advice.read_front}}) {
    json[key] = Json::array();
    for (const size_t i : *front) json[key].push_back(name(i));
  }
  json["recipes"] = Json::array();
  json["refused"] = Json::array();
  for (const RecipeReport& r : report.recipes) {
    if (r.refused.empty())
      json["recipes"].push_back(RecipeToJson(r, report.recipes[0]));
    else
      json["refused"].push_back({{"recipe", r.recipe}, {"reason", r.refused}});
  }
  json["seconds"] = report.seconds;
  if (report.cancelled) json["cancelled"] = true;
  return json;
}

std::string CompareToTable(const CompareSource& source, const CompareReport& report) {
  const Advice advice = Advise(report);
  std::string out = fmt::format("  model {}, text {}", source.model, source.text);
  if (report.windows > 0)
    out += fmt::format(": {} tokens in {} windows of {}", HumanCount(report.window_tokens), report.windows,
                       source.window);
  out += fmt::format("{}\n  decode steps at {} tokens; pass key and repetition in % at {} tokens\n\n",
                     report.cancelled ? " (interrupted)" : "", HumanCount(report.context),
                     fmt::join(report.contexts, ", "));
  const bool plans = !source.calibration.empty();
  std::vector<std::string> head{"",           "recipe",   "KV bits",  "read/step",  "KLD",
                                "with plan",  "KLD p99",  "same top", "perplexity", "pass key",
                                "repetition", "layer L1", "step"};
  if (!plans) head.erase(head.begin() + kPlanColumn);
  Table table("ll" + std::string(head.size() - 2, 'r'));
  table.AddRow(std::move(head));
  table.AddRule();
  for (size_t i = 0; i < report.recipes.size(); ++i)
    if (report.recipes[i].refused.empty())
      table.AddRow(Row(report.recipes[i], advice.recommended && *advice.recommended == i, plans));
  out += table.ToString() + "\n";
  for (const RecipeReport& r : report.recipes)
    if (!r.refused.empty()) out += fmt::format("  refused: {}: {}\n", r.recipe, r.refused);
  out += fmt::format("  {}\n", advice.headline);
  for (const Advice::Tier& tier : advice.tiers)
    out += fmt::format("  At most {} KV bits: {}\n", tier.max_bits, report.recipes[tier.recipe].recipe);
  out += fmt::format("  {:.0f} s\n", report.seconds);
  return out;
}

}  // namespace nibble::cli
