// SPDX-License-Identifier: Apache-2.0
#include "model/balance.h"

namespace nibble {
namespace {

// x / scale - shift / scale, as factor and addend. Empty vectors stay empty.
std::vector<float> Inverse(const std::vector<float>& scale) {
  std::vector<float> y(scale.size());
  for (size_t i = 0; i < y.size(); ++i) y[i] = 1.0f / scale[i];
  return y;
}
std::vector<float> Offset(const std::vector<float>& shift, const std::vector<float>& scale) {
  std::vector<float> y(shift.size());
  for (size_t i = 0; i < y.size(); ++i) y[i] = scale.empty() ? -shift[i] : -shift[i] / scale[i];
  return y;
}

}  // namespace

Result<const float*> Balance::Upload(const std::vector<float>& values) {
  if (values.empty()) return nullptr;
  NIBBLE_ASSIGN(const Buffer buffer, backend_.Alloc(values.size() * sizeof(float)));
  buffers_.push_back(buffer);
  backend_.Upload(values.data(), buffer.data, values.size() * sizeof(float));
  return reinterpret_cast<const float*>(buffer.data);
}

Result<std::unique_ptr<Balance>> Balance::Make(Backend& backend, const LayerPlan& plan, int group) {
  if (plan.k_scale.empty() && plan.k_shift.empty() && plan.v_scale.empty() && plan.v_shift.empty())
    return std::unique_ptr<Balance>();
  std::unique_ptr<Balance> b(new Balance(backend, group));
  NIBBLE_ASSIGN(b->q_.scale, b->Upload(plan.k_scale));
  NIBBLE_ASSIGN(b->k_.scale, b->Upload(Inverse(plan.k_scale)));
  NIBBLE_ASSIGN(b->k_.shift, b->Upload(Offset(plan.k_shift, plan.k_scale)));
  NIBBLE_ASSIGN(b->v_.scale, b->Upload(Inverse(plan.v_scale)));
  NIBBLE_ASSIGN(b->v_.shift, b->Upload(Offset(plan.v_shift, plan.v_scale)));
  NIBBLE_ASSIGN(b->out_.scale, b->Upload(plan.v_scale));
  NIBBLE_ASSIGN(b->out_.shift, b->Upload(plan.v_shift));
  return b;
}

Balance::~Balance() {
  for (const Buffer& b : buffers_) backend_.Free(b);
}

void Balance::Before(Tensor q, Tensor k, Tensor v) const {
  const auto apply = [this](Tensor x, const Affine& a, int repeat) {
    if (a.scale != nullptr || a.shift != nullptr) backend_.AffineHeads(x, a.scale, a.shift, repeat);
  };
  apply(q, q_, group_), apply(k, k_, 1), apply(v, v_, 1);
}

void Balance::After(Tensor out) const {
  if (out_.scale != nullptr || out_.shift != nullptr)
    backend_.AffineHeads(out, out_.scale, out_.shift, group_);
}

}  // namespace nibble
