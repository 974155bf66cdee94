// SPDX-License-Identifier: Apache-2.0
// The scheduler without a model: single steps, and random traces over a pool of pages in which sequences
// share prefixes. Every step keeps the limits, the first job always goes on, nobody overtakes, all finish.
#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

namespace nibble {
namespace {

constexpr int kPage = 64;

std::vector<int> Rows(const std::vector<JobShare>& shares) {
  std::vector<int> rows;
  for (const JobShare& s : shares) rows.push_back(s.preempted ? -1 : s.rows);
  return rows;
}

Job Decoding(int64_t rank, int64_t length, int64_t limit = 10000) {
  return {.rank = rank,
          .length = length,
          .tokens = length + 1,
          .planned = length + 1,
          .limit = limit,
          .own_pages = length / kPage};
}
Job Prompt(int64_t rank, int64_t length, int64_t tokens) {
  return {.rank = rank,
          .length = length,
          .tokens = tokens,
          .planned = tokens,
          .limit = tokens,
          .own_pages = length / kPage};
}

TEST(Scheduler, MixesPromptsWithDecodeRows) {
  Scheduler scheduler({.max_num_seqs = 4, .max_num_batched_tokens = 100, .max_logit_rows = 4});
  const Job running[] = {Decoding(1, 10), Prompt(2, 0, 500), Decoding(3, 70)};
  const Job waiting[] = {Prompt(4, 0, 300)};
  const StepPlan& plan = scheduler.Plan(running, waiting, 100);
  EXPECT_EQ(Rows(plan.running), (std::vector<int>{1, 98, 1}));  // the prompt takes what decoding leaves
  EXPECT_TRUE(plan.admitted.empty());                           // no row is left
}

TEST(Scheduler, AdmitsInOrderByPlannedPages) {
  Scheduler scheduler({.max_num_seqs = 4, .max_num_batched_tokens = 200, .max_logit_rows = 4});
  const Job running[] = {Decoding(1, 70, 75)};  // needs no further page
  const Job waiting[] = {Prompt(2, 0, 130), Prompt(3, 0, 300), Prompt(4, 0, 5)};
  EXPECT_EQ(Rows(scheduler.Plan(running, waiting, 2).admitted), (std::vector<int>{130}));
  // The first does not fit: none behind it overtakes.
  EXPECT_TRUE(scheduler.Plan(running, waiting, 1).admitted.empty());
  EXPECT_EQ(Rows(scheduler.Plan(running, waiting, 6).admitted), (std::vector<int>{130, 69}));
  const Job growing[] = {Decoding(1, 70)};  // counts on its next page
  EXPECT_TRUE(scheduler.Plan(growing, waiting, 2).admitted.empty());
  Job whole = Prompt(2, 0, 130);
  whole.planned = whole.limit = 400;
  EXPECT_TRUE(scheduler.Plan(running, {&whole, 1}, 5).admitted.empty());
  EXPECT_EQ(scheduler.Plan(running, {&whole, 1}, 6).admitted.size(), 1u);
}

TEST(Scheduler, PagesOfAPrefixThatNobodyHoldsAreNotFreeTwice) {
  Scheduler scheduler({.max_num_seqs = 2, .max_num_batched_tokens = 200, .max_logit_rows = 2});
  Job job = Prompt(1, 128, 260);  // two of four pages are cached
  job.own_pages = 2;              // and idle
  EXPECT_TRUE(scheduler.Plan({}, {&job, 1}, 3).admitted.empty());
  EXPECT_EQ(Rows(scheduler.Plan({}, {&job, 1}, 4).admitted), (std::vector<int>{132}));
  job.own_pages = 0;  // others hold them
  EXPECT_EQ(Rows(scheduler.Plan({}, {&job, 1}, 2).admitted), (std::vector<int>{132}));
}

TEST(Scheduler, PreemptsTheLastThatHasPages) {
  Scheduler scheduler({.max_num_seqs = 4, .max_num_batched_tokens = 100, .max_logit_rows = 4});
  const Job running[] = {Decoding(1, 63), Decoding(2, 130), Decoding(3, 70), Decoding(4, 20)};
  EXPECT_EQ(Rows(scheduler.Plan(running, {}, 0).running), (std::vector<int>{1, 1, -1, 1}));
  // Nothing behind it has a page: it stands still, and who needs none goes on.
  const Job last[] = {Decoding(1, 130), Decoding(2, 63), Decoding(3, 5)};
  EXPECT_EQ(Rows(scheduler.Plan(last, {}, 0).running), (std::vector<int>{1, 0, 1}));
  // Shared pages are free only when the last one gives them up.
  Job shared[] = {Decoding(1, 63), Decoding(2, 70), Decoding(3, 70)};
  shared[1].own_pages = shared[2].own_pages = 0;
  EXPECT_EQ(Rows(scheduler.Plan(shared, {}, 0).running), (std::vector<int>{0, 1, -1}));
}

TEST(Scheduler, GuessesTakeWhatIsLeftAndCompleteNoPage) {
  Scheduler scheduler({.max_num_seqs = 4, .max_num_batched_tokens = 12, .max_logit_rows = 9});
  Job running[] = {Decoding(1, 10), Decoding(2, 58), Decoding(3, 63), Decoding(4, 100)};
  for (Job& job : running) job.drafts = 8;
  const StepPlan& plan = scheduler.Plan(running, {}, 10);
  std::vector<int> drafts;
  for (const JobShare& s : plan.running) drafts.push_back(s.drafts);
  EXPECT_EQ(drafts, (std::vector<int>{5, 0, 0, 0}));  // nine rows of logits, four of them for certain tokens
  running[0].drafts = 0;
  EXPECT_EQ(scheduler.Plan(running, {}, 10).running[1].drafts, 4);  // 58 + 1 + 4 = 63
  running[1].drafts = 0;
  EXPECT_EQ(scheduler.Plan(running, {}, 10).running[2].drafts, 5);  // behind the page that its row completes
}

TEST(Scheduler, RowsThatAllWantLogitsShareThem) {
  Scheduler scheduler({.max_num_seqs = 2, .max_num_batched_tokens = 100, .max_logit_rows = 10});
  Job running[] = {Prompt(1, 0, 90), Decoding(2, 5)};
  running[0].all_logits = true;
  EXPECT_EQ(Rows(scheduler.Plan(running, {}, 10).running), (std::vector<int>{9, 1}));
}

// A pool whose pages are named by what they hold, (group, index) for a shared prefix and (job, index) behind
// it, with as many holders as jobs read them.
struct Simulated {
  Job job;
  int id, group, prefix;  // tokens of the prompt that the group shares, whole pages
  int64_t prompt, answer;
  int64_t arrival;
  bool running = false;
};

class Simulation {
 public:
  Simulation(unsigned seed, int64_t lie) : rng_(seed), lie_(lie) {
    pool_ = Uniform(4, 30);
    limits_.max_num_seqs = Uniform(1, 6);
    limits_.max_num_batched_tokens = limits_.max_num_seqs + Uniform(1, 150);
    limits_.max_logit_rows = limits_.max_num_seqs + Uniform(0, 20);
    const bool whole = Uniform(0, 3) == 0;
    for (int i = 0; i < 40; ++i) {
      const int64_t most = pool_ * kPage;
      Simulated s{};
      s.id = i, s.group = Uniform(0, 2);
      s.answer = Uniform(1, int(std::min<int64_t>(most / 2, 400)));
      s.prompt = Uniform(1, int(std::min<int64_t>(most - s.answer, 500)));
      s.prefix = int(std::min<int64_t>((s.prompt - 1) / kPage, Uniform(0, 3))) * kPage;
      s.arrival = Uniform(0, 300);
      s.job.rank = s.arrival * 1000 + i + Uniform(0, 2) * 100000;  // priorities
      s.job.limit = s.prompt + s.answer - 1;
      s.job.planned = whole ? s.job.limit : s.prompt;
      s.job.tokens = s.prompt;
      s.job.all_logits = Uniform(0, 9) == 0;
      jobs_.push_back(s);
    }
    std::sort(jobs_.begin(), jobs_.end(),
              [](const Simulated& a, const Simulated& b) { return a.job.rank < b.job.rank; });
  }

