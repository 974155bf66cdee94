// SPDX-License-Identifier: Apache-2.0
#include "model/work_plan.h"

#include <algorithm>

namespace nibble {

WorkPlan PlanWork(const ModelConfig& c) {
  const int64_t q = int64_t{c.heads} * c.head_dim, qkv = q + int64_t{2} * c.kv_heads * c.head_dim;
  const int64_t widest = std::max({int64_t{c.hidden}, int64_t{c.intermediate}, q});
  // x and its norm; Q, K and V; the attention's output; gate and up; the angles of RoPE
  const int64_t floats = 2 * int64_t{c.hidden} + qkv + q + 2 * int64_t{c.intermediate} + c.head_dim;
  // Q and the output in bf16; a product's input in bf16 and in int8, its scale and the sum of its codes
  const int64_t gpu = 2 * 2 * q + (2 + 1) * widest + 2 * int64_t{sizeof(float)};
  return {.row_bytes = floats * int64_t{sizeof(float)},
          .logit_row_bytes = (int64_t{c.hidden} + c.vocab) * int64_t{sizeof(float)},
          .gpu_row_bytes = gpu};
}

}  // namespace nibble
