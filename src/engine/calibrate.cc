// SPDX-License-Identifier: Apache-2.0
#include "engine/calibrate.h"

#include <chrono>
#include <cmath>

#include "base/check.h"
#include "engine/evaluate.h"
#include "engine/plan_search.h"
#include "io/fingerprint.h"
#include "io/weights.h"
#include "model/model.h"
#include "text/tokenizer.h"

namespace nibble {
namespace {

// Collects a layer's rows and searches as soon as the layer has attended, so that one layer is held at a
// time.
class Calibrator final : public Observer {
 public:
  Calibrator(Backend& backend, const ModelConfig& config, const AttentionRecipe& recipe,
             const CalibrateOptions& options, std::vector<int32_t> lengths, CalibrateReport* report)
      : backend_(backend), config_(config), recipe_(recipe), options_(options), report_(*report) {
    rows_.lengths = std::move(lengths);
    rows_.heads = config.heads, rows_.kv_heads = config.kv_heads, rows_.head_dim = config.head_dim;
  }

  void Observe(int layer, Site site, Tensor x) override {
    if (!status_.ok()) return;
    if (site == Site::kQuery) rows_.q = Copy(x);
    if (site == Site::kKey) rows_.k = Copy(x);
    if (site == Site::kValue) rows_.v = Copy(x);
    if (site != Site::kAttended) return;
    rows_.out = Copy(x);
    for (const std::vector<float>* values : {&rows_.q, &rows_.k, &rows_.v, &rows_.out})
      for (const float value : *values)
        if (!std::isfinite(value) && status_.ok())
          status_ = Error(Code::kCorrupt,
                          "layer {}: queries, keys or values are not numbers; check the weights with nibble "
                          "inspect --check-weights",
                          layer);
    if (!status_.ok()) return;
    rows_.window = config_.layer_uses_window[size_t(layer)] ? config_.sliding_window : 0;
    status_ = settled_ ? Measure(layer) : Search();
    const int passes = by_head_.empty() || by_head_[0].empty() ? 1 : 2;
    if (options_.on_progress)
      options_.on_progress(layer + 1 + (settled_ ? config_.layers : 0), passes * config_.layers);
    if (options_.cancel != nullptr && *options_.cancel && status_.ok())
      status_ = Error(Code::kCancelled, "cancelled");
  }
  const Status& status() const { return status_; }

  // Chooses what all heads of the model share a budget for. True when there was something to choose: then
  // the model runs once more, and the layers' errors are measured anew.
  bool Settle() {
    if (by_head_[0].empty()) return false;
    const std::vector<std::string> words = SettleHeads(by_head_, options_.budget, &report_.plan);
    for (size_t i = 0; i < words.size(); ++i) {
      std::string& all = report_.layers[i].choices;
      all += (all.empty() ? "" : "; ") + words[i];
    }
    return settled_ = true;
  }

 private:
  std::vector<float> Copy(const Tensor& x) {
    int64_t n = 1;
    for (int i = 0; i < x.rank; ++i) n *= x.dim[size_t(i)];
    std::vector<float> host(static_cast<size_t>(n));
    backend_.Download(static_cast<const std::byte*>(x.data), reinterpret_cast<std::byte*>(host.data()),
                      host.size() * sizeof(float));
    return host;
  }

  Status Search() {
    PlanSearch search(backend_, rows_, recipe_, options_.min_score, options_.budget);
    NIBBLE_ASSIGN(LayerChoice choice, search.Run());
    report_.plan.layers.push_back(std::move(choice.plan));
    report_.layers.push_back({choice.before, choice.after, std::move(choice.words)});
    by_head_.push_back(std::move(choice.by_head));
    return {};
  }

  Status Measure(int layer) {
    LayerTrial trial(backend_, rows_);
    NIBBLE_RETURN_IF_ERROR(trial.Init());
    const LayerPlan& plan = report_.plan.layers[size_t(layer)];
    NIBBLE_ASSIGN(const std::vector<OutputError> heads, trial.Run(Apply(recipe_, plan), plan));
    OutputError sum;
    for (const OutputError& e : heads) sum.Add(e);
    report_.layers[size_t(layer)].after = sum;
    return {};
  }