  // Runs to the end. Returns how many preemptions there were; -1 when a rule was broken.
  int Run() {
    Scheduler scheduler(limits_);
    for (int64_t step = 0; !jobs_.empty(); ++step) {
      if (step > 200000) return Broken("jobs do not finish");
      std::vector<Simulated*> running, waiting;
      for (Simulated& s : jobs_)
        if (s.running)
          running.push_back(&s);
        else if (s.arrival <= step)
          waiting.push_back(&s);
      if (running.empty() && waiting.empty()) continue;
      const StepPlan& plan = scheduler.Plan(Jobs(running), Jobs(waiting), Free() + lie_);
      if (!Apply(plan, running, waiting)) return -1;
    }
    return preemptions_;
  }

  const std::string& broken() const { return broken_; }

 private:
  int Uniform(int low, int high) { return std::uniform_int_distribution<int>(low, high)(rng_); }
  int Broken(const char* what) {
    broken_ = what;
    return -1;
  }
  std::pair<int, int64_t> Name(const Simulated& s, int64_t page) const {
    return {(page + 1) * kPage <= s.prefix ? -1 - s.group : s.id, page};
  }
  int64_t Free() const { return pool_ - int64_t(holders_.size()); }

  std::vector<Job> Jobs(const std::vector<Simulated*>& of) {
    std::vector<Job> jobs;
    for (Simulated* s : of) {
      if (s->running) {
        s->job.own_pages = 0;
        for (int64_t p = 0; p < s->job.length / kPage; ++p) s->job.own_pages += holders_[Name(*s, p)] == 1;
      } else {  // what others hold of its prefix
        s->job.length = s->job.own_pages = 0;
        while (s->job.length < s->prefix && holders_.count(Name(*s, s->job.length / kPage)) > 0)
          s->job.length += kPage;
      }
      s->job.drafts = s->job.tokens - s->job.length == 1 && s->running ? Uniform(0, 8) : 0;
      jobs.push_back(s->job);
    }
    return jobs;
  }

