// SPDX-License-Identifier: Apache-2.0
#include "engine/step_loop.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/thread_pool.h"
#include "engine/ngram.h"
#include "recipe/page_rules.h"

namespace nibble {
namespace {

SchedulerLimits LimitsOf(const EngineParts& c, const StepLoopOptions& o) {
  return {.max_num_seqs = o.max_num_seqs,
          .max_num_batched_tokens = o.max_num_batched_tokens,
          .max_logit_rows = std::min(c.model.max_logit_rows(), o.max_num_batched_tokens)};
}

}  // namespace

StepLoop::StepLoop(const EngineParts& context, const StepLoopOptions& options)
    : c_(context),
      options_(options),
      on_host_(context.backend.Info().device == Device::kCpu),
      scheduler_(LimitsOf(context, options)),
      threads_(context.backend.HostThreads()),
      samplers_(threads_ == nullptr ? 1 : size_t(threads_->threads()), Sampler(context.model.config().vocab)),
      raw_(samplers_.size()) {}

StepLoop::~StepLoop() { c_.backend.Free(device_best_); }

Result<std::unique_ptr<StepLoop>> StepLoop::Make(const EngineParts& context, const StepLoopOptions& options) {
  std::unique_ptr<StepLoop> loop(new StepLoop(context, options));
  NIBBLE_RETURN_IF_ERROR(loop->Init());
  return loop;
}

Status StepLoop::Init() {
  const ModelConfig& m = c_.model.config();
  NIBBLE_ASSIGN(cache_, KvCache::Make(c_.backend, {.shape = {m.layers, m.kv_heads, m.head_dim},
                                                   .heads = m.heads,
                                                   .recipe = c_.recipe,
                                                   .plan = c_.plan,
                                                   .max_seqs = options_.max_num_seqs,
                                                   .max_step_tokens = options_.max_num_batched_tokens,
                                                   .max_tokens = options_.kv_tokens,
                                                   .max_seq_tokens = m.max_position,
                                                   .prefix_scope = options_.prefix_scope}));
  const auto seqs = size_t(options_.max_num_seqs), rows = size_t(options_.max_num_batched_tokens);
  const auto logit_rows = size_t(LimitsOf(c_, options_).max_logit_rows);
  running_.reserve(seqs), running_jobs_.reserve(seqs), waiting_jobs_.reserve(seqs);
  seqs_.reserve(seqs), counts_.reserve(seqs);
  tokens_.reserve(rows), logit_rows_.reserve(logit_rows), best_.resize(logit_rows);
  draws_.reserve(c_.backend.Draws() ? logit_rows : 0);
  together_.reserve(seqs);
  for (std::vector<float>& raw : raw_) raw.reserve(size_t(m.vocab));
  if (!on_host_) host_logits_.resize(logit_rows * size_t(m.vocab));
  NIBBLE_ASSIGN(device_best_, c_.backend.Alloc(logit_rows * sizeof(int32_t)));
  return {};
}

void StepLoop::Insert(Queue* queue, std::unique_ptr<Active> active) {
  const auto at = std::upper_bound(queue->begin(), queue->end(), active->rank,
                                   [](int64_t rank, const auto& a) { return rank < a->rank; });
  queue->insert(at, std::move(active));
}

void StepLoop::Add(std::unique_ptr<Answer> answer, int64_t rank) {
  auto active = std::make_unique<Active>(Active{.answer = std::move(answer), .rank = rank});
  active->draft.reserve(size_t(options_.ngram.max_draft));
  Insert(&waiting_, std::move(active));
}

int64_t StepLoop::waiting_tokens() const {
  int64_t tokens = 0;
  for (const auto& a : waiting_) tokens += int64_t(a->answer->tokens().size());
  return tokens;
}

// What a sequence of these tokens may have in common with others: `tokens` at most.
std::span<const int32_t> StepLoop::Shareable(const Answer& answer, int64_t tokens) const {
  if (!DecodeFillsPagesAsPrefill(c_.recipe)) tokens = std::min(tokens, answer.prefill_tokens());
  return answer.tokens().first(size_t(tokens));
}

Job StepLoop::JobOf(const Active& a) const {
  const auto tokens = int64_t(a.answer->tokens().size());
  const ServingRequest& r = a.answer->request();
  // The last new token is never fed.
  const int64_t limit = a.answer->prompt_tokens() + std::max(r.max_tokens - 1, 0);
  return {.rank = a.rank,
          .length = a.length,
          .tokens = tokens,
          .planned = options_.admission == Admission::kWhole ? limit : tokens,
          .limit = limit,
          .own_pages = 0,
          .drafts = int(a.draft.size()),
          .all_logits = a.answer->wants_all_rows()};
}

void StepLoop::Guess(Active* a) {
  a->draft.clear();
  const int64_t left = a->answer->request().max_tokens - a->answer->new_tokens() - 1;
  if (!options_.undo || a->answer->new_tokens() == 0) return;
  GuessByLookup(a->answer->tokens(), options_.ngram, int(std::min<int64_t>(options_.ngram.max_draft, left)),
                &a->draft);
}

void StepLoop::ListRunning() {
  running_jobs_.clear();
  for (const auto& a : running_) {
    if (options_.ngram.max_draft > 0) Guess(a.get());
    running_jobs_.push_back(JobOf(*a));
  }
  // Only where pages are short does it matter whose they are.
  const int64_t most = options_.max_num_batched_tokens / kv::kPageTokens + options_.max_num_seqs;
  if (cache_->FreeTokens() / kv::kPageTokens > most) return;
  for (size_t i = 0; i < running_.size(); ++i)
    running_jobs_[i].own_pages = cache_->OwnPages(running_[i]->seq);
}

// Those that could have a place in this step, with what is cached or swapped out of them. The last token of a
// sequence is always run, for its logits.
void StepLoop::ListWaiting() {
  waiting_jobs_.clear();
  int64_t rows = options_.max_num_batched_tokens - int64_t(running_.size());
  const size_t places = size_t(options_.max_num_seqs) - running_.size();
  for (const auto& a : waiting_) {
    if (waiting_jobs_.size() == places || rows <= 0) break;
    Job job = JobOf(*a);
    const bool swapped = a->swap.data() != nullptr;
    if (swapped || !job.all_logits) {
      const PrefixMatch match = cache_->FindPrefix(
          Shareable(*a->answer, swapped ? job.length : job.tokens - 1), a->answer->request().cache_salt);
      // Pages that come back from the host are taken from the free ones, as those of a prefix that are idle.
      job.own_pages = match.idle_pages + (swapped ? (job.length - match.tokens) / kv::kPageTokens : 0);
      if (!swapped) job.length = match.tokens;
    }
    rows -= job.tokens - job.length;
    waiting_jobs_.push_back(job);
  }
}

void StepLoop::Release(Active* a) {
  if (a->seq >= 0) cache_->Close(a->seq);
  a->seq = -1, a->length = 0;
  DropSwap(a);
}

void StepLoop::DropSwap(Active* a) {
  swap_bytes_ -= int64_t(a->swap.bytes());
  a->swap = {};
}

// False where the request is to be recomputed.
bool StepLoop::TrySwapOut(Active* a) {
  const bool wanted = options_.preemption == Preemption::kSwap ||
                      (options_.preemption == Preemption::kAuto && a->length >= kv::kPageTokens);
  if (!wanted || a->length == 0) return false;
  const int64_t bytes = cache_->SwapBytes(a->seq);
  if (swap_bytes_ + bytes <= options_.swap_bytes) a->swap = HostBlock::Make(size_t(bytes));
  if (a->swap.data() == nullptr) {
    ++counters_.swap_full;
    return false;
  }
  cache_->SwapOut(a->seq, {a->swap.data(), a->swap.bytes()});
  swap_bytes_ += bytes;
  ++counters_.swapped;
  return true;
}

void StepLoop::Preempt() {
  for (size_t i = running_.size(); i-- > 0;) {
    if (!running_[i]->share.preempted) continue;
    std::unique_ptr<Active> a = std::move(running_[i]);
    running_.erase(running_.begin() + ptrdiff_t(i));
    if (TrySwapOut(a.get())) {
      cache_->Close(a->seq);
      a->seq = -1;
    } else {
      Release(a.get());
    }
    ++a->answer->usage().preemptions, ++counters_.preemptions;
    Insert(&waiting_, std::move(a));
  }
}

// Gives a job that waited its sequence, with what is kept of its prefix.
Status StepLoop::Enter(Active* a, const Job& job) {
  NIBBLE_ASSIGN(a->seq, cache_->Open());
  Answer& answer = *a->answer;
  cache_->SetPrefill(a->seq, answer.prefill_tokens());
  const bool swapped = a->swap.data() != nullptr;
  const int64_t shared = swapped ? job.length : job.all_logits ? 0 : job.tokens - 1;
  const auto prefix = Shareable(answer, shared);
  a->length = cache_->TakePrefix(a->seq, prefix, answer.request().cache_salt);
  NIBBLE_CHECK(swapped || a->length == job.length, "a prefix that changed while it was planned");
  if (!a->seen) {
    answer.Admitted(a->length);
    counters_.prompt_tokens += uint64_t(answer.prompt_tokens());
    counters_.prefix_queried_tokens += uint64_t(prefix.size());
    counters_.prefix_hit_tokens += uint64_t(a->length);
  }
  a->seen = true;
  return {};
}

void StepLoop::SwapIn(Active* a, int64_t length) {
  if (a->swap.data() == nullptr) return;
  cache_->SwapIn(a->seq, length, {a->swap.data(), a->swap.bytes()});
  a->length = length;
  DropSwap(a);
}

// All hold their prefixes before one takes a page, which might be another's.
Status StepLoop::Admit(size_t count) {
  for (size_t i = 0; i < count; ++i) NIBBLE_RETURN_IF_ERROR(Enter(waiting_[i].get(), waiting_jobs_[i]));
  for (size_t i = 0; i < count; ++i) {
    SwapIn(waiting_[i].get(), waiting_jobs_[i].length);
    Insert(&running_, std::move(waiting_[i]));
  }
  waiting_.erase(waiting_.begin(), waiting_.begin() + ptrdiff_t(count));
  return {};
}

// The rows of the step, sequence after sequence.
void StepLoop::FillStep() {
  seqs_.clear(), counts_.clear(), tokens_.clear(), logit_rows_.clear();
  best_only_ = true, wants_hidden_ = false;
  for (const auto& a : running_) {
    if (a->share.rows == 0) continue;
    const auto known = a->answer->tokens().subspan(size_t(a->length), size_t(a->share.rows));
    const auto first = int32_t(tokens_.size());
    tokens_.insert(tokens_.end(), known.begin(), known.end());
    const auto last = int32_t(tokens_.size()) - 1;
    const bool complete = a->length + a->share.rows == int64_t(a->answer->tokens().size());
    if (a->answer->wants_all_rows()) {
      for (int32_t row = first; row < last; ++row) logit_rows_.push_back(row);
      if (!complete) logit_rows_.push_back(last);
    }
    a->newest_row = complete ? int32_t(logit_rows_.size()) : -1;
    a->new_before = a->answer->new_tokens();
    if (complete) logit_rows_.push_back(last);
    tokens_.insert(tokens_.end(), a->draft.begin(), a->draft.begin() + a->share.drafts);
    for (int32_t i = 0; i < a->share.drafts; ++i) logit_rows_.push_back(last + 1 + i);
    seqs_.push_back(a->seq);
    counts_.push_back(int32_t(tokens_.size()) - first);
    // A row that a device may draw is drawn there whoever else is in the step.
    a->drawn =
        complete && c_.backend.Draws() && !a->answer->wants_best_only() && a->answer->wants_draw_only();
    if (complete || a->answer->wants_all_rows())
      best_only_ &= (a->answer->wants_best_only() || a->drawn) && !a->answer->wants_all_rows();
    wants_hidden_ |= a->answer->request().pooling != Pooling::kNone;
  }
}

// What a device draws of the step's logits; of the other rows it finds the greatest.
void StepLoop::PrepareDraws() {
  draws_.clear(), changes_.clear();
  if (std::none_of(running_.begin(), running_.end(),
                   [](const auto& a) { return a->share.rows > 0 && a->drawn; }))
    return;
  draws_.resize(logit_rows_.size());
  for (const auto& a : running_) {
    if (a->share.rows == 0 || !a->drawn) continue;
    for (int32_t i = 0; i <= a->share.drafts; ++i)
      draws_[size_t(a->newest_row + i)] =
          a->answer->PrepareDraw(std::span(a->draft).first(size_t(i)), &samplers_[0], &changes_);
  }
}

// Brings what somebody wants of the logits to the host. The best of each row is found by the backend.
Status StepLoop::ReadLogits(Tensor logits) {
  const size_t rows = logit_rows_.size(), vocab = size_t(c_.model.config().vocab);
  const auto download = [&] {
    c_.backend.Download(static_cast<const std::byte*>(logits.data), reinterpret_cast<std::byte*>(logits_),
                        rows * vocab * sizeof(float));
  };
  if (rows > 0) {
    auto* const ids = reinterpret_cast<int32_t*>(device_best_.data);
    PrepareDraws();
    draws_.empty() ? c_.backend.ArgMax(logits, ids) : c_.backend.Draw(logits, draws_, changes_, ids);
    c_.backend.Download(device_best_.data, best_.data(), rows * sizeof(int32_t));
  }
  logits_ = on_host_ ? logits.as<float>() : host_logits_.data();
  if (rows > 0 && !on_host_ && !best_only_) download();
  if (rows > 0 && wants_hidden_) {
    const Tensor hidden = c_.model.Hidden();
    host_hidden_.resize(rows * size_t(hidden.dim[1]));
    c_.backend.Download(static_cast<const std::byte*>(hidden.data), host_hidden_.data(),
                        host_hidden_.size() * sizeof(float));
  }
  c_.backend.Sync();
  // Logits that are no numbers are looked at, so that they are reported as always.
  const auto ids = std::span(best_).first(rows);
  if (!on_host_ && best_only_ && std::find(ids.begin(), ids.end(), -1) != ids.end()) {
    download();
    c_.backend.Sync();
  }
  return {};
}

std::span<float> StepLoop::LogitsAt(size_t row) {
  const size_t vocab = size_t(c_.model.config().vocab);
  return {logits_ + row * vocab, vocab};
}

std::span<const float> StepLoop::HiddenAt(size_t row) const {
  const size_t hidden = size_t(c_.model.config().hidden);
  return wants_hidden_ ? std::span(host_hidden_).subspan(row * hidden, hidden) : std::span<const float>();
}

// Rows whose answers depend on nothing but themselves, over the threads: drawing from a large vocabulary
// takes as long as a layer.
void StepLoop::SampleTogether() {
  together_.clear();
  for (const auto& a : running_) {
    a->sampled = false;
    if (a->share.rows > 0 && a->newest_row >= 0 && a->share.drafts == 0 && !a->drawn &&
        !a->answer->finished() && a->answer->samples_alone())
      together_.push_back(a.get());
  }
  if (threads_ == nullptr || together_.size() < 2) return;
  threads_->Run(int64_t(together_.size()), [this](int64_t i, int worker) {
    Active& a = *together_[size_t(i)];
    const auto row = size_t(a.newest_row);
    a.answer->TakeLastRow(LogitsAt(row), HiddenAt(row), &samplers_[size_t(worker)], &raw_[size_t(worker)]);
    a.sampled = true;
  });
}

void StepLoop::TakeNewest(Active* a, size_t row) {
  if (std::exchange(a->sampled, false)) return;
  if ((a->answer->wants_best_only() || a->drawn) && best_[row] >= 0) {
    a->answer->TakeToken(best_[row]);
  } else {
    a->answer->TakeLastRow(LogitsAt(row), HiddenAt(row), &samplers_[0], &raw_[0]);
  }
}

// The row of the newest token, and of each guess as long as it turns out right.
void StepLoop::HandGenerated(Active* a, size_t* row) {
  Answer& answer = *a->answer;
  const size_t end = *row + 1 + size_t(a->share.drafts);
  int right = 0;
  while (true) {
    TakeNewest(a, *row);
    ++*row;
    if (answer.finished() || *row == end) break;
    if (answer.tokens().back() != a->draft[size_t(right)]) break;
    ++right;
  }
  *row = end;
  const int wrong = a->share.drafts - right;
  a->length -= wrong;
  if (wrong > 0) cache_->RollBack(a->seq, a->length);
  answer.usage().drafted += a->share.drafts, answer.usage().accepted += right;
  counters_.drafted += uint64_t(a->share.drafts), counters_.accepted += uint64_t(right);
  counters_.new_tokens += uint64_t(answer.new_tokens() - a->new_before);
}

void StepLoop::HandRows(Active* a, size_t* row) {
  Answer& answer = *a->answer;
  const int64_t first = a->length;
  a->length += a->share.rows + a->share.drafts;
  const bool complete = a->newest_row >= 0;
  for (int64_t p = std::max(first, answer.prefill_tokens()); p < a->length; ++p)
    counters_.visible_tokens += uint64_t(p) + 1;
  if (answer.wants_all_rows()) {
    const int64_t end = first + a->share.rows - (complete ? 1 : 0);
    for (int64_t p = first; p < end; ++p, ++*row) answer.TakePromptRow(p, LogitsAt(*row), HiddenAt(*row));
  }
  if (complete && (a->sampled || !answer.finished()))
    HandGenerated(a, row);
  else if (complete)
    *row += 1 + size_t(a->share.drafts);
  cache_->Keep(a->seq, Shareable(answer, a->length));
}

Status StepLoop::Run() {
  FillStep();
  if (tokens_.empty()) return {};
  NIBBLE_RETURN_IF_ERROR(cache_->BeginStep(seqs_, counts_));
  NIBBLE_RETURN_IF_ERROR(ReadLogits(c_.model.Forward({tokens_, logit_rows_}, *cache_)));
  ++counters_.steps;
  counters_.step_rows += tokens_.size();
  SampleTogether();
  size_t row = 0;
  for (const auto& a : running_) {
    if (a->share.rows == 0) continue;
    HandRows(a.get(), &row);
    a->answer->Deliver();
  }
  DropFinished();
  return {};
}

void StepLoop::DropFinished() {
  for (const auto& a : running_) {
    if (!a->answer->finished()) continue;
    ++counters_.finished[size_t(a->answer->finish())];
    Release(a.get());
  }
  std::erase_if(running_, [](const auto& a) { return a->answer->finished(); });
}

Status StepLoop::Step() {
  ListRunning();
  ListWaiting();
  const StepPlan& plan =
      scheduler_.Plan(running_jobs_, waiting_jobs_, cache_->FreeTokens() / kv::kPageTokens);
  for (size_t i = 0; i < running_.size(); ++i) running_[i]->share = plan.running[i];
  for (size_t i = 0; i < plan.admitted.size(); ++i) waiting_[i]->share = plan.admitted[i];
  Preempt();
  NIBBLE_RETURN_IF_ERROR(Admit(plan.admitted.size()));
  return Run();
}

void StepLoop::Cancel(RequestId id) {
  for (Queue* queue : {&running_, &waiting_}) {
    const auto at =
        std::find_if(queue->begin(), queue->end(), [id](const auto& a) { return a->answer->id() == id; });
    if (at == queue->end()) continue;
    std::unique_ptr<Active> a = std::move(*at);
    queue->erase(at);
    Release(a.get());
    a->answer->Finish(FinishReason::kCancelled);
    ++counters_.finished[size_t(FinishReason::kCancelled)];
    a->answer->Deliver();
    return;
  }
}

void StepLoop::EndAll(FinishReason reason, const std::string& error) {
  for (Queue* queue : {&running_, &waiting_}) {
    for (const auto& a : *queue) {
      Release(a.get());
      a->answer->Finish(reason, error);
      ++counters_.finished[size_t(reason)];
      a->answer->Deliver();
    }
    queue->clear();
  }
}

}  // namespace nibble
