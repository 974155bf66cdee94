// SPDX-License-Identifier: Apache-2.0
#include "engine/serving.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "base/check.h"
#include "engine/check_request.h"
#include "engine/serving_plan.h"
#include "engine/step_loop.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point from) {
  return std::chrono::duration<double>(Clock::now() - from).count();
}

class ServingImpl final : public ServingEngine {
 public:
  // `turns`: null for one that has the machine to itself.
  ServingImpl(ServingPlan plan, std::unique_ptr<Engine> engine, FairTurns* turns)
      : plan_(std::move(plan)), engine_(std::move(engine)), turns_(turns != nullptr ? *turns : own_turns_) {}
  ~ServingImpl() override { Stop(); }
  Status Init();

  Result<std::vector<RequestId>> Submit(std::vector<ServingRequest>) override;
  Status Check(const ServingRequest&) const override;
  void Cancel(RequestId) override;
  void Drain() override;
  bool WaitIdle(std::chrono::milliseconds limit) override;
  void Stop() override;
  ServingStats Stats() const override;
  Status Health() const override;

  const ModelConfig& config() const override { return engine_->config(); }
  const Tokenizer& tokenizer() const override { return engine_->tokenizer(); }
  const AttentionRecipe& recipe() const override { return engine_->recipe(); }
  const ServingOptions& options() const override { return plan_.options; }
  KvSizes kv_sizes() const override;
  size_t weight_bytes() const override { return engine_->weight_bytes(); }
  std::vector<std::string> Explain() const override;
  std::vector<std::string> Notes() const override { return engine_->Notes(); }

 private:
  struct Arrival {
    std::unique_ptr<Answer> answer;
    int64_t rank;
  };
  void Main();
  bool TakeArrivals();
  void RunStep();
  Status StepInTurn();
  void Publish();

  const ServingPlan plan_;
  const std::unique_ptr<Engine> engine_;
  std::unique_ptr<StepLoop> loop_;  // engine thread only, once that runs
  const Clock::time_point start_ = Clock::now();
  FairTurns own_turns_;
  FairTurns& turns_;
  const FairTurns::Member member_ = turns_.Join();

  mutable std::mutex mutex_;
  std::condition_variable wake_, idle_;
  std::vector<Arrival> inbox_;
  std::vector<RequestId> cancels_;
  int64_t inbox_tokens_ = 0;
  RequestId next_id_ = 1;
  bool stopping_ = false, idle_now_ = true;
  Status health_;
  ServingStats stats_;
  KvSizes planned_{}, kv_sizes_{};      // the latter with what was really used
  std::atomic<int64_t> step_start_{0};  // of the step under way, in ns since start_, at least 1; 0: none

  // Engine thread.
  std::vector<Arrival> arrivals_;
  std::vector<RequestId> cancelled_;
  uint64_t tokens_read_ = 0;   // by decode rows, all layers and KV heads
  KvUsage k_usage_, v_usage_;  // of this engine's steps
  StepHistogram step_seconds_;

  std::thread thread_;  // last: it uses all of the above
};

Status ServingImpl::Init() {
  const ServingOptions& o = plan_.options;
  NIBBLE_ASSIGN(loop_, StepLoop::Make(engine_->parts(), {.max_num_seqs = o.max_num_seqs,
                                                         .max_num_batched_tokens = o.max_num_batched_tokens,
                                                         .kv_tokens = o.kv_tokens,
                                                         .admission = o.admission,
                                                         .preemption = o.preemption,
                                                         .swap_bytes = o.swap_bytes,
                                                         .prefix_scope = plan_.prefix_scope,
                                                         .undo = plan_.why_no_guesses.empty(),
                                                         .ngram = o.ngram}));
  const auto few = size_t(o.max_waiting);
  inbox_.reserve(few), arrivals_.reserve(few), cancels_.reserve(few), cancelled_.reserve(few);
  const ModelConfig& c = engine_->config();
  planned_ =
      PlanKv({c.layers, c.kv_heads, c.head_dim}, c.heads, engine_->recipe(), o.max_num_seqs, o.kv_tokens);
  Publish();
  thread_ = std::thread([this] { Main(); });
  return {};
}

Status ServingImpl::Check(const ServingRequest& r) const {
  NIBBLE_RETURN_IF_ERROR(CheckRequest(r, engine_->config()));
  const int64_t needed = int64_t(r.prompt.size()) + std::max(r.max_tokens - 1, 0);
  const int64_t pages = needed / kv::kPageTokens, most = plan_.options.kv_tokens / kv::kPageTokens;
  if (pages > most)
    return Error(Code::kInvalidArgument,
                 "{} prompt tokens and max_tokens {} fill {} pages of {} tokens, but the KV pool has {}",
                 r.prompt.size(), r.max_tokens, pages, kv::kPageTokens, most);
  return {};
}

