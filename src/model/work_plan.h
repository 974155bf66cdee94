// SPDX-License-Identifier: Apache-2.0
// Floor 7. What the steps of a model need in memory beside weights and cache: rows of activations, logits,
// and on a GPU the copies of rows that its products read.
#pragma once
#include <cstdint>

#include "model/config.h"

namespace nibble {

struct WorkPlan {
  int64_t row_bytes;        // of a row of a step: ModelOptions::max_step_rows of them
  int64_t logit_row_bytes;  // of a row with logits: ModelOptions::max_logit_rows
  int64_t gpu_row_bytes;    // of either, whichever are more, on a GPU

  int64_t Bytes(int64_t rows, int64_t logit_rows, bool gpu) const {
    return rows * row_bytes + logit_rows * logit_row_bytes +
           (gpu ? (rows > logit_rows ? rows : logit_rows) * gpu_row_bytes : 0);
  }
};

WorkPlan PlanWork(const ModelConfig& config);

}  // namespace nibble
