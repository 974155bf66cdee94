// SPDX-License-Identifier: Apache-2.0
// Floor 7. A folder of float weights becomes a folder of quantized weights that loads like any other.
// What it holds: docs/formats/model_folder.md.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <string>

#include "base/result.h"
#include "quant/weight/format.h"

namespace nibble {

struct QuantizeOptions {
  weight::Storage storage = weight::Storage::kW4A8Group;
  bool int8_embedding = false;  // the embedding, and a head of its own, as s8 rows
  int threads = 1;
  std::function<void(int64_t done, int64_t total)> on_progress = {};  // weights; on the calling thread
  const std::atomic<bool>* cancel = nullptr;                          // looked at between tensors
};

struct QuantizeReport {
  uint64_t bytes_before = 0, bytes_after = 0;  // of the safetensors files
  int tensors = 0;                             // quantized
  double seconds = 0;
};

// Reads `dir`, creates `out`: complete, or not at all. The result does not depend on the number of threads.
Result<QuantizeReport> QuantizeFolder(const std::string& dir, const std::string& out, const QuantizeOptions&);

}  // namespace nibble