Result<std::vector<RequestId>> ServingImpl::Submit(std::vector<ServingRequest> requests) {
  int64_t tokens = 0;
  for (const ServingRequest& r : requests) {
    NIBBLE_RETURN_IF_ERROR(Check(r));
    tokens += int64_t(r.prompt.size());
  }
  const ServingOptions& o = plan_.options;
  std::vector<RequestId> ids;
  const std::lock_guard lock(mutex_);
  if (!health_.ok() || stats_.draining || stopping_)
    return Error(Code::kUnavailable, "{}", health_.ok() ? "the server is shutting down" : health_.message());
  const auto waiting = int64_t(stats_.waiting) + int64_t(inbox_.size());
  const int64_t waiting_tokens = stats_.waiting_tokens + inbox_tokens_;
  if (waiting + int64_t(requests.size()) > o.max_waiting || waiting_tokens + tokens > o.max_waiting_tokens) {
    stats_.refused += requests.size();
    return Error(Code::kBusy,
                 "the queue is full: {} requests of {} tokens wait, {} of {} more arrive; at most {} and {}",
                 waiting, waiting_tokens, requests.size(), tokens, o.max_waiting, o.max_waiting_tokens);
  }
  const double now = SecondsSince(start_);
  for (ServingRequest& r : requests) {
    const auto rank = int64_t((now + r.priority * o.priority_seconds) * 1e6);
    ids.push_back(next_id_);
    inbox_.push_back(
        {std::make_unique<Answer>(next_id_++, std::move(r), engine_->tokenizer(), engine_->config()), rank});
  }
  inbox_tokens_ += tokens;
  stats_.submitted += ids.size();
  idle_now_ = false;
  wake_.notify_one();
  return ids;
}

void ServingImpl::Cancel(RequestId id) {
  const std::lock_guard lock(mutex_);
  cancels_.push_back(id);
  wake_.notify_one();
}

void ServingImpl::Drain() {
  const std::lock_guard lock(mutex_);
  stats_.draining = true;
}

bool ServingImpl::WaitIdle(std::chrono::milliseconds limit) {
  std::unique_lock lock(mutex_);
  return idle_.wait_for(lock, limit, [this] { return idle_now_; });
}

void ServingImpl::Stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    wake_.notify_one();
  }
  if (thread_.joinable()) thread_.join();
}

ServingStats ServingImpl::Stats() const {
  const std::lock_guard lock(mutex_);
  ServingStats stats = stats_;
  stats.waiting += int(inbox_.size()), stats.waiting_tokens += inbox_tokens_;
  const int64_t step = step_start_.load(std::memory_order_relaxed);
  stats.step_under_way_seconds = step == 0 ? 0 : SecondsSince(start_) - double(step) * 1e-9;
  return stats;
}

Status ServingImpl::Health() const {
  const std::lock_guard lock(mutex_);
  return health_;
}

KvSizes ServingImpl::kv_sizes() const {
  const std::lock_guard lock(mutex_);
  return kv_sizes_;
}

std::vector<std::string> ServingImpl::Explain() const {
  std::vector<std::string> lines = engine_->Explain();
  for (const std::string& line : ExplainServing(plan_)) lines.push_back(line);
  return lines;
}

// Waits for work. False: stop.
bool ServingImpl::TakeArrivals() {
  std::unique_lock lock(mutex_);
  wake_.wait(lock, [this] { return stopping_ || !inbox_.empty() || !cancels_.empty() || !loop_->idle(); });
  arrivals_.swap(inbox_);
  cancelled_.swap(cancels_);
  // They wait in the loop now; Publish counts them there.
  stats_.waiting += int(arrivals_.size()), stats_.waiting_tokens += inbox_tokens_;
  inbox_tokens_ = 0;
  return !stopping_;
}

// What the device counted is taken before another engine's step can add to it.
Status ServingImpl::StepInTurn() {
  Backend& backend = engine_->backend();
  const KvUsage k = backend.Usage(KvSide::kK), v = backend.Usage(KvSide::kV);
  NIBBLE_RETURN_IF_ERROR(loop_->Step());
  tokens_read_ += uint64_t(backend.TakeCounters().tokens_read);
  k_usage_ += backend.Usage(KvSide::kK) - k, v_usage_ += backend.Usage(KvSide::kV) - v;
  return {};
}

void ServingImpl::RunStep() {
  turns_.Take(member_);
  const Clock::time_point start = Clock::now();
  const auto since = std::chrono::duration_cast<std::chrono::nanoseconds>(start - start_).count();
  step_start_.store(std::max<int64_t>(1, since), std::memory_order_relaxed);
  const Status status = StepInTurn();
  step_start_.store(0, std::memory_order_relaxed);
  const double seconds = SecondsSince(start);
  step_seconds_.Add(seconds);
  if (!status.ok()) {
    {
      const std::lock_guard lock(mutex_);
      health_ = status;
    }
    loop_->EndAll(FinishReason::kError, status.message());
  }
  turns_.Give(member_, seconds, !loop_->idle());
}

