// SPDX-License-Identifier: Apache-2.0
#include "apps/cli/bench_serve.h"

#include <algorithm>
#include <csignal>
#include <numeric>

#include "apps/cli/serve_load.h"

namespace nibble::cli {
namespace {

constexpr int kMaxPrompts = 1'000'000;
constexpr double kMilli = 1e3;

struct Options {
  LoadOptions load;
  double goal_first = 0, goal_token = 0;  // ms; 0: none
  bool json = false;
};

struct Times {  // milliseconds, sorted
  const char* name;
  std::vector<double> samples;

  double At(double share) const {
    if (samples.empty()) return 0;
    const double place = share * static_cast<double>(samples.size() - 1);
    const auto below = static_cast<size_t>(place);
    const size_t above = std::min(below + 1, samples.size() - 1);
    return samples[below] + (samples[above] - samples[below]) * (place - static_cast<double>(below));
  }
  double Mean() const {
    return samples.empty()
               ? 0
               : std::accumulate(samples.begin(), samples.end(), 0.0) / static_cast<double>(samples.size());
  }
};

double PerToken(const RequestOutcome& r) {  // ms a token after the first
  return r.new_tokens > 1 ? (r.total - r.first_token) * kMilli / (r.new_tokens - 1) : 0;
}

std::vector<Times> Collect(const LoadResult& result) {
  std::vector<Times> all{{"ttft_ms", {}}, {"tpot_ms", {}}, {"itl_ms", {}}, {"e2el_ms", {}}};
  for (const RequestOutcome& r : result.requests) {
    if (!r.ok) continue;
    all[0].samples.push_back(r.first_token * kMilli);
    if (r.new_tokens > 1) all[1].samples.push_back(PerToken(r));
    for (const double gap : r.gaps) all[2].samples.push_back(gap * kMilli);
    all[3].samples.push_back(r.total * kMilli);
  }
  for (Times& times : all) std::sort(times.samples.begin(), times.samples.end());
  return all;
}

Json ToJson(const Options& o, const LoadResult& result) {
  int64_t whole = 0, refused = 0, good = 0, tokens = 0;
  for (const RequestOutcome& r : result.requests) {
    if (r.status == 429) ++refused;
    if (!r.ok) continue;
    ++whole, tokens += r.new_tokens;
    const bool first = o.goal_first == 0 || r.first_token * kMilli <= o.goal_first;
    if (first && (o.goal_token == 0 || PerToken(r) <= o.goal_token)) ++good;
  }
  const auto rate = [&](int64_t count) { return static_cast<double>(count) / result.seconds; };
  Json json;
  json["request_rate"] = o.load.rate;
  json["input_tokens"] = o.load.input_tokens;
  json["output_tokens"] = o.load.output_tokens;
  json["requests"] = o.load.prompts;
  json["completed"] = whole;
  json["refused_429"] = refused;
  json["failed"] = o.load.prompts - whole - refused;
  json["seconds"] = result.seconds;
  json["request_throughput"] = rate(whole);
  json["output_throughput"] = rate(tokens);
  json["total_token_throughput"] = rate(tokens + whole * o.load.input_tokens);
  json["request_goodput"] = rate(good);
  for (const Times& times : Collect(result)) {
    json[fmt::format("mean_{}", times.name)] = times.Mean();
    json[fmt::format("median_{}", times.name)] = times.At(0.5);
    json[fmt::format("p90_{}", times.name)] = times.At(0.9);
    json[fmt::format("p99_{}", times.name)] = times.At(0.99);
  }
  return json;
}

void PrintTable(const Json& json) {
  for (const auto& [key, value] : json.items())
    Print(value.is_number_float() ? fmt::format("{:<26}{:>12.2f}\n", key, value.get<double>())
                                  : fmt::format("{:<26}{:>12}\n", key, value.get<int64_t>()));
}

Result<int> Run(const Options& o) {
  std::signal(SIGPIPE, SIG_IGN);
  const LoadResult result = RunLoad(o.load);
  const Json json = ToJson(o, result);
  if (o.json) {
    PrintJson(json);
  } else {
    PrintTable(json);
  }
  if (json["failed"] == 0) return kExitOk;
  for (const RequestOutcome& r : result.requests)
    if (!r.ok && r.status != 429)
      return Error(Code::kIo, "{} requests failed, one of them so: {} {}", json["failed"].get<int64_t>(),
                   r.status, r.error);
  return kExitFailed;
}

void CheckOptions(const Options& o) {
  if (o.load.shared_prefix > o.load.input_tokens)
    throw UsageError("--shared-prefix", "longer than --input-len");
}

}  // namespace

Command AddBenchServe(Parser bench) {
  auto o = std::make_shared<Options>();
  LoadOptions& load = o->load;
  const Parser parser = bench.Command("serve", "Put load on a running server and measure its answers");
  const auto count = [&](const char* name, int& value, int least, int most, const char* help) {
    parser.Add(name, value, help).Range(least, most).Type("N");
  };
  parser.Add("--host", load.host, "Address of the server [127.0.0.1]").Type("IP");
  parser.Add("--port", load.port, "Its port [8080]").Type("N");
  parser.Add("--api-key", load.api_key, "Key to show").Type("KEY").Environment("NIBBLE_API_KEY");
  count("--num-prompts", load.prompts, 1, kMaxPrompts, "Requests [100]");
  parser.Add("--request-rate", load.rate, "Requests a second, Poisson; 0: all at once [0]")
      .NonNegative()
      .Type("R");
  count("--input-len", load.input_tokens, 1, 1 << 20, "Tokens of each prompt, random [256]");
  count("--output-len", load.output_tokens, 1, 1 << 20, "New tokens of each [64]");
  count("--shared-prefix", load.shared_prefix, 0, 1 << 20, "Of the prompt: the same in all [0]");
  count("--max-id", load.max_id, 200, 1 << 24, "Ids of prompts are below it [4000]");
  parser.Add("--temperature", load.temperature, "Of the sampling; 0 is greedy [0]").Range(0.0, 2.0).Type("T");
  parser.Add("--seed", load.seed, "Same seed, same prompts and times [0]").Type("S");
  parser.Add("--goal-ttft", o->goal_first, "Goodput counts answers whose first token came within MS")
      .Type("MS");
  parser.Add("--goal-tpot", o->goal_token, "and whose later tokens took MS each on average").Type("MS");
  parser.Flag("--json", o->json, "Print one JSON object");
  parser.Check([o] { CheckOptions(*o); });
  parser.Footer(
      "Example:\n  nibble bench serve --num-prompts 200 --request-rate 10 --input-len 128 --output-len 64");
  return {parser, [o] { return Run(*o); }};
}

}  // namespace nibble::cli
