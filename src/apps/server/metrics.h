// SPDX-License-Identifier: Apache-2.0
// Floor 9. What /metrics shows: vLLM's names under "nibble:", in the text format of Prometheus.
#pragma once
#include <array>
#include <atomic>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/serving.h"

namespace nibble::server {

// Thread-safe; a reader may see a value in the count that is not yet in the sum.
class Histogram {
 public:
  explicit Histogram(std::vector<double> bounds) : bounds_(std::move(bounds)), counts_(bounds_.size() + 1) {}
  void Observe(double value, uint64_t times = 1);
  void Take(std::span<const uint64_t> counts, double sum);  // what was counted elsewhere, by the same bounds
  void Write(std::string_view name, std::string_view labels,
             std::string* out) const;  // without HELP and TYPE

 private:
  std::vector<double> bounds_;
  std::vector<std::atomic<uint64_t>> counts_;  // the last without a bound
  std::atomic<double> sum_{0};
};

// Of the requests of one model under one recipe.
struct Metrics {
  Metrics();

  Histogram time_to_first_token, inter_token_latency, e2e_latency, queue_time, prefill_time, decode_time,
      inference_time, prompt_tokens, generation_tokens;

  // Of a request that has ended.
  void ObserveEnd(const ServingUsage& usage, double seconds);
};

struct EngineMetrics {
  std::string model, recipe;  // labels model_name and recipe of every line
  const Metrics* requests;
  ServingStats stats;
};
struct ServerMetrics {
  std::string device, version;
  double load_seconds = 0;
  int connections = 0;
  bool draining = false;
  std::array<uint64_t, 6> answers{};  // by the first digit of the status
};
// What concerns the whole server has no label of a model.
std::string MetricsText(const ServerMetrics& server, std::span<const EngineMetrics> engines);

}  // namespace nibble::server
