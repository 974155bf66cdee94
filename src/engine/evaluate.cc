// SPDX-License-Identifier: Apache-2.0
// Floor 8. Perplexity and divergence. Logits are f32; everything computed from them here is double, and sums
// run in row order whatever the number of threads.
#include "engine/evaluate.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "base/thread_pool.h"

namespace nibble {
namespace {

struct Top {
  double max;
  int32_t id;
};

Top FindTop(std::span<const float> logits) {
  size_t best = 0;
  for (size_t i = 1; i < logits.size(); ++i) best = logits[i] > logits[best] ? i : best;
  return {double(logits[best]), int32_t(best)};
}

double LogSumExp(std::span<const float> logits, double max) {
  double sum = 0;
  for (float z : logits) sum += std::exp(double(z) - max);
  return max + std::log(sum);
}

double Mean(std::span<const double> values) {
  double sum = 0;
  for (double v : values) sum += v;
  return sum / double(values.size());
}

// Runs the windows through the engines and keeps the figures of every scored row.
class Scorer {
 public:
  Scorer(Engine& model, ReferenceLogits* reference, const EvaluateOptions& options, int64_t total_rows)
      : model_(model),
        reference_(reference),
        options_(options),
        total_rows_(total_rows),
        pool_(options.threads > 0 ? options.threads : AvailableCpus()) {}

  // Appends the rows of window `index`, or nothing when it fails.
  Status ScoreWindow(size_t index, std::span<const int32_t> tokens);

  std::vector<double> nll, reference_nll, kld, delta_p_squared, same_top;

 private:
  Status Step(int64_t rows) {
    done_rows_ += rows;
    if (options_.on_progress) options_.on_progress(done_rows_, total_rows_);
    if (options_.cancel != nullptr && options_.cancel->load(std::memory_order_relaxed))
      return Error(Code::kCancelled, "evaluation was cancelled");
    return {};
  }
  void ScoreBlock(std::span<const int32_t> tokens, int64_t first, std::span<const float> block);

