// SPDX-License-Identifier: Apache-2.0
#include "apps/server/metrics.h"

#include <fmt/format.h>

#include <algorithm>

namespace nibble::server {
namespace {

std::vector<double> Tokens() {
  std::vector<double> bounds;
  for (double power = 1; power <= 100'000; power *= 10)
    for (const double step : {1.0, 2.0, 5.0}) bounds.push_back(step * power);
  return bounds;
}

std::vector<double> RequestSeconds() {
  return {0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
}

// In a label's value.
std::string Escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '\\' || c == '"') out += '\\';
    out += c == '\n' ? ' ' : c;
  }
  return out;
}

class Writer {
 public:
  explicit Writer(const MetricsInfo& info) : model_(fmt::format("model_name=\"{}\"", Escaped(info.model))) {}

  void Gauge(std::string_view name, std::string_view help, double value, std::string_view labels = "") {
    Line(name, "gauge", help, fmt::format("{}", value), labels);
  }
  void Counter(std::string_view name, std::string_view help, uint64_t value, std::string_view labels = "") {
    Line(name, "counter", help, fmt::format("{}", value), labels);
  }
  void Write(const Histogram& histogram, std::string_view name, std::string_view help) {
    histogram.Write(name, help, model_, &out_);
  }
  std::string Take() { return std::move(out_); }

 private:
  void Line(std::string_view name, std::string_view type, std::string_view help, std::string_view value,
            std::string_view labels) {
    if (name != last_)
      out_ += fmt::format("# HELP nibble:{} {}\n# TYPE nibble:{} {}\n", name, help, name, type);
    last_ = name;
    out_ += fmt::format("nibble:{}{{{}{}{}}} {}\n", name, model_, labels.empty() ? "" : ",", labels, value);
  }

  std::string model_, last_, out_;
};

const char* FinishLabel(size_t reason) {
  constexpr const char* kLabels[] = {"stop", "length", "abort", "constraint", "error"};
  static_assert(std::size(kLabels) == kFinishReasons);
  return kLabels[reason];
}

void WriteGauges(const ServingStats& s, const MetricsInfo& info, Writer* w) {
  w->Gauge("num_requests_running", "Requests in flight.", s.running);
  w->Gauge("num_requests_waiting", "Requests that wait for a place.", s.waiting);
  w->Gauge("num_tokens_waiting", "Prompt tokens of those that wait.", static_cast<double>(s.waiting_tokens));
  const double pages = static_cast<double>(std::max<int64_t>(s.pages_total, 1));
  w->Gauge("kv_cache_usage_perc", "Share of the KV pages that requests hold, 0 to 1.",
           static_cast<double>(s.pages_used) / pages);
  w->Gauge("kv_cache_pages", "KV pages of 64 tokens.", static_cast<double>(s.pages_total));
  w->Gauge("kv_cache_pages_used", "KV pages that requests hold.", static_cast<double>(s.pages_used));
  w->Gauge("kv_cache_pages_cached", "KV pages kept for prefixes alone.", static_cast<double>(s.pages_cached));
  w->Gauge("kv_quant_bits", "Bits a cached value.", s.kv_bits);
  w->Gauge("sparse_attended_fraction", "Of the tokens that decode rows could see, what they read.",
           s.attended_fraction);
  w->Gauge("step_under_way_seconds", "Age of the engine's step that runs now.", s.step_under_way_seconds);
  w->Gauge("model_load_seconds", "How long loading took.", info.load_seconds);
  w->Gauge("http_connections", "Open connections.", info.connections);
  w->Gauge("draining", "1 once the server takes no more requests.", s.draining ? 1 : 0);
  w->Gauge("engine_info", "What runs.", 1,
           fmt::format("version=\"{}\",recipe=\"{}\",device=\"{}\"", info.version, Escaped(info.recipe),
                       Escaped(info.device)));
}

void WriteCounters(const Metrics& metrics, const ServingStats& s, Writer* w) {
  w->Counter("prompt_tokens_total", "Prompt tokens taken in.", s.prompt_tokens);
  w->Counter("generation_tokens_total", "New tokens.", s.new_tokens);
  for (size_t i = 0; i < s.finished.size(); ++i)
    w->Counter("request_success_total", "Requests that ended, by how.", s.finished[i],
               fmt::format("finished_reason=\"{}\"", FinishLabel(i)));
  w->Counter("requests_refused_total", "Requests that the full queue refused.", s.refused);
  w->Counter("num_preemptions_total", "Times that a request lost its pages and came back.", s.preemptions);
  w->Counter("prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache.",
             s.prefix_queried_tokens);
  w->Counter("prefix_cache_hits_total", "Prompt tokens found there.", s.prefix_hit_tokens);
  w->Counter("spec_decode_num_draft_tokens_total", "Tokens guessed by prompt lookup.", s.drafted);
  w->Counter("spec_decode_num_accepted_tokens_total", "Guesses that were right.", s.accepted);
  w->Counter("engine_steps_total", "Steps of the engine.", s.steps);
  w->Counter("engine_step_rows_total", "Rows of these steps.", s.step_rows);
  w->Counter("kernel_fallback_total", "Ops that ran on another kernel than the recipe's; none does.", 0);
  for (size_t i = 1; i < metrics.http_answers.size(); ++i)
    w->Counter("http_answers_total", "Answers by class of status.", metrics.http_answers[i],
               fmt::format("status=\"{}xx\"", i));
}

}  // namespace

