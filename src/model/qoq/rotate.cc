// SPDX-License-Identifier: Apache-2.0
#include "model/qoq/rotate.h"

#include <algorithm>

namespace nibble::qoq {
namespace {

void ScaleColumns(std::span<const float> by, Matrix* w) {
  for (int r = 0; r < w->rows; ++r)
    for (int c = 0; c < w->cols; ++c) w->Row(r)[c] *= by[static_cast<size_t>(c)];
}

void RotateRows(const Hadamard& r, Math& math, Matrix* m) {
  math.ForRows(m->rows, [&](int row, int) { r.Rotate(m->Row(row)); });
}

}  // namespace

void FoldNorms(Layer* layer) {
  for (const LinearId id : {kQ, kK, kV}) ScaleColumns(layer->input_norm, &layer->linear[id].w);
  for (const LinearId id : {kGate, kUp}) ScaleColumns(layer->post_attention_norm, &layer->linear[id].w);
  std::fill(layer->input_norm.begin(), layer->input_norm.end(), 1.0f);
  std::fill(layer->post_attention_norm.begin(), layer->post_attention_norm.end(), 1.0f);
}

void FoldFinalNorm(Ends* ends) {
  const auto is_one = [](float f) { return f == 1.0f; };
  if (std::all_of(ends->final_norm.begin(), ends->final_norm.end(), is_one)) return;
  if (ends->head.rows == 0) ends->head = ends->embedding;
  ScaleColumns(ends->final_norm, &ends->head);
  std::fill(ends->final_norm.begin(), ends->final_norm.end(), 1.0f);
}

void RotateLayer(const Hadamard& r, Math& math, Layer* layer) {
  for (const LinearId id : {kQ, kK, kV, kGate, kUp}) RotateRows(r, math, &layer->linear[id].w);
  for (const LinearId id : {kO, kDown}) {
    FloatLinear& linear = layer->linear[id];
    Matrix transposed = Transpose(linear.w);
    RotateRows(r, math, &transposed);
    linear.w = Transpose(transposed);
    if (!linear.bias.empty()) r.Rotate(linear.bias.data());
  }
}

void RotateEnds(const Hadamard& r, Math& math, Ends* ends) {
  RotateRows(r, math, &ends->embedding);
  if (ends->head.rows > 0) RotateRows(r, math, &ends->head);
}

}  // namespace nibble::qoq
