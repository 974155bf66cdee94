// SPDX-License-Identifier: Apache-2.0
// Floor 7. plan.json: a Plan with the model it was made for. docs/formats/plan.md.
#pragma once
#include <string>

#include "base/result.h"
#include "model/config.h"
#include "recipe/plan.h"

namespace nibble {

// kCorrupt / kInvalidArgument name the file, the key, what was expected and what was found: other numbers of
// layers, heads or head size, vectors of another length, scales that are not positive and finite, bits
// outside a format. Another fingerprint is kInvalidArgument with both.
Result<Plan> ReadPlan(const std::string& path, const ModelConfig& config, const std::string& fingerprint);

// Complete, or not at all.
Status WritePlan(const std::string& path, const Plan& plan);

}  // namespace nibble
