// SPDX-License-Identifier: Apache-2.0
// Floor 9. What a model will take in memory, from its tensor list and config alone: nothing is loaded.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "cache/kv_cache.h"
#include "io/weights.h"
#include "model/config.h"

namespace nibble::cli {

// Bytes of the weights as the kernels read them (Model::weight_bytes()): the layouts of
// quant/weight/format.h, 16 output rows a panel, vectors as f32. `arithmetic` as in ModelOptions.
uint64_t PackedWeightBytes(std::span<const io::TensorInfo> tensors, DType arithmetic);

struct KvPlan {
  std::string recipe;  // as asked for
  KvSizes sizes;
  std::vector<std::pair<int64_t, uint64_t>> contexts;  // tokens of one sequence -> bytes, pages and tail
};
Result<KvPlan> PlanRecipe(const ModelConfig& config, const std::string& recipe, DType arithmetic);

}  // namespace nibble::cli
