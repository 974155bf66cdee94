// SPDX-License-Identifier: Apache-2.0
#include "apps/cli/serve_options.h"

#include <algorithm>
#include <sstream>

#include "apps/cli/compare_recipes.h"

namespace nibble::cli {
namespace {

constexpr const char* kHttp = "HTTP";
constexpr const char* kEngine = "Engine";
constexpr const char* kLimits = "Limits (the rest: --print-limits)";
constexpr uint64_t kMaxKeyFile = 1u << 20;

template <class T>
const Option Add(Parser parser, const char* names, T& value, const std::string& help, const char* type,
                 const char* group) {
  return parser.Add(names, value, help).Type(type).Group(group);
}

void AddHttp(Parser parser, ServeOptions& o) {
  Add(parser, "--host", o.http.host, "Address to listen on; 0.0.0.0 for all [127.0.0.1]", "IP", kHttp)
      .Environment("NIBBLE_HOST");
  Add(parser, "--port", o.http.port, "Port; 0 takes a free one [8080]", "N", kHttp)
      .Environment("NIBBLE_PORT");
  Add(parser, "--http-threads", o.http.threads, "Threads for sockets, and as many for parsing [2]", "N",
      kHttp)
      .Range(1, 64);
  Add(parser, "--api-key", o.api_keys, "Key that clients must show; may be given again [none]", "KEY", kHttp)
      .Environment("NIBBLE_API_KEY");
  Add(parser, "--api-key-file", o.key_file, "File of such keys, one a line", "FILE", kHttp);
  const Option certificate =
      Add(parser, "--ssl-certfile", o.tls_certificate_file,
          "Speak HTTPS with this certificate, those that vouch for it behind it; PEM [none]", "FILE", kHttp);
  Add(parser, "--ssl-keyfile", o.tls_key_file, "Its key, without a password [in the same file]", "FILE",
      kHttp)
      .Needs(certificate);
  Add(parser, "--cors-origin", o.cors_origins,
      "Web page that may ask from a browser, such as https://example.com; * for all [none]", "ORIGIN", kHttp);
  parser.Flag("--no-log", o.no_log, "No log lines on standard error").Group(kHttp);
}

void AddEngine(Parser parser, ServeOptions& o) {
  ServingOptions& e = o.engine;
  Add(parser, "--recipes", o.recipe_lists,
      "Recipes to serve side by side over the same weights, joined by commas; clients ask for NAME:RECIPE, "
      "NAME "
      "alone is the first [--recipe]",
      "LIST", kEngine)
      .Repeats();
  Add(parser, "-a,--served-model-name", o.names,
      "What clients call the model, and further names of it; of several models one each, in their order "
      "[name of "
      "its folder]",
      "NAME", kEngine)
      .Repeats();
  Add(parser, "--chat-template-file", o.template_file, "Take this Jinja template, not the model's", "FILE",
      kEngine);
  Add(parser, "--max-num-seqs,--parallel", e.max_num_seqs, "Requests in flight [16]", "N", kEngine);
  Add(parser, "--max-num-batched-tokens", e.max_num_batched_tokens, "Rows of a step [512]", "N", kEngine);
  Add(parser, "--kv-tokens", e.kv_tokens,
      "Tokens that the KV pool of a recipe holds [what the requests in flight may need]", "N", kEngine);
  Add(parser, "--kv-bytes", e.kv_bytes, "The same as bytes, when --kv-tokens is not given", "N", kEngine);
  Add(parser, "--admission", o.admission,
      "When a request starts: with pages for its prompt, or for the whole of it [prompt]", "prompt|whole",
      kEngine)
      .OneOf({"prompt", "whole"});
  Add(parser, "--preempt", o.preempt,
      "Who loses its pages to an earlier request: run its tokens again, copy what it has to host memory, or "
      "the "
      "latter from 64 tokens on [recompute]",
      "recompute|swap|auto", kEngine)
      .OneOf({"recompute", "swap", "auto"});
  Add(parser, "--swap-space", o.swap_gib,
      "GiB of host memory a recipe for those copies; when full, recompute [4]", "GIB", kEngine)
      .Range(0.0, 1048576.0);
  parser.Flag("--no-prefix-cache", o.no_prefix_cache, "Share no pages between requests").Group(kEngine);
  Add(parser, "--prefix-salt", e.prefix_salt, "Part of every key of the prefix cache", "TEXT", kEngine);
  Add(parser, "--ngram", e.ngram.max_draft, "Tokens guessed a step by prompt lookup; 0 is off [0]", "N",
      kEngine);
  Add(parser, "--watchdog-seconds", o.watchdog_seconds,
      "End the process when a step of the engine takes longer [120]", "S", kEngine)
      .Positive();
}

void AddLimits(Parser parser, ServeOptions& o) {
  server::Limits& l = o.http.limits;
  Add(parser, "--max-connections", o.max_connections,
      "Open connections; 0: 4096, or as many as the system's limit on open files leaves [0]", "N", kLimits)
      .Range(0, 1 << 20);
  Add(parser, "--max-queued-requests", l.max_queued_requests, "Requests that wait; beyond them 429 [1024]",
      "N", kLimits)
      .Range(1, 1 << 20);
  Add(parser, "--max-queued-tokens", l.max_queued_tokens, "Prompt tokens of these [1048576]", "N", kLimits)
      .Positive();
  Add(parser, "--max-body-bytes", l.max_body_bytes, "Of one request [33554432]", "N", kLimits).Positive();
  Add(parser, "--drain-seconds", l.drain_seconds, "For running requests after SIGTERM [30]", "S", kLimits)
      .NonNegative();
  Add(parser, "--idle-seconds", l.idle_seconds, "Of a connection between requests [75]", "S", kLimits)
      .Positive();
  parser.Flag("--print-limits", o.print_limits, "Print every limit and exit").Group(kLimits).NotInFile();
}

}  // namespace

void AddServeOptions(Parser parser, ServeOptions& o) {
  parser.Add("-m,--model", o.models, "Hugging Face model folder; may be given again")
      .Repeats()
      .Type("DIR")
      .Environment("NIBBLE_MODEL");
  AddConfigFile(parser, "Settings", o.config);
  AddHttp(parser, o);
  AddEngine(parser, o);
  AddLimits(parser, o);
  AddPlacement(parser, o.common);
  AddCommon(parser, o.common);
}

namespace {

void TakeRecipes(Parser parser, ServeOptions& o) {
  if (parser.Given("--recipes") && parser.Given("--recipe"))
    throw UsageError("--recipes", "give this list or --recipe, not both");
  o.recipes.clear();
  for (const std::string& list : o.recipe_lists) {
    const auto split = SplitRecipes(list, ToDType(o.common.dtype));
    if (!split.ok()) throw UsageError("--recipes", split.status().message());
    o.recipes.insert(o.recipes.end(), split->begin(), split->end());
  }
  const char* option = o.recipes.empty() ? "--recipe" : "--recipes";
  if (o.recipes.empty())
    o.recipes.push_back(o.common.recipe);
  else
    o.common.recipe.clear();  // --print-config would set both
  for (size_t i = 0; i < o.recipes.size(); ++i) {
    CheckRecipe(option, o.recipes[i], o.common.dtype);
    if (std::find(o.recipes.begin(), o.recipes.begin() + ptrdiff_t(i), o.recipes[i]) !=
        o.recipes.begin() + ptrdiff_t(i))
      throw UsageError(option, fmt::format("{} is given twice", o.recipes[i]));
  }
}

}  // namespace

void CheckServeOptions(Parser parser, ServeOptions& o) {
  if (o.print_limits) return;
  if (o.models.empty()) throw UsageError("--model is required");
  if (o.models.size() > 1 && !o.names.empty() && o.names.size() != o.models.size())
    throw UsageError("--served-model-name", fmt::format("{} names for {} models, expected one each",
                                                        o.names.size(), o.models.size()));
  for (const std::string& name : o.names)
    if (name.empty()) throw UsageError("--served-model-name", "empty, expected a name");
  for (const std::string& key : o.api_keys)
    if (key.empty()) throw UsageError("--api-key", "empty, expected a key");
  if (o.swap_gib != ServeOptions{}.swap_gib && o.preempt == "recompute")  // --print-config prints the default
    throw UsageError("--swap-space", "is of no use with --preempt recompute");
  if (o.preempt != "recompute" && o.admission == "whole")
    throw UsageError("--preempt", fmt::format("{}: nothing is preempted with --admission whole", o.preempt));
  TakeRecipes(parser, o);
  if (const Status status = CheckServing(ToServingOptions(o, o.models[0])); !status.ok())
    throw UsageError("serve", status.message());
}

ServingOptions ToServingOptions(const ServeOptions& o, const std::string& model) {
  ServingOptions options = o.engine;
  options.engine = ToEngineOptions(model, o.common);
  options.prefix_cache = !o.no_prefix_cache;
  options.admission = o.admission == "whole" ? Admission::kWhole : Admission::kPrompt;
  options.preemption = o.preempt == "swap"   ? Preemption::kSwap
                       : o.preempt == "auto" ? Preemption::kAuto
                                             : Preemption::kRecompute;
  options.swap_bytes = static_cast<int64_t>(o.swap_gib * (1 << 30));
  options.max_waiting = o.http.limits.max_queued_requests;
  options.max_waiting_tokens = o.http.limits.max_queued_tokens;
  return options;
}

Result<std::vector<std::string>> ReadApiKeys(const ServeOptions& o) {
  std::vector<std::string> keys = o.api_keys;
  if (o.key_file.empty()) return keys;
  NIBBLE_ASSIGN(const std::string text, ReadText(o.key_file, kMaxKeyFile));
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.pop_back();
    if (!line.empty()) keys.push_back(line);
  }
  if (keys.empty()) return Error(Code::kInvalidArgument, "--api-key-file {}: holds no key", o.key_file);
  return keys;
}

}  // namespace nibble::cli
