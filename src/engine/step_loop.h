// SPDX-License-Identifier: Apache-2.0
// Floor 8. The steps of many requests over one cache: asks the scheduler, moves requests between waiting and
// running, runs the model, hands each answer its rows. One thread. A step that only decodes allocates
// nothing.
#pragma once
#include <array>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cache/kv_cache.h"
#include "cache/kv_swap.h"
#include "engine/answer.h"
#include "engine/scheduler.h"

namespace nibble {

struct StepLoopOptions {
  int max_num_seqs = 1;
  int max_num_batched_tokens = 2;  // > max_num_seqs, at most what the model was loaded for
  int64_t kv_tokens = 0;
  Admission admission = Admission::kPrompt;
  Preemption preemption = Preemption::kRecompute;
  int64_t swap_bytes = 0;      // as ServingOptions
  std::string prefix_scope{};  // as KvCacheOptions
  bool undo = false;           // whether the recipe allows to take rows back: no guesses without
  NgramOptions ngram{};
};

struct StepCounters {
  std::array<uint64_t, kFinishReasons> finished{};
  uint64_t steps = 0, step_rows = 0;
  uint64_t preemptions = 0, swapped = 0, swap_full = 0;  // as ServingStats
  uint64_t prompt_tokens = 0, new_tokens = 0;            // of requests that were admitted
  uint64_t prefix_queried_tokens = 0, prefix_hit_tokens = 0;
  uint64_t drafted = 0, accepted = 0;
  uint64_t visible_tokens = 0;  // that decode rows could have read
};

class StepLoop {
 public:
  static Result<std::unique_ptr<StepLoop>> Make(const EngineParts&, const StepLoopOptions&);
  ~StepLoop();
  StepLoop(const StepLoop&) = delete;
  StepLoop& operator=(const StepLoop&) = delete;

  // REQUIRES a request that CheckRequest and the pool allow. The least rank goes first, of equal ones the
  // older.
  void Add(std::unique_ptr<Answer> answer, int64_t rank);
  void Cancel(RequestId id);  // its last event and its pages, at once; an unknown id: nothing
  void EndAll(FinishReason reason, const std::string& error = {});

  bool idle() const { return waiting_.empty() && running_.empty(); }
  Status Step();  // REQUIRES !idle()

  int running() const { return int(running_.size()); }
  int waiting() const { return int(waiting_.size()); }
  int64_t waiting_tokens() const;
  KvPages pages() const { return cache_->Pages(); }
  int64_t swap_bytes() const { return swap_bytes_; }
  const StepCounters& counters() const { return counters_; }

 private:
  struct Active {
    std::unique_ptr<Answer> answer;
    int64_t rank = 0;
    SeqId seq = -1;              // while it runs
    int64_t length = 0;          // tokens in the cache, or in `swap`
    HostBlock swap{};            // while it waits: what it had, where it was swapped out
    std::vector<int32_t> draft;  // guesses of this step
    JobShare share{};
    int32_t newest_row = -1;  // of the step's logits: the newest token's; -1: not in this step
    bool sampled = false;     // that row was taken already
    bool drawn = false;       // its rows are those of a device that draws
    int64_t new_before = 0;   // tokens of the answer before this step
    bool seen = false;        // was admitted before
  };
  using Queue = std::vector<std::unique_ptr<Active>>;  // in order of rank

  StepLoop(const EngineParts& context, const StepLoopOptions& options);
  Status Init();
  static void Insert(Queue* queue, std::unique_ptr<Active> active);
  Job JobOf(const Active& active) const;
  std::span<const int32_t> Shareable(const Answer& answer, int64_t tokens) const;
  void Guess(Active* active);
  void ListRunning();
  void ListWaiting();
  void Preempt();
  bool TrySwapOut(Active* active);
  void DropSwap(Active* active);
  Status Enter(Active* active, const Job& job);
  void SwapIn(Active* active, int64_t length);
  Status Admit(size_t count);
  void FillStep();
  Status Run();
  void PrepareDraws();
  Status ReadLogits(Tensor logits);
  void SampleTogether();
  void HandRows(Active* active, size_t* row);
  void TakeNewest(Active* active, size_t row);
  void HandGenerated(Active* active, size_t* row);
  std::span<float> LogitsAt(size_t row);
  std::span<const float> HiddenAt(size_t row) const;
  void Release(Active* active);
  void DropFinished();

  const EngineParts c_;
  const StepLoopOptions options_;
  const bool on_host_;  // logits can be read where they are
  Scheduler scheduler_;
  ThreadPool* const threads_;  // or null
  // By thread: a sampler, and room for the logits of a row.
  std::vector<Sampler> samplers_;
  std::vector<std::vector<float>> raw_;
  std::unique_ptr<KvCache> cache_;
  Queue waiting_, running_;
  int64_t swap_bytes_ = 0;  // of all that are swapped out
  StepCounters counters_;

  // The current step.
  std::vector<Job> running_jobs_, waiting_jobs_;
  std::vector<SeqId> seqs_;
  std::vector<int32_t> counts_, tokens_, logit_rows_, best_;
  Buffer device_best_;          // [logit rows] i32
  std::vector<DrawRow> draws_;  // [logit rows] where the device draws, or none
  std::vector<LogitChange> changes_;
  bool best_only_ = false, wants_hidden_ = false;  // best_only_: no logits, whoever chooses the tokens
  float* logits_ = nullptr;                        // [logit rows, vocab] on the host
  std::vector<float> host_logits_, host_hidden_;
  std::vector<Active*> together_;  // whose newest rows are taken beside each other
};

}  // namespace nibble
