// SPDX-License-Identifier: Apache-2.0
#include "engine/attention_error.h"

#include <cmath>

namespace nibble {
namespace {

using Layer = AttentionReference::Layer;

// The part of a layer that a site shows, or null.
template <class L>
auto* PartOf(L& layer, Site site) {
  switch (site) {
    case Site::kQuery:
      return &layer.q;
    case Site::kKey:
      return &layer.k;
    case Site::kValue:
      return &layer.v;
    case Site::kAttended:
      return &layer.attended;
    default:
      return static_cast<decltype(&layer.q)>(nullptr);
  }
}

size_t DenseSize(const Tensor& x) {
  NIBBLE_CHECK(x.dtype == DType::kF32 && x.stride[x.rank - 1] == 1, "an observed tensor is dense f32");
  NIBBLE_CHECK(x.stride[0] * x.dim[0] == x.numel(), "an observed tensor is dense");
  return size_t(x.numel());
}

class CaptureObserver final : public Observer {
 public:
  CaptureObserver(Backend& backend, std::vector<Layer>* layers) : backend_(backend), layers_(*layers) {}
  void Observe(int layer, Site site, Tensor x) override {
    std::vector<float>* part = PartOf(layers_[size_t(layer)], site);
    if (part == nullptr) return;
    const size_t at = part->size(), size = DenseSize(x);
    part->resize(at + size);
    backend_.Download(static_cast<const std::byte*>(x.data), part->data() + at, size * sizeof(float));
    backend_.Sync();
  }

 private:
  Backend& backend_;
  std::vector<Layer>& layers_;
};

// Sums of one layer, in row order.
struct Sums {
  double product = 0, square = 0, exact_square = 0, difference = 0, exact_sum = 0;
  size_t seen[4] = {};  // floats of q, k, v, attended so far

  LayerError ToError() const {
    const double norms = std::sqrt(square * exact_square);
    return {norms > 0 ? product / norms : (square == exact_square ? 1.0 : 0.0),
            exact_sum > 0 ? difference / exact_sum : difference};
  }
};

class CompareObserver final : public Observer {
 public:
  CompareObserver(Backend& backend, std::span<const Layer> layers, AttentionReference::View view)
      : backend_(backend), layers_(layers), view_(view), sums_(layers.size()) {}

  void Observe(int layer, Site site, Tensor x) override {
    const std::vector<float>* part = PartOf(layers_[size_t(layer)], site);
    if (part == nullptr) return;
    Sums& sums = sums_[size_t(layer)];
    size_t& seen = sums.seen[size_t(site) - size_t(Site::kQuery)];
    const size_t size = DenseSize(x);
    NIBBLE_CHECK(seen + size <= part->size(), "rows beyond those of the exact engine");
    const std::span<const float> exact = std::span(*part).subspan(seen, size);
    seen += size;
    if (site == Site::kAttended) return Add(x, exact, &sums);
    if (view_ == AttentionReference::View::kAccumulated) return;
    backend_.Upload(exact.data(), static_cast<std::byte*>(x.data), exact.size_bytes());
    backend_.Sync();
  }
  std::vector<LayerError> Errors() const {
    std::vector<LayerError> errors;
    for (const Sums& s : sums_) errors.push_back(s.ToError());
    return errors;
  }

 private:
  void Add(Tensor x, std::span<const float> exact, Sums* sums) {
    staging_.resize(exact.size());
    backend_.Download(static_cast<const std::byte*>(x.data), staging_.data(), exact.size_bytes());
    backend_.Sync();
    for (size_t i = 0; i < exact.size(); ++i) {
      const double a = double(staging_[i]), b = double(exact[i]);
      sums->product += a * b;
      sums->square += a * a;
      sums->exact_square += b * b;
      sums->difference += std::abs(a - b);
      sums->exact_sum += std::abs(b);
    }
  }

  Backend& backend_;
  std::span<const Layer> layers_;
  const AttentionReference::View view_;
  std::vector<Sums> sums_;
  std::vector<float> staging_;
};

Status RunObserved(Engine& engine, Observer* observer, std::span<const int32_t> tokens,
                   const std::function<Status(int64_t rows)>& on_rows) {
  engine.Observe(observer);
  const Status status =
      engine.Score(tokens, [&](int64_t, Tensor logits) -> Status { return on_rows(logits.dim[0]); });
  engine.Observe(nullptr);
  return status;
}

}  // namespace

static_assert(int(Site::kAttended) - int(Site::kQuery) == 3, "Sums::seen has a counter a site");

int64_t AttentionReference::BytesPerToken(const ModelConfig& config) {
  return int64_t{4} * config.layers * config.head_dim * (2 * config.heads + 2 * config.kv_heads);
}

Result<AttentionReference> AttentionReference::Capture(Engine& exact, std::span<const int32_t> tokens,
                                                       const std::function<Status(int64_t rows)>& on_rows) {
  AttentionReference reference;
  reference.tokens_.assign(tokens.begin(), tokens.end());
  reference.layers_.resize(size_t(exact.config().layers));
  CaptureObserver observer(exact.backend(), &reference.layers_);
  NIBBLE_RETURN_IF_ERROR(RunObserved(exact, &observer, tokens, on_rows));
  return reference;
}

Result<std::vector<LayerError>> AttentionReference::Compare(
    Engine& engine, View view, const std::function<Status(int64_t rows)>& on_rows) const {
  NIBBLE_CHECK(size_t(engine.config().layers) == layers_.size(), "another model");
  CompareObserver observer(engine.backend(), layers_, view);
  NIBBLE_RETURN_IF_ERROR(RunObserved(engine, &observer, tokens_, on_rows));
  return observer.Errors();
}

}  // namespace nibble
