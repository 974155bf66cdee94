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

// The lines of one metric stand together, whichever engine they are of.
class Writer {
 public:
  explicit Writer(std::span<const EngineMetrics> engines) : engines_(engines) {
    for (const EngineMetrics& e : engines)
      labels_.push_back(fmt::format("model_name=\"{}\",recipe=\"{}\"", Escaped(e.model), Escaped(e.recipe)));
  }

  // Of every engine: value(its statistics).
  template <class F>
  void Gauge(std::string_view name, std::string_view help, F&& value) {
    Each(name, "gauge", help, value);
  }
  template <class F>
  void Counter(std::string_view name, std::string_view help, F&& value) {
    Each(name, "counter", help, value);
  }
  // write(engine, labels, &out) writes the lines of every engine.
  template <class F>
  void Histograms(std::string_view name, std::string_view help, F&& write) {
    Head(name, "histogram", help);
    for (size_t i = 0; i < engines_.size(); ++i) write(engines_[i], labels_[i], &out_);
  }
  // Of one label more, or of the whole server: Head, then lines.
  void Head(std::string_view name, std::string_view type, std::string_view help) {
    out_ += fmt::format("# HELP nibble:{} {}\n# TYPE nibble:{} {}\n", name, help, name, type);
  }
  void Line(std::string_view name, std::string_view labels, double value) {
    out_ += fmt::format("nibble:{}{{{}}} {}\n", name, labels, value);
  }
  void Line(std::string_view name, std::string_view labels, uint64_t value) {
    out_ += fmt::format("nibble:{}{{{}}} {}\n", name, labels, value);
  }
  const std::string& labels(size_t engine) const { return labels_[engine]; }
  std::string Take() { return std::move(out_); }

 private:
  template <class F>
  void Each(std::string_view name, std::string_view type, std::string_view help, F&& value) {
    Head(name, type, help);
    for (size_t i = 0; i < engines_.size(); ++i) Line(name, labels_[i], value(engines_[i].stats));
  }

  const std::span<const EngineMetrics> engines_;
  std::vector<std::string> labels_;
  std::string out_;
};

const char* FinishLabel(size_t reason) {
  constexpr const char* kLabels[] = {"stop", "length", "abort", "constraint", "error"};
  static_assert(std::size(kLabels) == kFinishReasons);
  return kLabels[reason];
}

double Perc(int64_t part, int64_t whole) {
  return static_cast<double>(part) / static_cast<double>(std::max<int64_t>(whole, 1));
}

using S = const ServingStats&;

void WriteGauges(Writer* w) {
  w->Gauge("num_requests_running", "Requests in flight.", [](S s) { return double(s.running); });
  w->Gauge("num_requests_waiting", "Requests that wait for a place.", [](S s) { return double(s.waiting); });
  w->Gauge("num_tokens_waiting", "Prompt tokens of those that wait.",
           [](S s) { return double(s.waiting_tokens); });
  w->Gauge("kv_cache_usage_perc", "Share of the KV pages that requests hold, 0 to 1.",
           [](S s) { return Perc(s.pages_used, s.pages_total); });
  w->Gauge("kv_cache_pages", "KV pages of 64 tokens.", [](S s) { return double(s.pages_total); });
  w->Gauge("kv_cache_pages_used", "KV pages that requests hold.", [](S s) { return double(s.pages_used); });
  w->Gauge("kv_cache_pages_cached", "KV pages kept for prefixes alone.",
           [](S s) { return double(s.pages_cached); });
  w->Gauge("swap_space_bytes_used", "Host memory that holds requests which lost their pages.",
           [](S s) { return double(s.swap_bytes); });
  w->Gauge("kv_quant_bits", "Bits a cached value.", [](S s) { return s.kv_bits; });
  w->Gauge("sparse_attended_fraction", "Of the tokens that decode rows could see, what they read.",
           [](S s) { return s.attended_fraction; });
  w->Gauge("step_under_way_seconds", "Age of the engine's step that runs now.",
           [](S s) { return s.step_under_way_seconds; });
}

