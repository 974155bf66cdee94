// SPDX-License-Identifier: Apache-2.0
// Floor 7. Looking at a forward pass from outside: calibration and error reports see the activations that a
// layer makes, in the order in which it makes them.
#pragma once
#include <cstdint>

#include "tensor/tensor.h"

namespace nibble {

enum class Site : uint8_t {
  kAttentionInput,  // [rows, hidden] after the first norm: input of q_proj, k_proj, v_proj
  kQuery,           // [rows, heads, head_dim] as attention takes it, RoPE applied
  kKey,             // [rows, kv_heads, head_dim] as the cache takes it, RoPE applied
  kValue,           // [rows, kv_heads, head_dim]
  kAttended,        // [rows, heads * head_dim]: input of o_proj
  kMlpInput,        // [rows, hidden] after the second norm: input of gate_proj and up_proj
  kGated,           // [rows, intermediate]: input of down_proj
};

class Observer {
 public:
  virtual ~Observer() = default;
  // `x` is f32 on the model's device and valid during the call only. Rows are those of the step. Observers
  // may change values in place: a transformation under test does so.
  virtual void Observe(int layer, Site site, Tensor x) = 0;
};

}  // namespace nibble
