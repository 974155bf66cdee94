// SPDX-License-Identifier: Apache-2.0
#include "engine/scheduler.h"

#include <algorithm>

#include "base/check.h"
#include "quant/kv/codec.h"

namespace nibble {
namespace {

using kv::kPageTokens;

// A job counts on pages for what is planned and for its next page, so that those who decode seldom take pages
// from each other: what it still has to get behind `length` tokens.
int64_t Promised(const Job& job, int64_t length) {
  const int64_t next = std::min(job.limit / kPageTokens, length / kPageTokens + 1);
  return std::max<int64_t>(0, std::max(job.planned / kPageTokens, next) - length / kPageTokens);
}

bool InOrder(std::span<const Job> jobs) {
  return std::is_sorted(jobs.begin(), jobs.end(), [](const Job& a, const Job& b) { return a.rank < b.rank; });
}

}  // namespace

int64_t PagesFilled(int64_t length, int64_t rows) {
  return (length + rows) / kPageTokens - length / kPageTokens;
}

Scheduler::Scheduler(const SchedulerLimits& limits) : limits_(limits) {
  NIBBLE_CHECK(limits.max_num_seqs > 0 && limits.max_num_batched_tokens > limits.max_num_seqs &&
                   limits.max_logit_rows >= limits.max_num_seqs,
               "limits of the scheduler");
  plan_.running.reserve(size_t(limits.max_num_seqs));
  plan_.admitted.reserve(size_t(limits.max_num_seqs));
}

// One row and as many as can be had: of the spare rows and logits, and of the free pages.
int Scheduler::RowsFor(const Job& job, int spare_rows, int spare_logits, int64_t pages) const {
  const int64_t in_page = job.length % kPageTokens;
  int64_t rows = std::min(job.tokens - job.length, int64_t{1} + spare_rows);
  if (job.all_logits) rows = std::min(rows, int64_t{1} + spare_logits);
  return int(std::min(rows, (pages + 1) * kPageTokens - 1 - in_page));
}

// Takes the pages of the last job behind `job` that has any. False when there is nothing to take now.
bool Scheduler::MakeRoom(std::span<const Job> running, size_t job, Budget* budget) {
  size_t shared = 0;  // the last one that has pages, all of which others hold too
  for (size_t i = running.size(); --i > job;) {
    if (plan_.running[i].preempted) continue;
    if (running[i].own_pages > 0) {
      plan_.running[i].preempted = true;
      budget->pages += running[i].own_pages;
      return true;
    }
    if (shared == 0 && running[i].length >= kPageTokens) shared = i;
  }
  // Those who share pages give them up one after the other: in the next step they are the other's own.
  if (shared != 0) plan_.running[shared].preempted = true;
  return false;
}

// False when a job was preempted or stands still.
bool Scheduler::Run(std::span<const Job> running, Budget* budget) {
  bool smooth = true;
  for (size_t i = 0; i < running.size(); ++i) {
    JobShare& share = plan_.running[i];
    if (share.preempted) continue;
    const Job& job = running[i];
    do {
      share.rows = RowsFor(job, budget->rows, budget->logits, budget->pages);
      if (share.rows > 0) break;
      smooth = false;
    } while (MakeRoom(running, i, budget));
    if (share.rows == 0) continue;
    budget->pages -= PagesFilled(job.length, share.rows);
    budget->promised += Promised(job, job.length + share.rows);
    budget->rows -= share.rows - 1;
    if (job.all_logits) budget->logits -= share.rows - 1;
  }
  return smooth;
}

void Scheduler::Admit(std::span<const Job> waiting, int places, Budget* budget) {
  for (const Job& job : waiting) {
    if (places-- <= 0 || budget->rows <= 0 || budget->logits <= 0) return;
    if (job.own_pages + Promised(job, job.length) + budget->promised > budget->pages) return;
    budget->pages -= job.own_pages;
    const int rows = RowsFor(job, budget->rows - 1, budget->logits - 1, budget->pages);
    plan_.admitted.push_back({.rows = rows});
    budget->pages -= PagesFilled(job.length, rows);
    budget->promised += Promised(job, job.length + rows);
    budget->rows -= rows;
    budget->logits -= job.all_logits ? rows : 1;
  }
}

// A guess must not complete a page, which could not be undone.
void Scheduler::Guess(std::span<const Job> running, Budget* budget) {
  for (size_t i = 0; i < running.size(); ++i) {
    const Job& job = running[i];
    JobShare& share = plan_.running[i];
    if (share.rows == 0 || job.length + share.rows < job.tokens) continue;
    const int64_t room = kPageTokens - 1 - job.tokens % kPageTokens;
    share.drafts = int(std::min<int64_t>({job.drafts, room, budget->rows, budget->logits}));
    budget->rows -= share.drafts, budget->logits -= share.drafts;
  }
}

const StepPlan& Scheduler::Plan(std::span<const Job> running, std::span<const Job> waiting,
                                int64_t free_pages) {
  const int count = int(running.size());
  NIBBLE_CHECK(count <= limits_.max_num_seqs, "more jobs run than may");
  NIBBLE_CHECK(InOrder(running) && InOrder(waiting), "jobs out of order");
  plan_.running.assign(running.size(), {});
  plan_.admitted.clear();
  Budget budget{.pages = free_pages,
                .promised = 0,
                .rows = limits_.max_num_batched_tokens - count,
                .logits = limits_.max_logit_rows - count};
  const bool smooth = Run(running, &budget);
  if (smooth) Admit(waiting, limits_.max_num_seqs - count, &budget);
  Guess(running, &budget);
  return plan_;
}

}  // namespace nibble
