// SPDX-License-Identifier: Apache-2.0
// Floor 7. The channel balance of one layer of a plan (recipe/plan.h), on the device: what happens to Q, K
// and V on the way into attention and to its output on the way out.
#pragma once
#include <memory>
#include <vector>

#include "backend/backend.h"

namespace nibble {

class Balance {
 public:
  // Null when the plan leaves this layer as it is. `group`: query heads a KV head.
  static Result<std::unique_ptr<Balance>> Make(Backend& backend, const LayerPlan& plan, int group);
  ~Balance();
  Balance(const Balance&) = delete;
  Balance& operator=(const Balance&) = delete;

  void Before(Tensor q, Tensor k, Tensor v) const;  // [rows, heads or kv_heads, head_dim], in place
  void After(Tensor out) const;                     // [rows, heads, head_dim], in place

 private:
  Balance(Backend& backend, int group) : backend_(backend), group_(group) {}
  Result<const float*> Upload(const std::vector<float>& values);

  Backend& backend_;
  int group_;
  std::vector<Buffer> buffers_;
  struct Affine {
    const float *scale = nullptr, *shift = nullptr;  // [kv_heads, head_dim], or null
  } q_, k_, v_, out_;
};

}  // namespace nibble
