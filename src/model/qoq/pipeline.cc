// SPDX-License-Identifier: Apache-2.0
#include "model/qoq/pipeline.h"

#include <algorithm>

#include "base/check.h"
#include "model/qoq/cholesky.h"
#include "model/qoq/reorder.h"
#include "model/qoq/smooth_attention.h"
#include "model/qoq/smooth_output.h"

namespace nibble::qoq {
namespace {

// Of the correction for errors that came before a linear, as a share of the mean diagonal. It is fitted to
// one text: with little damping it follows that text's noise. Measured on novelist-10m, 16384 tokens of
// Treasure Island, KL divergence on another text: none .0315, 0.01 .0303, 0.1 .0290, 1 .0267, 4 .0283.
constexpr double kMakeUpDamping = 1.0;

// The exact activations of a layer, as its linears see them.
struct Trace {
  AttentionTrace attention;
  Matrix middle;     // the stream after attention
  Matrix mlp_input;  // after the second norm
  Matrix gated;      // input of down
  Matrix out;        // the stream after the layer
};

class LayerRun {
 public:
  LayerRun(const ModelConfig& config, Layer layer, int index, const LayerOptions& options, Math& math,
           Streams* streams)
      : config_(config),
        layer_(std::move(layer)),
        options_(options),
        math_(math),
        streams_(*streams),
        shape_{config.heads, config.kv_heads, config.head_dim} {
    result_.report.index = index;
  }

  Result<QuantizedLayer> Run();

 private:
  Status TraceExact();
  void Transform();
  void SmoothHeads();
  void SmoothMlpHidden();
  Status QuantizeAttention();
  Status QuantizeMlp();
  // Quantizes linears that share the inputs x; `gap_of` gives what the output of one lacks, correlated with
  // x.
  template <class F>
  Status QuantizeShared(std::initializer_list<LinearId> ids, const Matrix& x, F&& gap_of);
  Status QuantizeOnto(LinearId id, const Matrix& x, const Matrix& target);
  Matrix Apply(LinearId id, const Matrix& x) {
    return math_.Product(x, layer_.linear[id].w, layer_.linear[id].bias);
  }
  AttentionOptions Attention(bool exact) const {
    AttentionOptions o;
    o.layer = result_.report.index;
    o.window = options_.window;
    o.int8 = !exact;
    o.keep_heads = exact;
    if (!exact) o.recipe = options_.recipe;
    o.threads = options_.threads;
    return o;
  }
  float eps() const { return static_cast<float>(config_.norm_eps); }