void Histogram::Observe(double value, uint64_t times) {
  const size_t i =
      static_cast<size_t>(std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin());
  counts_[i].fetch_add(times, std::memory_order_relaxed);
  sum_.fetch_add(value * static_cast<double>(times), std::memory_order_relaxed);
}

void Histogram::Take(std::span<const uint64_t> counts, double sum) {
  for (size_t i = 0; i < counts_.size(); ++i) counts_[i] = counts[i];
  sum_ = sum;
}

void Histogram::Write(std::string_view name, std::string_view help, std::string_view labels,
                      std::string* out) const {
  *out += fmt::format("# HELP nibble:{} {}\n# TYPE nibble:{} histogram\n", name, help, name);
  uint64_t below = 0;
  for (size_t i = 0; i < counts_.size(); ++i) {
    below += counts_[i].load(std::memory_order_relaxed);
    const std::string bound = i < bounds_.size() ? fmt::format("{}", bounds_[i]) : "+Inf";
    *out += fmt::format("nibble:{}_bucket{{{},le=\"{}\"}} {}\n", name, labels, bound, below);
  }
  *out += fmt::format("nibble:{}_sum{{{}}} {}\nnibble:{}_count{{{}}} {}\n", name, labels,
                      sum_.load(std::memory_order_relaxed), name, labels, below);
}

Metrics::Metrics()
    : time_to_first_token({0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
                           1,     2.5,   5,    7.5,  10,   20,   40,   80,  160,  640, 2560}),
      inter_token_latency({0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3,
                           0.4,   0.5,    0.75,  1,    2.5,   5,    7.5,   10,  20,   40,  80}),
      e2e_latency(RequestSeconds()),
      queue_time(RequestSeconds()),
      prefill_time(RequestSeconds()),
      decode_time(RequestSeconds()),
      inference_time(RequestSeconds()),
      prompt_tokens(Tokens()),
      generation_tokens(Tokens()) {}

void Metrics::ObserveEnd(const ServingUsage& usage, double seconds) {
  e2e_latency.Observe(seconds);
  queue_time.Observe(usage.queued_seconds);
  prefill_time.Observe(usage.prefill_seconds);
  decode_time.Observe(usage.decode_seconds);
  inference_time.Observe(usage.prefill_seconds + usage.decode_seconds);
  prompt_tokens.Observe(static_cast<double>(usage.prompt_tokens));
  generation_tokens.Observe(static_cast<double>(usage.new_tokens));
}

std::string MetricsText(const Metrics& metrics, const ServingStats& stats, const MetricsInfo& info) {
  Writer w(info);
  WriteGauges(stats, info, &w);
  WriteCounters(metrics, stats, &w);
  w.Write(metrics.time_to_first_token, "time_to_first_token_seconds", "From the request to its first token.");
  w.Write(metrics.inter_token_latency, "inter_token_latency_seconds", "From one token to the next.");
  w.Write(metrics.e2e_latency, "e2e_request_latency_seconds", "From the request to its last token.");
  w.Write(metrics.queue_time, "request_queue_time_seconds", "Waiting for a place.");
  w.Write(metrics.prefill_time, "request_prefill_time_seconds", "From the place to the first token.");
  w.Write(metrics.decode_time, "request_decode_time_seconds", "From the first token to the last.");
  w.Write(metrics.inference_time, "request_inference_time_seconds", "From the place to the last token.");
  w.Write(metrics.prompt_tokens, "request_prompt_tokens", "Tokens of prompts.");
  w.Write(metrics.generation_tokens, "request_generation_tokens", "New tokens of requests.");
  Histogram steps(std::vector<double>(StepHistogram::kBounds.begin(), StepHistogram::kBounds.end()));
  steps.Take(stats.step_seconds.counts, stats.step_seconds.sum);
  w.Write(steps, "engine_step_seconds", "Steps of the engine.");
  return w.Take();
}

}  // namespace nibble::server