void ServingImpl::Publish() {
  const StepCounters& c = loop_->counters();
  const KvPages pages = loop_->pages();
  const ModelConfig& m = engine_->config();
  const double heads = double(m.layers) * m.kv_heads;
  KvSizes sizes = planned_;
  TakeUsage(k_usage_, v_usage_, &sizes);

  const std::lock_guard lock(mutex_);
  kv_sizes_ = sizes;
  ServingStats& s = stats_;
  s.running = loop_->running(), s.waiting = loop_->waiting(), s.waiting_tokens = loop_->waiting_tokens();
  s.pages_total = pages.total, s.pages_used = pages.used, s.pages_cached = pages.idle;
  s.finished = c.finished, s.preemptions = c.preemptions;
  s.swapped = c.swapped, s.swap_full = c.swap_full, s.swap_bytes = loop_->swap_bytes();
  s.prompt_tokens = c.prompt_tokens, s.new_tokens = c.new_tokens;
  s.prefix_queried_tokens = c.prefix_queried_tokens, s.prefix_hit_tokens = c.prefix_hit_tokens;
  s.drafted = c.drafted, s.accepted = c.accepted;
  s.steps = c.steps, s.step_rows = c.step_rows, s.step_seconds = step_seconds_;
  s.kv_bits = sizes.bits_per_value;
  if (c.visible_tokens > 0) s.attended_fraction = double(tokens_read_) / heads / double(c.visible_tokens);
  idle_now_ = loop_->idle() && inbox_.empty();
  if (idle_now_) idle_.notify_all();
}

void ServingImpl::Main() {
  bool go_on = true;
  while (go_on) {
    go_on = TakeArrivals();
    for (Arrival& a : arrivals_) loop_->Add(std::move(a.answer), a.rank);
    for (const RequestId id : cancelled_) loop_->Cancel(id);
    arrivals_.clear(), cancelled_.clear();
    if (!go_on) loop_->EndAll(FinishReason::kCancelled);
    if (loop_->idle())
      turns_.Forgo(member_);  // of a turn that was meant for what is cancelled now
    else
      RunStep();
    Publish();
  }
}

}  // namespace

namespace {

Result<std::unique_ptr<ServingEngine>> StartOn(std::unique_ptr<Engine> engine, ServingPlan plan,
                                               FairTurns* turns) {
  NIBBLE_RETURN_IF_ERROR(FitPlan(*engine, &plan));
  auto impl = std::make_unique<ServingImpl>(std::move(plan), std::move(engine), turns);
  NIBBLE_RETURN_IF_ERROR(impl->Init());
  return std::unique_ptr<ServingEngine>(std::move(impl));
}

}  // namespace

Result<std::unique_ptr<ServingEngine>> ServingEngine::Start(const ServingOptions& options,
                                                            std::optional<Plan> plan) {
  NIBBLE_ASSIGN(ServingPlan serving, PlanServing(options));
  NIBBLE_ASSIGN(std::unique_ptr<Engine> engine, Engine::Load(serving.options.engine, std::move(plan)));
  return StartOn(std::move(engine), std::move(serving), /*turns=*/nullptr);
}

Result<std::vector<std::unique_ptr<ServingEngine>>> ServingEngine::StartAll(
    const ServingOptions& options, std::span<const std::string> recipes, FairTurns* turns) {
  NIBBLE_CHECK(!recipes.empty() && turns != nullptr, "StartAll of nothing");
  std::vector<std::unique_ptr<Engine>> engines;
  std::vector<ServingPlan> plans;
  for (const std::string& recipe : recipes) {
    ServingOptions own = options;
    own.engine.recipe = recipe;
    NIBBLE_ASSIGN(ServingPlan plan, PlanServing(own));
    auto engine = engines.empty() ? Engine::Load(plan.options.engine) : engines[0]->WithRecipe(recipe);
    if (!engine.ok()) return engine.status();
    engines.push_back(*std::move(engine));
    plans.push_back(std::move(plan));
  }
  // Memory is taken here: nothing runs yet that uses what the engines share.
  std::vector<std::unique_ptr<ServingEngine>> serving;
  for (size_t i = 0; i < engines.size(); ++i) {
    NIBBLE_ASSIGN(auto one, StartOn(std::move(engines[i]), std::move(plans[i]), turns));
    serving.push_back(std::move(one));
  }
  return serving;
}

Result<RequestId> ServingEngine::Submit(ServingRequest request) {
  std::vector<ServingRequest> one;
  one.push_back(std::move(request));
  NIBBLE_ASSIGN(const std::vector<RequestId> ids, Submit(std::move(one)));
  return ids[0];
}

void StepHistogram::Add(double value) {
  const auto at = std::lower_bound(kBounds.begin(), kBounds.end(), value);
  ++counts[size_t(at - kBounds.begin())];
  sum += value;
}

}  // namespace nibble
