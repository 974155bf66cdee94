// SPDX-License-Identifier: Apache-2.0
// Floor 8. The logits of a reference engine, window by window, kept as far as memory is granted, so that many
// models can be compared with one pass of the reference.
#pragma once
#include <functional>
#include <span>
#include <vector>

#include "engine/engine.h"

namespace nibble {

// Logits [rows, vocab] f32 in host memory: the tensor's own, or a copy in `staging`.
std::span<const float> HostLogits(Engine& engine, Tensor logits, std::vector<float>* staging);

class ReferenceLogits {
 public:
  // Windows are kept in the order in which they are first asked for while they fit into `keep_bytes`
  // together; one more is held at any time.
  ReferenceLogits(Engine& engine, size_t keep_bytes) : engine_(engine), keep_bytes_(keep_bytes) {}

  // [tokens, vocab] of window `index`, whose tokens must be the same at every call. Valid until the next one.
  // `on_rows` sees the number of rows as they are computed, none when the window was kept.
  Result<std::span<const float>> Window(size_t index, std::span<const int32_t> tokens,
                                        const std::function<Status(int64_t rows)>& on_rows);
  bool Kept(size_t index) const { return index < kept_.size() && !kept_[index].empty(); }
  const Engine& engine() const { return engine_; }

 private:
  Engine& engine_;
  size_t keep_bytes_, kept_bytes_ = 0;
  std::vector<std::vector<float>> kept_;  // [windows], empty where not kept
  std::vector<float> current_, staging_;
};

}  // namespace nibble
