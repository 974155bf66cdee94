// SPDX-License-Identifier: Apache-2.0
// Floor 7. The rotary-embedding part of config.json.
#pragma once
#include <cstdint>

#include "base/json.h"
#include "base/result.h"
#include "model/config.h"

namespace nibble {

inline constexpr int64_t kMaxPositions = int64_t{1} << 27;

// rope_theta and rope_scaling at the top (transformers up to 4), or rope_parameters (from 5 on).
Status ReadRope(JsonRef config, int64_t max_position, RopeConfig* rope);

}  // namespace nibble
