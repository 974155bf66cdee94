// SPDX-License-Identifier: Apache-2.0
// Floor 7. QoQ (arXiv 2405.04532): the passes, and what they do to one layer after the other.
#pragma once
#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/qoq/calibration.h"
#include "model/qoq/gptq.h"
#include "model/qoq/layer.h"
#include "model/qoq/rotate.h"

namespace nibble::qoq {

struct Passes {
  bool fold = true;              // norm weights into the linears that follow
  bool rotate = true;            // the residual stream, by a Hadamard matrix
  bool reorder = true;           // channels of the MLP
  bool smooth_attention = true;  // keys against queries
  bool smooth_output = true;     // up_proj against down_proj, v_proj against o_proj
  bool clip = true;              // search of each grid
  bool gptq = true;              // rounding that makes up for its errors
};

struct LayerOptions {
  weight::Storage storage = weight::Storage::kW4A8Group;
  Passes passes;
  std::optional<double> attention_alpha = {};  // of SmoothAttention; absent: searched
  double damping = 0.01;                       // share of the mean diagonal
  AttentionRecipe recipe;                      // of the attention that calibration runs
  int window = 2048;
  int threads = 1;
  // Called after each of kLayerParts parts of about equal work; a Status other than ok ends the layer.
  std::function<Status(int parts_done)> on_part = {};
};
inline constexpr int kLayerParts = 4;

// What happened to a layer. Errors are squared and relative to the squared norm of what was meant.
struct LinearReport {
  double nearest = 0;  // error of the output, weights rounded to nearest
  double error = 0;    // the same as quantized
};
struct LayerReport {
  int index = 0;
  double key_alpha = 0, key_beta = 0;  // SmoothAttention, of the first KV head
  double key_error_before = 0, key_error_after = 0;
  double value_alpha = 0, value_beta = 0;  // output smoothing of v_proj
  double mlp_alpha = 0, mlp_beta = 0;      // output smoothing of up_proj
  std::array<LinearReport, kLinears> linear = {};
  double stream_error = 0;  // of the residual stream after the layer, all errors before included
};

// The residual stream of the calibration text.
struct Streams {
  Matrix exact;      // as the float model has it
  Matrix quantized;  // as the layers quantized so far make it
};

struct QuantizedLayer {
  std::array<weight::QuantizedWeight, kLinears> linear;
  Layer rest;  // norms and biases; its matrices are empty
  LayerReport report;
};

// Quantizes one layer (norms folded and stream rotated already, if they are to be) and takes the streams
// through it.
Result<QuantizedLayer> QuantizeLayer(const ModelConfig& config, Layer layer, int index,
                                     const LayerOptions& options, Math& math, Streams* streams);

}  // namespace nibble::qoq