  void Grow(Simulated* s, int64_t rows) {
    const int64_t before = s->job.length / kPage;
    s->job.length += rows;
    for (int64_t p = before; p < s->job.length / kPage; ++p) ++holders_[Name(*s, p)];
    if (s->job.length == s->job.tokens) ++s->job.tokens;  // a new token
  }
  void Release(Simulated* s) {
    for (int64_t p = 0; p < s->job.length / kPage; ++p)
      if (--holders_[Name(*s, p)] == 0) holders_.erase(Name(*s, p));
    s->running = false, s->job.length = 0;
  }

  bool Apply(const StepPlan& plan, const std::vector<Simulated*>& running,
             const std::vector<Simulated*>& waiting) {
    int64_t rows = 0, logits = 0;
    int seqs = 0;
    bool moved = false;
    for (size_t i = 0; i < running.size(); ++i) {  // first, so that their pages are there
      if (!plan.running[i].preempted) continue;
      if (i == 0) return Broken("the first job lost its pages") > 0;
      Release(running[i]);
      ++preemptions_, moved = true;
    }
    const auto run = [&](Simulated* s, const JobShare& share) {
      ++seqs;
      rows += share.rows + share.drafts;
      if (s->job.all_logits)
        logits += share.rows;
      else
        logits += s->job.length + share.rows == s->job.tokens;
      logits += share.drafts;
      moved |= share.rows > 0;
      Grow(s, share.rows);
    };
    for (size_t i = 0; i < running.size(); ++i)
      if (!plan.running[i].preempted) run(running[i], plan.running[i]);
    for (size_t i = 0; i < plan.admitted.size(); ++i) {
      Simulated* s = waiting[i];
      s->running = true;
      for (int64_t p = 0; p < s->job.length / kPage; ++p) ++holders_[Name(*s, p)];
      run(s, plan.admitted[i]);
    }
    if (!moved) return Broken("a step without work") > 0;
    if (Free() < 0) return Broken("more pages than there are") > 0;
    if (rows > limits_.max_num_batched_tokens || seqs > limits_.max_num_seqs ||
        logits > limits_.max_logit_rows)
      return Broken("a step beyond its limits") > 0;
    for (Simulated& s : jobs_)
      if (s.running && s.job.tokens > s.prompt + s.answer) return Broken("a job beyond its limit") > 0;
    for (Simulated& s : jobs_)
      if (s.job.tokens == s.prompt + s.answer) Release(&s), s.group = -1;
    std::erase_if(jobs_, [](const Simulated& s) { return s.group == -1; });
    return true;
  }

  std::mt19937 rng_;
  int64_t pool_;
  const int64_t lie_;  // pages that there are not
  std::string broken_;
  SchedulerLimits limits_;
  std::vector<Simulated> jobs_;
  std::map<std::pair<int, int64_t>, int> holders_;
  int preemptions_ = 0;
};

TEST(Scheduler, RandomTracesKeepEveryRuleAndFinish) {
  int preemptions = 0;
  for (unsigned seed = 0; seed < 600; ++seed) {
    Simulation simulation(seed, 0);
    const int n = simulation.Run();
    ASSERT_GE(n, 0) << "seed " << seed << ": " << simulation.broken();
    preemptions += n;
  }
  EXPECT_GT(preemptions, 1000);  // the traces do press on the pool
}

TEST(Scheduler, TheSimulationSeesASchedulerThatIsWrong) {
  int broken = 0;
  for (unsigned seed = 0; seed < 20; ++seed) broken += Simulation(seed, 2).Run() < 0;
  EXPECT_GT(broken, 10);
}

}  // namespace
}  // namespace nibble
