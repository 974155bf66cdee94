// SPDX-License-Identifier: Apache-2.0
#include "engine/compare.h"

#include <algorithm>
#include <chrono>

#include "engine/calibrate.h"
#include "engine/plan_search.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;
using View = AttentionReference::View;

// Tokens beyond the context that questions, answers and timed steps may take.
constexpr int64_t kAfterContext = 320;

// What every recipe is measured on.
struct Inputs {
  Windows windows;
  std::vector<Trial> passkey, repetition;
  std::vector<int32_t> decode_prompt;
  std::vector<int32_t> attention_tokens;

  // Rows that one recipe feeds, for progress.
  int64_t Rows(bool planned) const {
    int64_t rows = int64_t(decode_prompt.size()) + 2 * int64_t(attention_tokens.size());
    for (const auto& w : windows) rows += int64_t(w.size()) * (planned ? 2 : 1);
    for (const auto* trials : {&passkey, &repetition})
      for (const Trial& t : *trials) rows += int64_t(t.tokens.size());
    return rows;
  }
};

class Comparison {
 public:
  Comparison(std::span<const std::string> recipes, const CompareOptions& options)
      : recipes_(recipes), o_(options) {}
  Result<CompareReport> Run(std::string_view text);

 private:
  Status LoadReference();
  Status Prepare(std::string_view text);
  Status ChooseContexts();
  Status PrepareRetrieval(std::span<const int32_t> ids);
  Status CheckCalibration() const;
  Status CaptureAttention();
  Result<RecipeReport> Measure(const std::string& recipe);
  Status MeasureQuality(Engine& engine, RecipeReport* report);
  Result<EvaluateReport> Score(Engine& engine);
  Status MeasurePlanned(const EngineOptions& options, RecipeReport* report);
  Status MeasureDecoding(Engine& engine, RecipeReport* report);

  // Progress and cancellation, from inside every pass.
  Status Fed(int64_t rows) {
    done_rows_ += rows;
    if (o_.on_progress) o_.on_progress(current_, done_rows_, total_rows_);
    if (o_.cancel != nullptr && o_.cancel->load(std::memory_order_relaxed))
      return Error(Code::kCancelled, "the comparison was cancelled");
    return {};
  }
  void Begin(std::string_view recipe, int64_t done) {
    current_ = recipe;
    done_rows_ = done;
    if (o_.on_progress) o_.on_progress(current_, done_rows_, total_rows_);
  }

  const std::span<const std::string> recipes_;
  const CompareOptions& o_;
  std::unique_ptr<Engine> reference_;  // logits
  std::unique_ptr<Engine> exact_;      // attention, when the reference is another folder
  std::optional<ReferenceLogits> logits_;
  std::optional<AttentionReference> attention_;
  Inputs inputs_;
  CompareReport report_;
  std::string_view current_;
  int64_t done_rows_ = 0, total_rows_ = 0;
};

Status Comparison::LoadReference() {
  // Nothing of what the recipes run with but the folder and the device.
  EngineOptions options{.model = o_.engine.model,
                        .dtype = DType::kF32,
                        .device = o_.engine.device,
                        .threads = o_.engine.threads,
                        .max_seqs = 1};
  NIBBLE_ASSIGN(exact_, Engine::Load(options));
  if (!o_.reference.empty() && o_.reference != o_.engine.model) {
    options.model = o_.reference;
    NIBBLE_ASSIGN(reference_, Engine::Load(options));
  }
  logits_.emplace(reference_ != nullptr ? *reference_ : *exact_, o_.keep_bytes);
  return {};
}

// Lengths of the retrieval texts, ascending. None exceeds the context, of which is known that it fits.
Status Comparison::ChooseContexts() {
  report_.contexts = o_.contexts.empty() ? RetrievalContexts(report_.context) : o_.contexts;
  std::sort(report_.contexts.begin(), report_.contexts.end());
  if (std::adjacent_find(report_.contexts.begin(), report_.contexts.end()) != report_.contexts.end())
    return Error(Code::kInvalidArgument, "contexts: a length is given twice");
  if (report_.contexts.front() >= kShortestContext && report_.contexts.back() <= report_.context) return {};
  return Error(
      Code::kInvalidArgument, "contexts: retrieval texts have {} to {} tokens (the context), not {}",
      kShortestContext, report_.context,
      report_.contexts.front() < kShortestContext ? report_.contexts.front() : report_.contexts.back());
}

Status Comparison::PrepareRetrieval(std::span<const int32_t> ids) {
  const ModelConfig& config = exact_->config();
  RetrievalOptions options{.contexts = report_.contexts, .trials = o_.trials, .seed = o_.seed};
  for (const auto& [wanted, task, trials] :
       {std::tuple{o_.passkey, Task::kPassKey, &inputs_.passkey},
        std::tuple{o_.repetition, Task::kRepetition, &inputs_.repetition}}) {
    if (!wanted) continue;
    NIBBLE_ASSIGN(*trials,
                  MakeTrials(task, exact_->tokenizer(), config.bos_token, config.max_position, ids, options));
  }
  return {};
}