  const ModelConfig& config_;
  Layer layer_;  // a linear that is done holds what its codes stand for
  const LayerOptions& options_;
  Math& math_;
  Streams& streams_;
  HeadShape shape_;
  Trace exact_;
  QuantizedLayer result_;
};

Matrix Sum(Matrix a, const Matrix& b) {
  for (size_t i = 0; i < a.v.size(); ++i) a.v[i] += b.v[i];
  return a;
}

Matrix Difference(Matrix a, const Matrix& b) {
  for (size_t i = 0; i < a.v.size(); ++i) a.v[i] -= b.v[i];
  return a;
}

// sum of w[i] * (h w^T)[i] over all rows of w: the energy of x w^T for h = x^T x.
double Energy(const Matrix& w, const Matrix& h, Math& math) {
  const Matrix hw = math.Product(w, h);
  double sum = 0;
  for (size_t i = 0; i < w.v.size(); ++i) sum += double(w.v[i]) * double(hw.v[i]);
  return sum;
}

Status LayerRun::TraceExact() {
  NIBBLE_ASSIGN(exact_.attention, TraceAttention(config_, layer_, streams_.exact, Attention(true)));
  exact_.middle = Sum(Apply(kO, exact_.attention.attended), streams_.exact);
  exact_.mlp_input = math_.RmsNorm(exact_.middle, layer_.post_attention_norm, eps());
  exact_.gated = math_.Glu(Apply(kGate, exact_.mlp_input), Apply(kUp, exact_.mlp_input), config_.activation);
  exact_.out = Sum(Apply(kDown, exact_.gated), exact_.middle);
  if (const int64_t at = FindNotFinite(exact_.out); at >= 0) {
    return Error(Code::kInvalidArgument,
                 "layer {}: the stream becomes {} at calibration token {}, channel {}", result_.report.index,
                 exact_.out.v[static_cast<size_t>(at)], at / exact_.out.cols, at % exact_.out.cols);
  }
  return {};
}

void LayerRun::SmoothHeads() {
  LayerReport& report = result_.report;
  AttentionTrace& a = exact_.attention;
  if (options_.passes.smooth_attention) {
    const bool shared = !layer_.k_norm.empty();
    const AttentionSmoothing s =
        FindAttentionSmoothing(a.q, a.k, shape_, options_.attention_alpha, shared, math_);
    SmoothAttention(s.lambda, shape_, &layer_);
    report.key_alpha = s.alpha[0], report.key_beta = s.beta[0];
    report.key_error_before = s.error_before, report.key_error_after = s.error_after;
  }
  if (options_.passes.smooth_output) {
    const OutputSmoothing s =
        FindValueSmoothing(a.v, a.attended, layer_.linear[kO], shape_, options_.storage, math_);
    SmoothValues(s.lambda, shape_, &layer_);
    DivideColumns(PerQueryHead(s.lambda, shape_), &a.attended);
    report.value_alpha = s.alpha, report.value_beta = s.beta;
  }
  a.q = a.k = a.v = Matrix();
}

void LayerRun::SmoothMlpHidden() {
  const OutputSmoothing s = FindMlpSmoothing(exact_.gated, layer_.linear[kDown], options_.storage, math_);
  SmoothMlp(s.lambda, &layer_);
  DivideColumns(s.lambda, &exact_.gated);
  result_.report.mlp_alpha = s.alpha, result_.report.mlp_beta = s.beta;
}

void LayerRun::Transform() {
  if (options_.passes.reorder) {
    const std::vector<int> order = ByEnergy(exact_.gated);
    ReorderMlp(order, &layer_);
    ReorderColumns(order, &exact_.gated);
  }
  SmoothHeads();
  if (options_.passes.smooth_output) SmoothMlpHidden();
}

template <class F>
Status LayerRun::QuantizeShared(std::initializer_list<LinearId> ids, const Matrix& x, F&& gap_of) {
  const Matrix h = math_.Gram(x);
  const Matrix u = InverseFactor(h, options_.damping, math_);
  const Matrix damped = options_.passes.gptq ? InverseFactor(h, kMakeUpDamping, math_) : Matrix();
  const RoundingOptions rounding{options_.storage, options_.passes.clip, options_.passes.gptq};
  for (const LinearId id : ids) {
    FloatLinear& linear = layer_.linear[id];
    const Matrix wanted =
        options_.passes.gptq ? MakeUpFor(linear.w, gap_of(linear.w, h), damped, math_) : linear.w;
    auto rounded = Round(wanted, u, rounding, math_);
    if (!rounded.ok()) {
      return Error(rounded.status().code(), "{}{}.weight: {}", LayerPrefix(result_.report.index),
                   kLinearNames[id], rounded.status().message());
    }
    LinearReport& report = result_.report.linear[id];
    const double energy = std::max(1e-30, Energy(linear.w, h, math_));
    Matrix nearest = linear.w;
    RoundToNearest(options_.storage, math_, &nearest);
    report.nearest = Energy(Difference(nearest, linear.w), h, math_) / energy;
    report.error = Energy(Difference(rounded->w, linear.w), h, math_) / energy;
    linear.w = std::move(rounded->w);
    result_.linear[id] = std::move(rounded->codes);
  }
  return {};
}

// target [rows, n] is what x w^T (without bias) should be.
Status LayerRun::QuantizeOnto(LinearId id, const Matrix& x, const Matrix& target) {
  return QuantizeShared({id}, x, [&](const Matrix& w, const Matrix&) {
    return math_.Cross(Difference(target, math_.Product(x, w)), x);
  });
}

Matrix AddBias(Matrix x, const std::vector<float>& bias) {
  for (int r = 0; r < x.rows && !bias.empty(); ++r)
    for (int c = 0; c < x.cols; ++c) x.Row(r)[c] += bias[static_cast<size_t>(c)];
  return x;
}

Status LayerRun::QuantizeAttention() {
  Matrix x = math_.RmsNorm(streams_.quantized, layer_.input_norm, eps());
  math_.RoundToInt8(&x);
  const Matrix drift = math_.Cross(x, Difference(exact_.attention.input, x));
  NIBBLE_RETURN_IF_ERROR(QuantizeShared(
      {kQ, kK, kV}, x, [&](const Matrix& w, const Matrix&) { return math_.Product(w, drift); }));
  NIBBLE_ASSIGN(AttentionTrace trace, TraceAttention(config_, layer_, streams_.quantized, Attention(false)));
  math_.RoundToInt8(&trace.attended);
  const Matrix start = AddBias(streams_.quantized, layer_.linear[kO].bias);
  NIBBLE_RETURN_IF_ERROR(QuantizeOnto(kO, trace.attended, Difference(exact_.middle, start)));
  streams_.quantized = Sum(Apply(kO, trace.attended), streams_.quantized);
  return {};
}

Status LayerRun::QuantizeMlp() {
  Matrix x = math_.RmsNorm(streams_.quantized, layer_.post_attention_norm, eps());
  math_.RoundToInt8(&x);
  const Matrix drift = math_.Cross(x, Difference(exact_.mlp_input, x));
  NIBBLE_RETURN_IF_ERROR(QuantizeShared(
      {kGate, kUp}, x, [&](const Matrix& w, const Matrix&) { return math_.Product(w, drift); }));
  Matrix gated = math_.Glu(Apply(kGate, x), Apply(kUp, x), config_.activation);
  math_.RoundToInt8(&gated);
  const Matrix start = AddBias(streams_.quantized, layer_.linear[kDown].bias);
  NIBBLE_RETURN_IF_ERROR(QuantizeOnto(kDown, gated, Difference(exact_.out, start)));
  streams_.quantized = Sum(Apply(kDown, gated), streams_.quantized);
  return {};
}

Result<QuantizedLayer> LayerRun::Run() {
  int parts = 0;
  const auto done = [&] { return options_.on_part ? options_.on_part(++parts) : Status{}; };
  NIBBLE_RETURN_IF_ERROR(TraceExact());
  NIBBLE_RETURN_IF_ERROR(done());
  Transform();
  NIBBLE_RETURN_IF_ERROR(done());
  NIBBLE_RETURN_IF_ERROR(QuantizeAttention());
  NIBBLE_RETURN_IF_ERROR(done());
  NIBBLE_RETURN_IF_ERROR(QuantizeMlp());
  NIBBLE_RETURN_IF_ERROR(done());
  streams_.exact = std::move(exact_.out);
  const double energy = std::max(1e-30, SquaredNorm(streams_.exact));
  result_.report.stream_error = SquaredDistance(streams_.exact, streams_.quantized) / energy;
  for (FloatLinear& linear : layer_.linear) linear.w = Matrix();
  result_.rest = std::move(layer_);
  return std::move(result_);
}

}  // namespace

Result<QuantizedLayer> QuantizeLayer(const ModelConfig& config, Layer layer, int index,
                                     const LayerOptions& options, Math& math, Streams* streams) {
  return LayerRun(config, std::move(layer), index, options, math, streams).Run();
}

}  // namespace nibble::qoq
