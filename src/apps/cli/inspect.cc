// SPDX-License-Identifier: Apache-2.0
// Floor 9. `nibble inspect`: what is in a model folder or a safetensors file, and what it will take in
// memory.
#include <sys/stat.h>

#include <algorithm>
#include <map>
#include <optional>

#include "apps/cli/common.h"
#include "apps/cli/memory_plan.h"
#include "apps/cli/table.h"
#include "io/check_weights.h"
#include "io/manifest.h"
#include "model/work_plan.h"
#include "recipe/two_bit_heads.h"

namespace nibble::cli {
namespace {

struct Options {
  CommonOptions common;
  std::string path;
  bool json = false, check_weights = false, verify = false;
};

struct DtypeTotal {
  int tensors = 0;
  uint64_t bytes = 0;
};

// Everything that is shown, in both forms.
struct Inspection {
  std::unique_ptr<io::Weights> weights;
  std::optional<ModelConfig> config;  // of a folder
  std::map<std::string, DtypeTotal> dtypes;
  uint64_t packed_bytes = 0;
  std::vector<KvPlan> kv;
  std::vector<std::string> notes;
};

Result<Inspection> Inspect(const Options& o) {
  Inspection in;
  if (o.verify) NIBBLE_RETURN_IF_ERROR(io::VerifyManifest(o.path));
  NIBBLE_ASSIGN(in.weights, io::Weights::Open(o.path));
  if (o.check_weights) NIBBLE_RETURN_IF_ERROR(io::CheckWeights(*in.weights));
  in.notes.assign(in.weights->notes().begin(), in.weights->notes().end());
  for (const io::TensorInfo& t : in.weights->tensors()) {
    DtypeTotal& total = in.dtypes[t.dtype];
    ++total.tensors;
    total.bytes += t.bytes;
  }
  struct stat info {};
  if (stat(o.path.c_str(), &info) != 0 || !S_ISDIR(info.st_mode)) return in;

  const DType arithmetic = ToDType(o.common.dtype);
  in.packed_bytes = PackedWeightBytes(in.weights->tensors(), arithmetic);
  auto config = ReadModelConfig(o.path);
  if (!config.ok()) {  // the tensors are worth seeing all the same
    in.notes.push_back("no memory plan: " + config.status().message());
    return in;
  }
  in.config = *std::move(config);
  in.notes.insert(in.notes.end(), in.config->notes.begin(), in.config->notes.end());
  const auto presets = PresetNames();  // planned beside the recipe that the user names
  std::vector<std::string> recipes(presets.begin(), presets.end());
  if (std::find(recipes.begin(), recipes.end(), o.common.recipe) == recipes.end())
    recipes.push_back(o.common.recipe);
  for (const std::string& recipe : recipes) {
    NIBBLE_ASSIGN(KvPlan plan, PlanRecipe(*in.config, recipe, arithmetic));
    in.kv.push_back(std::move(plan));
  }
  NIBBLE_ASSIGN(const AttentionRecipe recipe, ParseRecipe(o.common.recipe, arithmetic));
  for (std::string& line : ExplainTwoBitHeads(recipe, in.config->kv_heads, nullptr))
    in.notes.push_back(fmt::format("{}: {}", o.common.recipe, line));
  return in;
}

std::string WeightFormat(const ModelConfig& c) {
  std::string format = c.weights.format.empty() ? "float" : c.weights.format;
  if (c.weights.int8_embedding) format += ", int8 embedding";
  return format;
}

Json ConfigJson(const ModelConfig& c) {
  return {{"layers", c.layers},
          {"hidden", c.hidden},
          {"intermediate", c.intermediate},
          {"heads", c.heads},
          {"kv_heads", c.kv_heads},
          {"head_dim", c.head_dim},
          {"vocab", c.vocab},
          {"max_position", c.max_position},
          {"sliding_window", c.sliding_window},
          {"tied_head", c.tied_head},
          {"rope_theta", c.rope.theta},
          {"weight_format", WeightFormat(c)}};
}

Json ToJson(const Options& o, const Inspection& in) {
  Json json;
  json["path"] = o.path;
  if (in.config) {
    json["architecture"] = in.config->architecture;
    json["config"] = ConfigJson(*in.config);
  }
  json["files"] = in.weights->files();
  json["total_bytes"] = in.weights->total_bytes();
  Json tensors = Json::array(), formats = Json::array(), plans = Json::array();
  for (const io::TensorInfo& t : in.weights->tensors())
    tensors.push_back({{"name", t.name}, {"dtype", t.dtype}, {"shape", t.shape}, {"bytes", t.bytes}});
  for (const auto& [dtype, total] : in.dtypes)
    formats.push_back({{"dtype", dtype}, {"tensors", total.tensors}, {"bytes", total.bytes}});
  json["formats"] = std::move(formats);
  for (const KvPlan& plan : in.kv) {
    Json contexts = Json::array();
    for (const auto& [tokens, bytes] : plan.contexts)
      contexts.push_back({{"tokens", tokens}, {"bytes", bytes}});
    plans.push_back({{"recipe", plan.recipe},
                     {"kv_bits_per_value", plan.sizes.bits_per_value},
                     {"kv_least_bits_per_value", plan.sizes.least_bits_per_value},
                     {"kv_bytes_per_token", plan.sizes.bytes_per_token},
                     {"tail_bytes_per_seq", plan.sizes.tail_bytes_per_seq},
                     {"gpu_prompt_bytes", plan.sizes.prompt_bytes},
                     {"contexts", std::move(contexts)}});
  }
  if (in.config) {
    const WorkPlan work = PlanWork(*in.config);
    json["memory"] = {{"weight_bytes", in.packed_bytes},
                      {"work_bytes_per_row", work.row_bytes},
                      {"work_bytes_per_logit_row", work.logit_row_bytes},
                      {"gpu_work_bytes_per_row", work.gpu_row_bytes},
                      {"kv", std::move(plans)}};
  }
  json["notes"] = in.notes;
  json["tensors"] = std::move(tensors);
  return json;
}

std::string ConfigText(const Inspection& in) {
  const ModelConfig& c = *in.config;
  Table table("ll");
  table.AddRow({"architecture", c.architecture});
  table.AddRow({"weights", WeightFormat(c)});
  table.AddRow({"layers", fmt::format("{}, hidden {}, MLP {}", c.layers, c.hidden, c.intermediate)});
  table.AddRow({"heads", fmt::format("{} query, {} KV, of {}", c.heads, c.kv_heads, c.head_dim)});
  table.AddRow({"vocabulary", fmt::format("{}, {} head", c.vocab, c.tied_head ? "tied" : "separate")});
  table.AddRow({"context", c.sliding_window > 0
                               ? fmt::format("{}, window {}", c.max_position, c.sliding_window)
                               : fmt::format("{}", c.max_position)});
  return table.ToString();
}

std::string TensorText(const Inspection& in) {
  Table table("llrr");
  table.AddRow({"tensor", "dtype", "shape", "bytes"});
  table.AddRule();
  for (const io::TensorInfo& t : in.weights->tensors())
    table.AddRow({t.name, t.dtype, HumanShape(t.shape), HumanCount(int64_t(t.bytes))});
  table.AddRule();
  for (const auto& [dtype, total] : in.dtypes)
    table.AddRow({fmt::format("{} tensors", total.tensors), dtype, "", HumanCount(int64_t(total.bytes))});
  table.AddRow(
      {fmt::format("{} file{}", in.weights->files().size(), in.weights->files().size() == 1 ? "" : "s"), "",
       "", HumanCount(int64_t(in.weights->total_bytes()))});
  return table.ToString();
}

// A range where the codec chooses bits as it runs.
std::string BitsText(const KvSizes& sizes) {
  if (sizes.least_bits_per_value == sizes.bits_per_value) return fmt::format("{:.3f}", sizes.bits_per_value);
  return fmt::format("{:.3f}..{:.3f}", sizes.least_bits_per_value, sizes.bits_per_value);
}

std::string MemoryText(const Inspection& in) {
  std::string alignment = "lrr";
  std::vector<std::string> head = {"KV cache of one sequence", "bits/value", "bytes/token"};
  for (const auto& [tokens, bytes] : in.kv.front().contexts) {
    alignment += "r";
    head.push_back(fmt::format("{} tokens", HumanCount(tokens)));
  }
  const bool prompts =
      std::any_of(in.kv.begin(), in.kv.end(), [](const KvPlan& p) { return p.sizes.prompt_bytes > 0; });
  if (prompts) alignment += "r", head.emplace_back("prompts on a GPU");
  Table table(alignment);
  table.AddRow(head);
  table.AddRule();
  for (const KvPlan& plan : in.kv) {
    std::vector<std::string> row = {plan.recipe, BitsText(plan.sizes),
                                    HumanCount(plan.sizes.bytes_per_token)};
    for (const auto& [tokens, bytes] : plan.contexts) row.push_back(HumanBytes(bytes));
    if (prompts) row.push_back(HumanBytes(uint64_t(plan.sizes.prompt_bytes)));
    table.AddRow(std::move(row));
  }
  const WorkPlan work = PlanWork(*in.config);
  return fmt::format(
      "  weights in memory  {}\n  work memory        {} a token of a step ({} on a GPU), {} a row of "
      "logits\n\n{}",
      HumanBytes(in.packed_bytes), HumanBytes(uint64_t(work.row_bytes)),
      HumanBytes(uint64_t(work.row_bytes + work.gpu_row_bytes)), HumanBytes(uint64_t(work.logit_row_bytes)),
      table.ToString());
}

Result<int> Run(const Options& o) {
  NIBBLE_ASSIGN(const Inspection in, Inspect(o));
  if (o.json) {
    PrintJson(ToJson(o, in));
    return kExitOk;
  }
  Print(o.path + "\n");
  if (in.config) Print(ConfigText(in) + "\n");
  Print(TensorText(in));
  if (in.config) Print("\n" + MemoryText(in));
  for (const std::string& note : in.notes) Print(fmt::format("  note: {}\n", note));
  return kExitOk;
}

}  // namespace

Command AddInspect(Parser app) {
  auto o = std::make_shared<Options>();
  const Parser parser = app.Command("inspect", "Show what a model folder or a safetensors file holds");
  parser.Add("path", o->path, "Model folder or .safetensors file").Required().Type("PATH");
  parser.Flag("--json", o->json, "Print one JSON object");
  parser.Flag("--check-weights", o->check_weights, "Refuse weights with NaN, infinity or a negative scale");
  parser.Flag("--verify", o->verify, "Compare every file with the manifest that quantize wrote");
  AddCommon(parser, o->common);
  parser.Check([o] { CheckRecipe("--recipe", o->common.recipe, o->common.dtype); });
  parser.Footer(
      "Examples:\n"
      "  nibble inspect models/novelist-10m\n"
      "  nibble inspect models/novelist-10m/model-00001-of-00002.safetensors --json");
  return {parser, [o] { return Run(*o); }};
}

}  // namespace nibble::cli