// Before any work, for a calibration comes late.
Status Comparison::CheckCalibration() const {
  if (o_.calibration.empty()) return {};
  NIBBLE_ASSIGN(const auto ids, exact_->tokenizer().Encode(o_.calibration, SpecialTokens::kOmit));
  const int window = CalibrateOptions{}.window;
  if (int64_t(ids.size()) + 1 >= window && exact_->config().max_position >= window) return {};
  return Error(Code::kUnsupported,
               "{}: calibration takes a window of {} tokens; the text has {}, the model's context {}",
               o_.calibration_name, window, ids.size(), exact_->config().max_position);
}

Status Comparison::Prepare(std::string_view text) {
  const ModelConfig& config = exact_->config();
  EvaluateOptions evaluate;
  evaluate.window = o_.window;
  evaluate.max_windows = o_.max_windows;
  NIBBLE_ASSIGN(const Windows windows, CutText(*exact_, reference_.get(), text, evaluate));
  NIBBLE_ASSIGN(const std::vector<int32_t> ids, exact_->tokenizer().Encode(text, SpecialTokens::kOmit));
  if (o_.perplexity && windows[0].size() < size_t(o_.window))
    return Error(Code::kInvalidArgument,
                 "the text has {} tokens, fewer than one window of {}; try --window {}", ids.size(),
                 o_.window, windows[0].size());
  const int64_t most = config.max_position - kAfterContext;
  report_.context = o_.context > 0 ? o_.context : std::min(kDefaultContext, most);
  if (report_.context > most || most < kShortestContext)
    return Error(Code::kInvalidArgument,
                 "a context of {} tokens and {} for questions exceed the model's context of {}",
                 std::max<int64_t>(report_.context, kShortestContext), kAfterContext, config.max_position);
  if (int64_t(ids.size()) < report_.context)
    return Error(Code::kInvalidArgument,
                 "the text has {} tokens, fewer than the context of {}; try --context {}", ids.size(),
                 report_.context, ids.size());
  NIBBLE_RETURN_IF_ERROR(CheckCalibration());
  NIBBLE_RETURN_IF_ERROR(ChooseContexts());
  NIBBLE_RETURN_IF_ERROR(PrepareRetrieval(ids));

  if (config.bos_token >= 0) inputs_.decode_prompt.push_back(config.bos_token);
  const auto rest = size_t(report_.context) - inputs_.decode_prompt.size();
  inputs_.decode_prompt.insert(inputs_.decode_prompt.end(), ids.begin(), ids.begin() + ptrdiff_t(rest));
  if (!o_.perplexity) return {};
  inputs_.windows = windows;
  const auto fit = o_.keep_bytes / size_t(AttentionReference::BytesPerToken(config));
  const auto& first = windows[0];
  inputs_.attention_tokens.assign(first.begin(), first.begin() + ptrdiff_t(std::min(fit, first.size())));
  report_.attention_tokens = int64_t(inputs_.attention_tokens.size());
  return {};
}

Status Comparison::CaptureAttention() {
  if (inputs_.attention_tokens.empty()) return {};
  NIBBLE_ASSIGN(attention_, AttentionReference::Capture(*exact_, inputs_.attention_tokens,
                                                        [this](int64_t rows) { return Fed(rows); }));
  if (reference_ != nullptr) exact_.reset();  // the other folder's engine is all that is needed from here on
  return {};
}

Result<EvaluateReport> Comparison::Score(Engine& engine) {
  EvaluateOptions evaluate;
  evaluate.threads = o_.engine.threads;
  evaluate.cancel = o_.cancel;
  int64_t before = 0;
  evaluate.on_progress = [&](int64_t done, int64_t) {
    (void)Fed(done - std::exchange(before, done));  // Evaluate asks `cancel` itself
  };
  NIBBLE_ASSIGN(EvaluateReport report, EvaluateWindows(engine, &*logits_, inputs_.windows, evaluate));
  if (report.cancelled) return Error(Code::kCancelled, "the comparison was cancelled");
  return report;
}

Status Comparison::MeasureQuality(Engine& engine, RecipeReport* report) {
  const auto fed = [this](int64_t rows) { return Fed(rows); };
  NIBBLE_ASSIGN(report->quality, Score(engine));
  NIBBLE_ASSIGN(report->accumulated, attention_->Compare(engine, View::kAccumulated, fed));
  NIBBLE_ASSIGN(report->isolated, attention_->Compare(engine, View::kIsolated, fed));
  return {};
}

