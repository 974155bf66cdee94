// SPDX-License-Identifier: Apache-2.0
// Floor 7. A folder of float weights becomes a folder of quantized weights that loads like any other.
// What it holds: docs/formats/model_folder.md.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "model/qoq/pipeline.h"
#include "quant/weight/format.h"

namespace nibble {

// QoQ post-training quantization (docs/quantize.md).
struct QoqOptions {
  qoq::Passes passes = {};
  std::string text = {};                       // calibration text
  std::string text_name = "calibration text";  // opens messages about it
  int64_t tokens = 32768;                      // of it, in whole windows; 0: all
  int window = 2048;                           // tokens of a calibration window, at most the model's context
  std::optional<double> attention_alpha = {};  // of SmoothAttention; absent: searched for each head
  double damping = 0.01;                       // of GPTQ, as a share of the mean diagonal
  AttentionRecipe recipe = {};                 // of the attention that calibration runs
};

struct QuantizeOptions {
  weight::Storage storage = weight::Storage::kW4A8Group;
  bool int8_embedding = false;         // the embedding, and a head of its own, as s8 rows
  std::optional<QoqOptions> qoq = {};  // absent: round to nearest
  int threads = 1;
  std::function<void(int64_t done, int64_t total)> on_progress =
      {};                                     // weights or, with qoq, parts of layers; on the calling thread
  const std::atomic<bool>* cancel = nullptr;  // looked at between tensors or layers
};

struct QuantizeReport {
  uint64_t bytes_before = 0, bytes_after = 0;  // of the safetensors files
  int tensors = 0;                             // quantized
  double seconds = 0;
  std::vector<qoq::LayerReport> layers = {};  // QoQ
  int resumed_layers = 0;                     // of them, done by an earlier run that did not finish
};

// Reads `dir`, creates `out`: complete, or not at all. The result does not depend on the number of threads.
// QoQ keeps finished layers in the folder OUT.qoq-state while it runs; a run that was killed or cancelled
// leaves it, and the same call continues there.
Result<QuantizeReport> QuantizeFolder(const std::string& dir, const std::string& out, const QuantizeOptions&);

}  // namespace nibble
