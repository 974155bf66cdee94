// SPDX-License-Identifier: Apache-2.0
// Floor 8. One Generate call: its requests over a cache that is made for them, without preemption.
#pragma once
#include <atomic>
#include <span>
#include <vector>

#include "engine/engine.h"

namespace nibble {

Result<std::vector<Completion>> RunGeneration(const EngineParts& parts, std::span<const Request> requests,
                                              const std::atomic<bool>* cancel);

}  // namespace nibble
