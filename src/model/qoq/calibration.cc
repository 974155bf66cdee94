// SPDX-License-Identifier: Apache-2.0
#include "model/qoq/calibration.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "backend/backend.h"
#include "base/check.h"
#include "cache/kv_cache.h"
#include "model/model.h"

namespace nibble::qoq {
namespace {

constexpr int kStepRows = 512;
constexpr int kStubWidth = 16;  // of the MLP that nobody looks at

// Collects the sites of attention, step after step.
class Recorder final : public Observer {
 public:
  Recorder(AttentionTrace* trace, bool int8, bool keep_heads, Math& math)
      : trace_(trace), int8_(int8), keep_heads_(keep_heads), math_(math) {}
  void StartStep(int row) { row_ = row; }

  void Observe(int, Site site, Tensor x) override {
    switch (site) {
      case Site::kAttentionInput:
        if (int8_) RoundInPlace(x);
        return Keep(x, &trace_->input);
      case Site::kQuery:
        return keep_heads_ ? Keep(x, &trace_->q) : void();
      case Site::kKey:
        return keep_heads_ ? Keep(x, &trace_->k) : void();
      case Site::kValue:
        return keep_heads_ ? Keep(x, &trace_->v) : void();
      case Site::kAttended:
        return Keep(x, &trace_->attended);
      default:
        return;
    }
  }

 private:
  void Keep(const Tensor& x, Matrix* out) const {
    NIBBLE_CHECK(x.numel() == x.dim[0] * out->cols, "width of a site");
    std::memcpy(out->Row(row_), x.as<const float>(), static_cast<size_t>(x.numel()) * sizeof(float));
  }
  void RoundInPlace(const Tensor& x) {
    Matrix rows(static_cast<int>(x.dim[0]), static_cast<int>(x.dim[1]));
    std::memcpy(rows.v.data(), x.as<float>(), rows.v.size() * sizeof(float));
    math_.RoundToInt8(&rows);
    std::memcpy(x.as<float>(), rows.v.data(), rows.v.size() * sizeof(float));
  }

  AttentionTrace* trace_;
  bool int8_, keep_heads_;
  Math& math_;
  int row_ = 0;
};

// A model of one layer whose "embedding" is the stream itself: its token t is row t.
MemoryWeights OneLayer(const Layer& layer, const Matrix& stream) {
  Layer one = layer;
  const int hidden = stream.cols;
  for (const LinearId id : {kGate, kUp}) one.linear[id] = {Matrix(kStubWidth, hidden), {}};
  one.linear[kDown] = {Matrix(hidden, kStubWidth), {}};
  MemoryWeights weights;
  AddLayer(std::move(one), 0, &weights);
  Ends ends;
  ends.embedding = stream;
  ends.final_norm.assign(static_cast<size_t>(hidden), 1.0f);
  AddEnds(std::move(ends), &weights);
  return weights;
}

ModelConfig OneLayerConfig(const ModelConfig& config, int layer, int rows) {
  ModelConfig one = config;
  one.layers = 1;
  one.vocab = rows;
  one.intermediate = kStubWidth;
  one.tied_head = true;
  one.mlp_bias = false;
  one.layer_uses_window = {config.layer_uses_window[static_cast<size_t>(layer)]};
  one.weights = {};
  return one;
}

Status FeedWindow(Model& model, KvCache& cache, int first, int window, Recorder* recorder) {
  NIBBLE_ASSIGN(const SeqId seq, cache.Open());
  std::vector<int32_t> ids(kStepRows);
  for (int done = 0; done < window; done += kStepRows) {
    const int32_t count = std::min(kStepRows, window - done);
    NIBBLE_RETURN_IF_ERROR(cache.BeginStep({&seq, 1}, {&count, 1}));
    std::iota(ids.begin(), ids.begin() + count, first + done);
    recorder->StartStep(first + done);
    model.Forward({{ids.data(), static_cast<size_t>(count)}, {}}, cache);
  }
  cache.Close(seq);
  return {};
}

}  // namespace

Result<Tokens> CutCalibration(const Tokenizer& tokenizer, const ModelConfig& config, std::string_view text,
                              int window, int64_t tokens) {
  NIBBLE_ASSIGN(const std::vector<int32_t> ids, tokenizer.Encode(text, SpecialTokens::kOmit));
  const bool bos = config.bos_token >= 0;
  const int piece = window - (bos ? 1 : 0);
  const auto available = static_cast<int64_t>(ids.size());
  if (available == 0) return Error(Code::kInvalidArgument, "empty, expected a text to calibrate on");
  if (available < piece) {
    return Error(Code::kInvalidArgument, "has {} tokens, expected at least one window of {}", available,
                 piece);
  }
  for (const int32_t id : ids) {
    if (id < 0 || id >= config.vocab)
      return Error(Code::kCorrupt, "token id {} is outside the vocabulary of {}", id, config.vocab);
  }
  int64_t windows = available / piece;
  if (tokens > 0) windows = std::min(windows, std::max<int64_t>(1, tokens / window));
  Tokens out;
  out.window = window;
  for (int64_t i = 0; i < windows; ++i) {
    if (bos) out.ids.push_back(config.bos_token);
    out.ids.insert(out.ids.end(), ids.begin() + i * piece, ids.begin() + (i + 1) * piece);
  }
  return out;
}

Matrix EmbedTokens(const Matrix& embedding, std::span<const int32_t> ids) {
  Matrix x(static_cast<int>(ids.size()), embedding.cols);
  for (int t = 0; t < x.rows; ++t) std::copy_n(embedding.Row(ids[static_cast<size_t>(t)]), x.cols, x.Row(t));
  return x;
}

Result<AttentionTrace> TraceAttention(const ModelConfig& config, const Layer& layer, const Matrix& stream,
                                      const AttentionOptions& options) {
  NIBBLE_CHECK(options.window > 0 && stream.rows % options.window == 0, "a stream of whole windows");
  NIBBLE_ASSIGN(const std::unique_ptr<Math> math, Math::Make(1));  // for the recorder, between kernels
  NIBBLE_ASSIGN(const std::unique_ptr<Backend> backend, MakeCpuBackend(options.threads));
  const ModelConfig one = OneLayerConfig(config, options.layer, stream.rows);
  const int step_rows = std::min(kStepRows, options.window);
  NIBBLE_ASSIGN(const std::unique_ptr<Model> model,
                Model::FromWeights(one, OneLayer(layer, stream), *backend,
                                   {.max_step_rows = step_rows, .max_logit_rows = 1}));
  KvCacheOptions cache_options;
  cache_options.shape = {1, config.kv_heads, config.head_dim};
  cache_options.recipe = options.recipe;
  cache_options.max_step_tokens = step_rows;
  cache_options.max_tokens = options.window;
  NIBBLE_ASSIGN(const std::unique_ptr<KvCache> cache, KvCache::Make(*backend, cache_options));

  AttentionTrace trace;
  const int q = config.heads * config.head_dim, kv = config.kv_heads * config.head_dim;
  trace.input = Matrix(stream.rows, stream.cols);
  trace.attended = Matrix(stream.rows, q);
  if (options.keep_heads) {
    trace.q = Matrix(stream.rows, q);
    trace.k = trace.v = Matrix(stream.rows, kv);
  }
  Recorder recorder(&trace, options.int8, options.keep_heads, *math);
  model->Observe(&recorder);
  for (int first = 0; first < stream.rows; first += options.window)
    NIBBLE_RETURN_IF_ERROR(FeedWindow(*model, *cache, first, options.window, &recorder));
  return trace;
}

}  // namespace nibble::qoq
