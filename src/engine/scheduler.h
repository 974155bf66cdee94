// SPDX-License-Identifier: Apache-2.0
// Floor 8. Who runs what in the next step: a pure function of the queues and the free pages.
//
// Every running job gets a row, in order of rank; what is left of the step goes to prompts under way, then to
// jobs that wait, then to guesses. A job whose page is full and that finds none free takes the pages of the
// last jobs in the order; where none is behind it, it stands still. So the first job always goes on, ranks do
// not change while jobs wait, and every job becomes the first at some time: nothing starves. No waiting job
// overtakes another one.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace nibble {

struct SchedulerLimits {
  int max_num_seqs = 1;
  int max_num_batched_tokens = 2;  // rows of a step, > max_num_seqs
  int max_logit_rows = 1;          // >= max_num_seqs
};

// Tokens below `length` are in the cache, those up to `tokens` are known and will be fed.
struct Job {
  int64_t rank = 0;     // the least goes first
  int64_t length = 0;   // of a waiting job: tokens that the prefix cache has for it
  int64_t tokens = 1;   // > length
  int64_t planned = 1;  // tokens that it is to have pages for without waiting, once admitted
  int64_t limit = 1;    // tokens that it will feed at most
  // Running: pages that nobody else holds, which its preemption frees for sure. Waiting: pages of its prefix
  // that nobody holds, so that they are among the free ones until it is admitted.
  int64_t own_pages = 0;
  int drafts = 0;           // guesses behind its last token
  bool all_logits = false;  // wants the logits of each row, not of the last known token alone
};

struct JobShare {
  int rows = 0;    // known tokens to feed; 0: stands still
  int drafts = 0;  // guesses to feed behind them
  bool preempted = false;
};

struct StepPlan {
  std::vector<JobShare> running;   // [running]
  std::vector<JobShare> admitted;  // the first jobs that wait
};

// Pages that fill up when a sequence grows from `length` by `rows`.
int64_t PagesFilled(int64_t length, int64_t rows);

class Scheduler {
 public:
  explicit Scheduler(const SchedulerLimits& limits);

  // `running` and `waiting` in order of rank; `waiting` may be cut to those that could have a place. The
  // result depends on the arguments alone and is valid until the next call, which allocates nothing.
  const StepPlan& Plan(std::span<const Job> running, std::span<const Job> waiting, int64_t free_pages);

 private:
  struct Budget {
    int64_t pages, promised;  // free; of these, those that admitted jobs count on
    int rows, logits;         // beyond one for each running job
  };
  int RowsFor(const Job& job, int spare_rows, int spare_logits, int64_t pages) const;
  bool MakeRoom(std::span<const Job> running, size_t job, Budget* budget);
  bool Run(std::span<const Job> running, Budget* budget);
  void Admit(std::span<const Job> waiting, int places, Budget* budget);
  void Guess(std::span<const Job> running, Budget* budget);

  const SchedulerLimits limits_;
  StepPlan plan_;
};

}  // namespace nibble