  Backend& backend_;
  const ModelConfig& config_;
  const AttentionRecipe& recipe_;
  const CalibrateOptions& options_;
  CalibrateReport& report_;
  LayerRows rows_;
  std::vector<std::vector<HeadOptions>> by_head_;  // [layers]
  bool settled_ = false;
  Status status_;
};

Result<std::vector<std::vector<int32_t>>> CutText(const CalibrateOptions& o, const ModelConfig& config,
                                                  std::string_view text) {
  if (o.window > config.max_position)
    return Error(Code::kInvalidArgument, "a window of {} tokens: the model's context is {}", o.window,
                 config.max_position);
  NIBBLE_ASSIGN(const std::unique_ptr<Tokenizer> tokenizer, Tokenizer::Load(o.model));
  NIBBLE_ASSIGN(const std::vector<int32_t> ids, tokenizer->Encode(text, SpecialTokens::kOmit));
  const int count = int(std::max<int64_t>(1, o.tokens / o.window));
  std::vector<std::vector<int32_t>> windows = CutWindows(ids, config.bos_token, o.window, count);
  if (windows.empty() || int(windows[0].size()) < o.window)
    return Error(Code::kInvalidArgument, "the calibration text has {} tokens, fewer than a window of {}",
                 ids.size(), o.window);
  return windows;
}

Status RunModel(Model& model, Backend& backend, const std::vector<std::vector<int32_t>>& windows,
                Observer* observer) {
  const ModelConfig& c = model.config();
  std::vector<int32_t> tokens, lengths;
  for (const auto& w : windows) {
    tokens.insert(tokens.end(), w.begin(), w.end());
    lengths.push_back(int32_t(w.size()));
  }
  const auto seqs = int(windows.size());
  NIBBLE_ASSIGN(const std::unique_ptr<KvCache> cache,
                KvCache::Make(backend, {.shape = {c.layers, c.kv_heads, c.head_dim},
                                        .heads = c.heads,
                                        .recipe = {},
                                        .max_seqs = seqs,
                                        .max_step_tokens = int(tokens.size()),
                                        .max_tokens = int64_t(tokens.size())}));
  std::vector<SeqId> ids;
  for (int i = 0; i < seqs; ++i) {
    NIBBLE_ASSIGN(const SeqId id, cache->Open());
    ids.push_back(id);
  }
  NIBBLE_RETURN_IF_ERROR(cache->BeginStep(ids, lengths));
  model.Observe(observer);
  model.Forward({tokens, {}}, *cache);
  backend.Sync();
  model.Observe(nullptr);
  return {};
}

}  // namespace

Result<CalibrateReport> Calibrate(const CalibrateOptions& o, std::string_view text) {
  const auto start = std::chrono::steady_clock::now();
  NIBBLE_ASSIGN(const AttentionRecipe recipe, ParseRecipe(o.recipe, o.dtype));
  NIBBLE_RETURN_IF_ERROR(PlanSearch::Check(recipe));
  NIBBLE_ASSIGN(const ModelConfig config, ReadModelConfig(o.model));
  NIBBLE_ASSIGN(const auto windows, CutText(o, config, text));
  int64_t rows = 0;
  std::vector<int32_t> lengths;
  for (const auto& w : windows) rows += int64_t(w.size()), lengths.push_back(int32_t(w.size()));

  NIBBLE_ASSIGN(const std::unique_ptr<Backend> backend, MakeBackend(o.device, o.threads));
  NIBBLE_RETURN_IF_ERROR(backend->CheckRecipe(recipe, config.head_dim));
  NIBBLE_ASSIGN(const std::unique_ptr<Model> model,
                Model::Load(o.model, *backend, {.max_step_rows = int(rows), .max_logit_rows = 1}));
  NIBBLE_ASSIGN(const std::unique_ptr<io::Weights> weights, io::Weights::Open(o.model));
  CalibrateReport report{.tokens = rows};
  NIBBLE_ASSIGN(report.plan.fingerprint, io::Fingerprint(*weights));
  report.plan.recipe = ToString(recipe);
  report.plan.heads = config.heads, report.plan.kv_heads = config.kv_heads;
  report.plan.head_dim = config.head_dim;

  Calibrator calibrator(*backend, config, recipe, o, std::move(lengths), &report);
  NIBBLE_RETURN_IF_ERROR(RunModel(*model, *backend, windows, &calibrator));
  NIBBLE_RETURN_IF_ERROR(calibrator.status());
  if (calibrator.Settle()) {
    NIBBLE_RETURN_IF_ERROR(RunModel(*model, *backend, windows, &calibrator));
    NIBBLE_RETURN_IF_ERROR(calibrator.status());
  }
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

}  // namespace nibble
