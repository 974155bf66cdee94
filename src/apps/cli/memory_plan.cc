// SPDX-License-Identifier: Apache-2.0
// Floor 9. What a model will take in memory.
#include "apps/cli/memory_plan.h"

#include <algorithm>

#include "quant/weight/format.h"

namespace nibble::cli {
namespace {

bool IsFloat(io::Element e) {
  return e == io::Element::kF32 || e == io::Element::kF16 || e == io::Element::kBF16;
}

// Tensors that become floats of their own (norms, biases) or a matrix; scales and zeros count with their
// codes.
uint64_t PackedBytes(const io::TensorInfo& t, DType arithmetic) {
  if (t.shape.empty() || t.shape.size() > 2) return 0;
  const auto rows = uint64_t(t.shape[0]);
  if (t.shape.size() == 1)
    return IsFloat(t.element) && !t.name.ends_with("_scale") ? rows * sizeof(float) : 0;
  const uint64_t n = (rows + weight::kPanel - 1) / weight::kPanel * weight::kPanel;
  const auto k = uint64_t(t.shape[1]);
  if (t.name.ends_with(".weight_packed")) return n * k + n * sizeof(float);  // two codes a byte, scale
  if (t.name.ends_with(".weight_group_scale")) return n * k;
  if (t.name.ends_with(".weight_group_zero")) return n * k;
  if (t.element == io::Element::kI8) return n * k + n * (sizeof(float) + sizeof(int32_t));  // scale, row sum
  if (!IsFloat(t.element)) return 0;
  const bool wide = t.element == io::Element::kF32 && arithmetic == DType::kF32;
  return n * k * (wide ? sizeof(float) : sizeof(uint16_t));
}

}  // namespace

uint64_t PackedWeightBytes(std::span<const io::TensorInfo> tensors, DType arithmetic) {
  uint64_t bytes = 0;
  for (const io::TensorInfo& t : tensors) {
    bytes += PackedBytes(t, arithmetic);
    if (t.name.ends_with(".weight_zero"))  // per channel: one byte an output
      bytes += (uint64_t(t.shape[0]) + weight::kPanel - 1) / weight::kPanel * weight::kPanel;
  }
  return bytes;
}

Result<KvPlan> PlanRecipe(const ModelConfig& config, const std::string& recipe, DType arithmetic) {
  NIBBLE_ASSIGN(const AttentionRecipe parsed, ParseRecipe(recipe, arithmetic));
  const KvShape shape{config.layers, config.kv_heads, config.head_dim};
  KvPlan plan{recipe, PlanKv(shape, config.heads, parsed, 1, config.max_position), {}};
  std::vector<int64_t> contexts;
  for (int64_t tokens = 1024; tokens < config.max_position; tokens *= 4) contexts.push_back(tokens);
  contexts.push_back(config.max_position);
  for (int64_t tokens : contexts) {
    const KvSizes sizes = PlanKv(shape, config.heads, parsed, 1, tokens);
    plan.contexts.emplace_back(tokens, uint64_t(sizes.pool_bytes + sizes.tail_bytes_per_seq));
  }
  return plan;
}

}  // namespace nibble::cli