  Engine& model_;
  ReferenceLogits* reference_;
  const EvaluateOptions& options_;
  int64_t total_rows_, done_rows_ = 0;
  ThreadPool pool_;
  std::vector<float> staging_;               // a block of logits that lay on another device
  std::span<const float> reference_logits_;  // [tokens, vocab] of the current window
  size_t base_ = 0;                          // rows before the current window
};

void Scorer::ScoreBlock(std::span<const int32_t> tokens, int64_t first, std::span<const float> block) {
  const auto vocab = size_t(model_.config().vocab);
  // The last row of a window predicts a token that is not there.
  const int64_t rows = std::min(int64_t(block.size() / vocab), int64_t(tokens.size()) - 1 - first);
  if (rows <= 0) return;
  pool_.Run(rows, [&](int64_t row, int) {
    const auto position = size_t(first + row);
    const std::span<const float> logits = block.subspan(size_t(row) * vocab, vocab);
    const int32_t target = tokens[position + 1];
    const size_t at = base_ + position;
    if (reference_ == nullptr) {
      nll[at] = ScoreRow(logits, target).nll;
      return;
    }
    const RowComparison c = CompareRows(logits, reference_logits_.subspan(position * vocab, vocab), target);
    nll[at] = c.nll;
    reference_nll[at] = c.reference_nll;
    kld[at] = c.kld;
    delta_p_squared[at] = c.delta_p * c.delta_p;
    same_top[at] = c.same_top ? 1 : 0;
  });
}

Status Scorer::ScoreWindow(size_t index, std::span<const int32_t> tokens) {
  const size_t rows = tokens.size() - 1;
  base_ = nll.size();
  if (reference_ != nullptr) {
    NIBBLE_ASSIGN(reference_logits_,
                  reference_->Window(index, tokens, [this](int64_t done) { return Step(done); }));
  }
  nll.resize(base_ + rows);
  if (reference_ != nullptr)
    for (auto* v : {&reference_nll, &kld, &delta_p_squared, &same_top}) v->resize(base_ + rows);
  Status status = model_.Score(tokens, [&](int64_t first, Tensor logits) -> Status {
    ScoreBlock(tokens, first, HostLogits(model_, logits, &staging_));
    return Step(logits.dim[0]);
  });
  for (size_t i = base_; status.ok() && i < nll.size(); ++i)
    if (!std::isfinite(nll[i]) || (reference_ != nullptr && !std::isfinite(reference_nll[i] + kld[i])))
      status = Error(Code::kCorrupt, "logits of text token {} are not finite numbers", i);
  if (!status.ok())  // a window counts as a whole or not at all
    for (auto* v : {&nll, &reference_nll, &kld, &delta_p_squared, &same_top})
      v->resize(std::min(v->size(), base_));
  return status;
}

Result<std::vector<int32_t>> Tokenize(const Engine& model, const Engine* reference, std::string_view text) {
  NIBBLE_ASSIGN(std::vector<int32_t> ids, model.tokenizer().Encode(text, SpecialTokens::kOmit));
  if (reference == nullptr) return ids;
  const int vocab = model.config().vocab, reference_vocab = reference->config().vocab;
  if (vocab != reference_vocab)
    return Error(Code::kInvalidArgument, "the model has {} vocabulary entries and its reference {}", vocab,
                 reference_vocab);
  NIBBLE_ASSIGN(std::vector<int32_t> other, reference->tokenizer().Encode(text, SpecialTokens::kOmit));
  const auto [a, b] = std::mismatch(ids.begin(), ids.end(), other.begin(), other.end());
  if (a != ids.end() || b != other.end())
    return Error(Code::kInvalidArgument,
                 "the model and its reference tokenize the text differently from token {} on",
                 a - ids.begin());
  return ids;
}

EvaluateReport MakeReport(const Scorer& scorer, bool with_reference) {
  EvaluateReport report;
  report.tokens = int64_t(scorer.nll.size());
  report.nll_per_token = Mean(scorer.nll);
  report.perplexity = std::exp(report.nll_per_token);
  if (with_reference) {
    ReferenceReport& r = report.reference.emplace();
    r.nll_per_token = Mean(scorer.reference_nll);
    r.perplexity = std::exp(r.nll_per_token);
    r.kld = Summarize(scorer.kld);
    r.same_top = Mean(scorer.same_top);
    r.delta_p_rms = std::sqrt(Mean(scorer.delta_p_squared));
  }
  return report;
}

}  // namespace

RowScore ScoreRow(std::span<const float> logits, int32_t target) {
  const Top top = FindTop(logits);
  return {LogSumExp(logits, top.max) - double(logits[size_t(target)]), top.id};
}

RowComparison CompareRows(std::span<const float> logits, std::span<const float> reference, int32_t target) {
  const Top top = FindTop(logits), reference_top = FindTop(reference);
  const double lse = LogSumExp(logits, top.max);
  // One pass over the reference gives its normalizer and the expected logit difference, as
  // KL(r || m) = E_r[z_r - z_m] - lse_r + lse_m.
  double sum = 0, weighted = 0;
  for (size_t i = 0; i < reference.size(); ++i) {
    const double e = std::exp(double(reference[i]) - reference_top.max);
    if (e == 0) continue;  // masked entries (-inf) weigh nothing, even where the model masks them too
    sum += e;
    weighted += e * (double(reference[i]) - double(logits[i]));
  }
  const double reference_lse = reference_top.max + std::log(sum);
  RowComparison c;
  c.nll = lse - double(logits[size_t(target)]);
  c.reference_nll = reference_lse - double(reference[size_t(target)]);
  const double kld = weighted / sum - reference_lse + lse;
  c.kld = kld < 0 ? 0 : kld;  // rounding of near-equal rows; NaN stays NaN
  c.delta_p = std::exp(-c.nll) - std::exp(-c.reference_nll);
  c.same_top = top.id == reference_top.id;
  return c;
}

Distribution Summarize(std::span<const double> values) {
  NIBBLE_CHECK(!values.empty(), "no values");
  std::vector<double> sorted(values.begin(), values.end());
  std::sort(sorted.begin(), sorted.end());
  const auto quantile = [&](double q) {
    const double at = q * double(sorted.size() - 1);
    const auto low = size_t(at);
    const size_t high = std::min(low + 1, sorted.size() - 1);
    return sorted[low] + (at - double(low)) * (sorted[high] - sorted[low]);
  };
  return {Mean(values), quantile(0.5), quantile(0.99), quantile(0.999), sorted.back()};
}

Windows CutWindows(std::span<const int32_t> ids, int32_t bos, int window, int max_windows) {
  NIBBLE_CHECK(window >= 2, "a window has two tokens or more");
  const size_t piece = bos < 0 ? size_t(window) : size_t(window) - 1;
  const size_t count = ids.size() < piece ? 1 : ids.size() / piece;
  Windows windows;
  for (size_t i = 0; i < std::min(count, size_t(max_windows)); ++i) {
    const std::span<const int32_t> text = ids.subspan(i * piece, std::min(piece, ids.size()));
    std::vector<int32_t>& tokens = windows.emplace_back();
    if (bos >= 0) tokens.push_back(bos);
    tokens.insert(tokens.end(), text.begin(), text.end());
  }
  return windows;
}

Result<Windows> CutText(const Engine& model, const Engine* reference, std::string_view text,
                        const EvaluateOptions& options) {
  for (const Engine* engine : {&model, reference})
    if (engine != nullptr && options.window > engine->config().max_position)
      return Error(Code::kInvalidArgument, "a window of {} tokens exceeds the model's context of {}",
                   options.window, engine->config().max_position);
  NIBBLE_ASSIGN(const std::vector<int32_t> ids, Tokenize(model, reference, text));
  Windows windows = CutWindows(ids, model.config().bos_token, options.window, options.max_windows);
  if (windows[0].size() < 2)
    return Error(Code::kInvalidArgument, "the text has {} tokens: nothing to score", ids.size());
  return windows;
}

Result<EvaluateReport> EvaluateWindows(Engine& model, ReferenceLogits* reference, const Windows& windows,
                                       const EvaluateOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  int64_t total_rows = 0;
  for (size_t i = 0; i < windows.size(); ++i)
    total_rows += int64_t(windows[i].size()) * (reference != nullptr && !reference->Kept(i) ? 2 : 1);

  Scorer scorer(model, reference, options, total_rows);
  int done = 0;
  for (const auto& tokens : windows) {
    const Status status = scorer.ScoreWindow(size_t(done), tokens);
    if (status.code() == Code::kCancelled && done > 0) break;
    NIBBLE_RETURN_IF_ERROR(status);
    ++done;
  }
  EvaluateReport report = MakeReport(scorer, reference != nullptr);
  report.windows = done;
  report.cancelled = size_t(done) < windows.size();
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

Result<EvaluateReport> Evaluate(Engine& model, Engine* reference, std::string_view text,
                                const EvaluateOptions& options) {
  NIBBLE_ASSIGN(const Windows windows, CutText(model, reference, text, options));
  if (reference == nullptr) return EvaluateWindows(model, nullptr, windows, options);
  ReferenceLogits logits(*reference, /*keep_bytes=*/0);
  return EvaluateWindows(model, &logits, windows, options);
}

}  // namespace nibble