Status Comparison::MeasurePlanned(const EngineOptions& options, RecipeReport* report) {
  NIBBLE_ASSIGN(CalibrateReport found, Calibrate({.model = options.model,
                                                  .recipe = options.recipe,
                                                  .dtype = options.dtype,
                                                  .device = options.device,
                                                  .threads = options.threads,
                                                  .cancel = o_.cancel},
                                                 o_.calibration));
  NIBBLE_ASSIGN(const std::unique_ptr<Engine> engine, Engine::Load(options, std::move(found.plan)));
  NIBBLE_ASSIGN(report->planned, Score(*engine));
  return {};
}

// Times greedy steps after a prompt of the text, and takes what they read of the cache.
Status Comparison::MeasureDecoding(Engine& engine, RecipeReport* report) {
  Request request;
  request.prompt = inputs_.decode_prompt;
  request.max_tokens = o_.decode_steps + 1;
  request.ignore_eos = true;
  engine.TakeReads();  // of what ran before
  NIBBLE_ASSIGN(const std::vector<Completion> done, engine.Generate({&request, 1}, o_.cancel));
  if (done[0].finish == FinishReason::kCancelled)
    return Error(Code::kCancelled, "the comparison was cancelled");
  report->step_seconds = done[0].decode_seconds / o_.decode_steps;
  report->reads = engine.TakeReads();
  return Fed(int64_t(request.prompt.size()));
}

Result<RecipeReport> Comparison::Measure(const std::string& recipe) {
  RecipeReport report{.recipe = recipe};
  const auto fed = [this](int64_t rows) { return Fed(rows); };
  EngineOptions options = o_.engine;
  options.recipe = recipe;
  options.max_seqs = 1;
  const auto parsed = ParseRecipe(recipe, options.dtype);
  if (parsed.ok()) report.canonical = ToString(*parsed);
  auto engine = parsed.ok() ? Engine::Load(options) : parsed.status();
  if (!engine.ok()) {
    report.refused = engine.status().message();
    return report;
  }
  const AttentionRecipe exact = *ParseRecipe("exact", options.dtype);
  AttentionRecipe rest = *parsed;  // the recipe but for its codecs, its tail and its selection
  rest.k = exact.k, rest.v = exact.v, rest.tail = exact.tail, rest.select = exact.select;
  report.reads_all = parsed->select == exact.select;
  report.float_arithmetic = rest == exact;
  const auto measure = [&]() -> Status {
    NIBBLE_RETURN_IF_ERROR(MeasureDecoding(**engine, &report));
    report.kv = (*engine)->kv_sizes();  // bits that a codec chooses as it runs: of this context
    if (o_.perplexity) NIBBLE_RETURN_IF_ERROR(MeasureQuality(**engine, &report));
    NIBBLE_ASSIGN(report.passkey, RunTrials(**engine, inputs_.passkey, fed));
    NIBBLE_ASSIGN(report.repetition, RunTrials(**engine, inputs_.repetition, fed));
    engine->reset();  // one at a time in memory
    if (!o_.perplexity || o_.calibration.empty() || !PlanSearch::Check(*parsed).ok()) return {};
    return MeasurePlanned(options, &report);
  };
  const Status status = measure();
  if (status.code() == Code::kCancelled) return status;
  if (!status.ok())
    return RecipeReport{.recipe = recipe, .canonical = report.canonical, .refused = status.message()};
  return report;
}

Result<CompareReport> Comparison::Run(std::string_view text) {
  const auto start = Clock::now();
  NIBBLE_RETURN_IF_ERROR(LoadReference());
  NIBBLE_RETURN_IF_ERROR(Prepare(text));
  const int64_t rows = inputs_.Rows(!o_.calibration.empty());
  total_rows_ = rows * int64_t(recipes_.size());
  Begin("", 0);
  Status status = CaptureAttention();
  for (size_t i = 0; i < recipes_.size() && status.ok(); ++i) {
    Begin(recipes_[i], rows * int64_t(i));
    Result<RecipeReport> report = Measure(recipes_[i]);
    status = report.status();
    if (report.ok()) report_.recipes.push_back(*std::move(report));
  }
  report_.cancelled = status.code() == Code::kCancelled;
  if (!status.ok() && (!report_.cancelled || report_.recipes.empty())) return status;
  report_.windows = int(inputs_.windows.size());
  for (const auto& w : inputs_.windows) report_.window_tokens += int64_t(w.size()) - 1;
  report_.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  return std::move(report_);
}

}  // namespace

std::vector<int> RetrievalContexts(int64_t context) {
  std::vector<int> contexts;
  for (int64_t c = context; contexts.empty() || (c >= kShortestContext && contexts.size() < 4); c /= 2)
    contexts.insert(contexts.begin(), int(c));
  return contexts;
}

Result<CompareReport> Compare(std::span<const std::string> recipes, std::string_view text,
                              const CompareOptions& options) {
  return Comparison(recipes, options).Run(text);
}

}  // namespace nibble