void WriteCounters(std::span<const EngineMetrics> engines, Writer* w) {
  w->Counter("prompt_tokens_total", "Prompt tokens taken in.", [](S s) { return s.prompt_tokens; });
  w->Counter("generation_tokens_total", "New tokens.", [](S s) { return s.new_tokens; });
  w->Head("request_success_total", "counter", "Requests that ended, by how.");
  for (size_t e = 0; e < engines.size(); ++e)
    for (size_t i = 0; i < kFinishReasons; ++i)
      w->Line("request_success_total", fmt::format("{},finished_reason=\"{}\"", w->labels(e), FinishLabel(i)),
              engines[e].stats.finished[i]);
  w->Counter("requests_refused_total", "Requests that the full queue refused.",
             [](S s) { return s.refused; });
  w->Counter("num_preemptions_total", "Times that a request lost its pages and came back.",
             [](S s) { return s.preemptions; });
  w->Counter("num_preemptions_swapped_total", "Of these, those that were copied to host memory.",
             [](S s) { return s.swapped; });
  w->Counter("swap_space_full_total", "Those that were to be copied and found no room: recomputed.",
             [](S s) { return s.swap_full; });
  w->Counter("prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache.",
             [](S s) { return s.prefix_queried_tokens; });
  w->Counter("prefix_cache_hits_total", "Prompt tokens found there.",
             [](S s) { return s.prefix_hit_tokens; });
  w->Counter("spec_decode_num_draft_tokens_total", "Tokens guessed by prompt lookup.",
             [](S s) { return s.drafted; });
  w->Counter("spec_decode_num_accepted_tokens_total", "Guesses that were right.",
             [](S s) { return s.accepted; });
  w->Counter("engine_steps_total", "Steps of the engine.", [](S s) { return s.steps; });
  w->Counter("engine_step_rows_total", "Rows of these steps.", [](S s) { return s.step_rows; });
  w->Counter("kernel_fallback_total", "Ops that ran on another kernel than the recipe's; none does.",
             [](S) { return uint64_t{0}; });
}

void WriteHistograms(Writer* w) {
  const auto write = [w](const char* name, const char* help, Histogram Metrics::*histogram) {
    w->Histograms(name, help, [&](const EngineMetrics& e, const std::string& labels, std::string* out) {
      (e.requests->*histogram).Write(name, labels, out);
    });
  };
  write("time_to_first_token_seconds", "From the request to its first token.", &Metrics::time_to_first_token);
  write("inter_token_latency_seconds", "From one token to the next.", &Metrics::inter_token_latency);
  write("e2e_request_latency_seconds", "From the request to its last token.", &Metrics::e2e_latency);
  write("request_queue_time_seconds", "Waiting for a place.", &Metrics::queue_time);
  write("request_prefill_time_seconds", "From the place to the first token.", &Metrics::prefill_time);
  write("request_decode_time_seconds", "From the first token to the last.", &Metrics::decode_time);
  write("request_inference_time_seconds", "From the place to the last token.", &Metrics::inference_time);
  write("request_prompt_tokens", "Tokens of prompts.", &Metrics::prompt_tokens);
  write("request_generation_tokens", "New tokens of requests.", &Metrics::generation_tokens);
  constexpr const char* kSteps = "engine_step_seconds";
  w->Histograms(
      kSteps, "Steps of the engine.",
      [](const EngineMetrics& e, const std::string& labels, std::string* out) {
        Histogram steps(std::vector<double>(StepHistogram::kBounds.begin(), StepHistogram::kBounds.end()));
        steps.Take(e.stats.step_seconds.counts, e.stats.step_seconds.sum);
        steps.Write(kSteps, labels, out);
      });
}

void WriteServer(const ServerMetrics& server, std::span<const EngineMetrics> engines, Writer* w) {
  const auto gauge = [w](std::string_view name, std::string_view help, double value) {
    w->Head(name, "gauge", help);
    w->Line(name, "", value);
  };
  gauge("model_load_seconds", "How long loading took, of all models together.", server.load_seconds);
  gauge("http_connections", "Open connections.", server.connections);
  gauge("draining", "1 once the server takes no more requests.", server.draining ? 1 : 0);
  w->Head("http_answers_total", "counter", "Answers by class of status.");
  for (size_t i = 1; i < server.answers.size(); ++i)
    w->Line("http_answers_total", fmt::format("status=\"{}xx\"", i), server.answers[i]);
  w->Head("engine_info", "gauge", "What runs.");
  for (size_t e = 0; e < engines.size(); ++e)
    w->Line(
        "engine_info",
        fmt::format("{},version=\"{}\",device=\"{}\"", w->labels(e), server.version, Escaped(server.device)),
        uint64_t{1});
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

void Histogram::Write(std::string_view name, std::string_view labels, std::string* out) const {
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

std::string MetricsText(const ServerMetrics& server, std::span<const EngineMetrics> engines) {
  Writer w(engines);
  WriteGauges(&w);
  WriteCounters(engines, &w);
  WriteHistograms(&w);
  WriteServer(server, engines, &w);
  return w.Take();
}

}  // namespace nibble::server
