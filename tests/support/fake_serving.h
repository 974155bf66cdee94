// SPDX-License-Identifier: Apache-2.0
// An engine without a model: every request gets its own prompt back, token by token, at a pace of choice.
// What the server does around an engine is tested with it in milliseconds.
#pragma once
#include <atomic>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

#include "base/check.h"
#include "engine/serving.h"
#include "engine/text_stream.h"
#include "tests/support/run_nibble.h"

namespace nibble::test {

class FakeServing final : public ServingEngine {
 public:
  explicit FakeServing(std::chrono::microseconds pace = std::chrono::microseconds(0), int max_waiting = 1000)
      : pace_(pace), max_waiting_(max_waiting) {
    auto config = ReadModelConfig(Model10m());
    auto tokenizer = Tokenizer::Load(Model10m());
    NIBBLE_CHECK(config.ok() && tokenizer.ok(), "the embedded model");
    config_ = *std::move(config);
    tokenizer_ = *std::move(tokenizer);
    options_.kv_tokens = config_.max_position;
    thread_ = std::thread([this] { Run(); });
  }
  ~FakeServing() override { Stop(); }
  FakeServing(const FakeServing&) = delete;
  FakeServing& operator=(const FakeServing&) = delete;

  std::atomic<bool> fail_next{false};    // the next request ends with an error
  std::atomic<bool> slow_submit{false};  // Submit returns when one of its requests has ended
  std::atomic<int> running{0}, cancelled{0};

  using ServingEngine::Submit;
  Result<std::vector<RequestId>> Submit(std::vector<ServingRequest> requests) override {
    for (const ServingRequest& r : requests) NIBBLE_RETURN_IF_ERROR(Check(r));
    std::unique_lock lock(mutex_);
    if (stopped_ || drained_) return Error(Code::kUnavailable, "the engine takes no more requests");
    if (static_cast<int>(work_.size() + requests.size()) > max_waiting_)
      return Error(Code::kBusy, "{} requests wait already", work_.size());
    std::vector<RequestId> ids;
    for (ServingRequest& r : requests) {
      ids.push_back(++last_id_);
      TextStream text(*tokenizer_, r.stop);
      work_.emplace(last_id_, Work{std::move(r), std::move(text), 0, false});
      ++running;
    }
    changed_.notify_all();
    if (slow_submit) changed_.wait(lock, [&] { return !work_.contains(ids[0]); });
    return ids;
  }
  Status Check(const ServingRequest& r) const override {
    const auto size = static_cast<int64_t>(r.prompt.size());
    for (const int32_t id : r.prompt)
      if (id < 0 || id >= config_.vocab)
        return Error(Code::kInvalidArgument, "token {} is not in the vocabulary", id);
    NIBBLE_RETURN_IF_ERROR(CheckSampling(r.sampling, config_.vocab));
    if (size + r.max_tokens > config_.max_position)
      return Error(Code::kInvalidArgument, "{} + {} tokens, the context is {}", size, r.max_tokens,
                   config_.max_position);
    return {};
  }
  void Cancel(RequestId id) override {
    const std::lock_guard lock(mutex_);
    if (const auto found = work_.find(id); found != work_.end() && !found->second.cancel) {
      found->second.cancel = true;
      ++cancelled;
    }
    changed_.notify_all();
  }
  void Drain() override { drained_ = true; }
  bool WaitIdle(std::chrono::milliseconds) override { return running == 0; }
  void Stop() override {
    {
      const std::lock_guard lock(mutex_);
      stopped_ = true;
      for (auto& [id, work] : work_) work.cancel = true;
    }
    changed_.notify_all();
    if (thread_.joinable()) thread_.join();
  }

  ServingStats Stats() const override {
    ServingStats stats;
    stats.running = running;
    return stats;
  }
  Status Health() const override { return {}; }
  const ModelConfig& config() const override { return config_; }
  const Tokenizer& tokenizer() const override { return *tokenizer_; }
  const AttentionRecipe& recipe() const override { return recipe_; }
  const ServingOptions& options() const override { return options_; }
  KvSizes kv_sizes() const override { return {}; }
  size_t weight_bytes() const override { return 0; }
  std::vector<std::string> Explain() const override { return {}; }
  std::vector<std::string> Notes() const override { return {}; }

 private:
  struct Work {
    ServingRequest request;
    TextStream text;
    int made;
    bool cancel;
  };

  void Run() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [this] { return stopped_ || !work_.empty(); });
      if (work_.empty()) return;
      std::vector<RequestId> ids;
      for (const auto& [id, work] : work_) ids.push_back(id);
      for (const RequestId id : ids) {
        Work& work = work_.at(id);
        const bool cancel = work.cancel;
        lock.unlock();  // as the engine calls: without a lock that Submit or Cancel want
        const bool ended = Step(id, cancel, &work);
        lock.lock();
        if (!ended) continue;
        work_.erase(id), --running;
        changed_.notify_all();
      }
      lock.unlock();
      if (pace_.count() > 0) std::this_thread::sleep_for(pace_);
      lock.lock();
    }
  }

  bool Step(RequestId id, bool cancel, Work* work) {
    const ServingRequest& r = work->request;
    ServingEvent event{.id = id};
    event.usage.prompt_tokens = static_cast<int64_t>(r.prompt.size());
    std::vector<TokenLogprobs> logprobs, prompt_logprobs;
    if (work->made == 0 && r.prompt_logprobs >= 0) {
      for (size_t i = 1; i < r.prompt.size(); ++i) prompt_logprobs.push_back({{r.prompt[i], -1.5f}, {}});
      event.prompt_logprobs = prompt_logprobs;
    }
    std::string text;
    int32_t token = 0;
    if (cancel) {
      event.finish = FinishReason::kCancelled;
    } else if (fail_next.exchange(false)) {
      event.finish = FinishReason::kError;
      event.error = "made to fail";
    } else if (work->made >= r.max_tokens) {
      event.finish = FinishReason::kLength;
    } else {
      token = r.prompt[static_cast<size_t>(work->made++) % r.prompt.size()];
      text = work->text.Push(token);
      event.tokens = {&token, 1};
      if (r.logprobs >= 0) logprobs.push_back({{token, -0.5f}, {}});
      event.logprobs = logprobs;
      if (work->text.stopped())
        event.finish = FinishReason::kStop, event.stop_index = 0;
      else if (work->made == r.max_tokens)
        event.finish = FinishReason::kLength;
    }
    if (event.finish) text += work->text.Finish();
    event.text = text;
    event.usage.new_tokens = work->made;
    const std::vector<float> embedding{3, 4};
    if (event.finish && r.pooling != Pooling::kNone) event.embedding = embedding;
    r.on_event(event);
    return event.finish.has_value();
  }

  std::chrono::microseconds pace_;
  int max_waiting_;
  ModelConfig config_;
  std::unique_ptr<Tokenizer> tokenizer_;
  AttentionRecipe recipe_;
  ServingOptions options_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<RequestId, Work> work_;
  RequestId last_id_ = 0;
  bool stopped_ = false;
  std::atomic<bool> drained_{false};
  std::thread thread_;
};

}  // namespace nibble::test
