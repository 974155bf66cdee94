// SPDX-License-Identifier: Apache-2.0
#include "apps/cli/serve_load.h"

#include <chrono>
#include <cmath>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <random>
#include <thread>
#include <utility>

#include "apps/cli/common.h"
#include "apps/server/http_client.h"

namespace nibble::cli {
namespace {

using std::chrono::steady_clock;

constexpr int kFirstId = 100;  // the ids below it are often special
constexpr double kPatience = 600;

double Since(steady_clock::time_point begin) {
  return std::chrono::duration<double>(steady_clock::now() - begin).count();
}

// How many tokens the stream's last usage speaks of; -1: none does.
int NewTokens(const std::string& stream) {
  constexpr std::string_view kKey = "\"completion_tokens\":";
  const size_t at = stream.rfind(kKey);
  return at == stream.npos ? -1 : std::atoi(stream.c_str() + at + kKey.size());
}

// `begin`: when the request was due, from which its times count.
RequestOutcome Ask(const LoadOptions& options, const std::string& body, steady_clock::time_point begin) {
  RequestOutcome outcome;
  auto client = server::HttpClient::Connect(options.host, options.port, kPatience);
  if (!client.ok()) {
    outcome.error = client.status().message();
    return outcome;
  }
  const std::string key =
      options.api_key.empty() ? "" : fmt::format("Authorization: Bearer {}\r\n", options.api_key);
  if (const Status sent = client->SendRequest("POST", "/v1/completions", body, key); !sent.ok()) {
    outcome.error = sent.message();
    return outcome;
  }
  auto last = begin;
  const auto response = client->Read([&](std::string_view piece) {
    if (piece.find("\"text\":") == piece.npos) return true;
    const auto now = steady_clock::now();
    const double gap = std::chrono::duration<double>(now - last).count();
    if (outcome.first_token == 0) {
      outcome.first_token = gap;
    } else {
      outcome.gaps.push_back(gap);
    }
    last = now;
    return true;
  });
  outcome.total = Since(begin);
  if (!response.ok()) {
    outcome.error = response.status().message();
    return outcome;
  }
  outcome.status = response->status;
  outcome.new_tokens = NewTokens(response->body);
  outcome.ok = response->status == 200 && outcome.new_tokens == options.output_tokens &&
               response->body.ends_with("data: [DONE]\n\n");
  if (!outcome.ok) outcome.error = response->body.substr(0, 200);
  return outcome;
}

// Threads that ask, as many as requests are open at once: whoever has an answer takes the next request.
class Askers {
 public:
  explicit Askers(std::function<void(size_t)> ask) : ask_(std::move(ask)) {}
  Askers(const Askers&) = delete;
  Askers& operator=(const Askers&) = delete;
  ~Askers() {  // once all have their answers
    {
      const std::lock_guard lock(mutex_);
      ended_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  void Start(size_t index) {
    const std::lock_guard lock(mutex_);
    due_.push_back(index);
    if (idle_ >= due_.size())
      changed_.notify_one();
    else
      threads_.emplace_back([this] { Run(); });
  }

 private:
  void Run() {
    std::unique_lock lock(mutex_);
    while (true) {
      ++idle_;
      changed_.wait(lock, [this] { return ended_ || !due_.empty(); });
      --idle_;
      if (due_.empty()) return;
      const size_t index = due_.front();
      due_.pop_front();
      lock.unlock();
      ask_(index);
      lock.lock();
    }
  }

  const std::function<void(size_t)> ask_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<size_t> due_;
  size_t idle_ = 0;
  bool ended_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace

std::vector<double> Arrivals(const LoadOptions& options) {
  std::vector<double> times(static_cast<size_t>(options.prompts));
  if (options.rate <= 0) return times;
  std::mt19937_64 random(options.seed);
  double at = 0;
  for (double& time : times) {
    time = at;
    // By hand, so that a seed means the same everywhere.
    const double uniform = (static_cast<double>(random() >> 11) + 0.5) * 0x1p-53;
    at -= std::log(uniform) / options.rate;
  }
  return times;
}

std::string LoadBody(const LoadOptions& options, int index) {
  const auto ids = [&](uint64_t seed, int count, std::string* out) {
    std::mt19937_64 random(seed);
    for (int i = 0; i < count; ++i) {
      const uint64_t id = kFirstId + random() % static_cast<uint64_t>(options.max_id - kFirstId);
      out->append(fmt::format("{}{}", out->empty() ? "" : ",", id));
    }
  };
  std::string prompt;
  ids(options.seed, options.shared_prefix, &prompt);
  ids(options.seed + 1 + static_cast<uint64_t>(index), options.input_tokens - options.shared_prefix, &prompt);
  return fmt::format(
      R"({{"prompt":[{}],"max_tokens":{},"temperature":{},"seed":{},"ignore_eos":true,"stream":true,"stream_options":{{"include_usage":true}}}})",
      prompt, options.output_tokens, options.temperature, index);
}

LoadResult RunLoad(const LoadOptions& options) {
  const std::vector<double> arrivals = Arrivals(options);
  std::vector<std::string> bodies;
  for (int i = 0; i < options.prompts; ++i) bodies.push_back(LoadBody(options, i));
  LoadResult result;
  result.requests.resize(bodies.size());
  const auto begin = steady_clock::now();
  const auto due = [&](size_t i) {
    return begin +
           std::chrono::duration_cast<steady_clock::duration>(std::chrono::duration<double>(arrivals[i]));
  };
  {
    Askers askers([&](size_t i) { result.requests[i] = Ask(options, bodies[i], due(i)); });
    for (size_t i = 0; i < bodies.size(); ++i) {
      std::this_thread::sleep_until(due(i));
      askers.Start(i);
    }
  }
  result.seconds = Since(begin);
  return result;
}

}  // namespace nibble::cli
