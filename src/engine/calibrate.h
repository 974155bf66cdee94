// SPDX-License-Identifier: Apache-2.0
// Floor 8. `nibble calibrate`: finds a plan for a model and a recipe on a text. The model runs once in full
// precision; while a layer's Q, K and V are at hand, candidates are tried on them through the cache and
// kernels of the recipe, and those that lower the error of that layer's attention output are kept.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "base/result.h"
#include "engine/layer_trial.h"
#include "recipe/plan.h"

namespace nibble {

struct CalibrateOptions {
  std::string model;  // folder
  std::string recipe;
  DType dtype = DType::kF32;
  int64_t tokens = 4096;  // of the text, in windows
  int window = 2048;      // tokens a sequence, the begin-of-text token included
  DeviceChoice device = DeviceChoice::kCpu;
  int threads = 0;          // of the CPU; 0: all available
  double min_score = 0.97;  // INT4 stays where cos * (1 - relative L1) reaches it (SageAttention 2)
  double budget = 1;        // what heads that share a budget may spend, in units of the recipe's own cost
  std::function<void(int64_t done, int64_t total)> on_progress = {};  // layers
  const std::atomic<bool>* cancel = nullptr;
};

struct LayerReport {
  OutputError before, after;  // of the recipe without and with the plan
  std::string choices;        // what was chosen, for people
};

struct CalibrateReport {
  Plan plan;
  std::vector<LayerReport> layers;
  int64_t tokens = 0;
  double seconds = 0;
};

// kInvalidArgument for a text with fewer tokens than one window, a window beyond the context, or a recipe in
// which nothing can be chosen ("exact"); kCancelled.
Result<CalibrateReport> Calibrate(const CalibrateOptions& options, std::string_view text);

}  // namespace nibble
