// SPDX-License-Identifier: Apache-2.0
// Floor 7. What every way of quantizing writes: the parts of a quantized weight, config.json, the other
// files. Layout: docs/formats/model_folder.md.
#pragma once
#include <atomic>
#include <string>
#include <string_view>
#include <vector>

#include "base/folder_writer.h"
#include "io/safetensors_writer.h"
#include "quant/weight/quantize.h"

namespace nibble {

// Declares the parts that `name` [n, k] becomes in `storage`. Fails as weight::CheckShape.
Status DeclareQuantized(const std::string& name, int64_t n, int64_t k, weight::Storage storage,
                        std::vector<io::TensorSpec>* specs);
Status PutQuantized(const std::string& name, const weight::QuantizedWeight& q, io::SafetensorsWriter* writer);

// Copies the files of `dir` except weights in any format, config.json and a manifest.
Status CopyOtherFiles(const std::string& dir, const FolderWriter& folder);

struct QuantizedConfig {
  weight::Storage storage = weight::Storage::kW4A8Group;
  bool int8_embedding = false;
  bool untied_head = false;         // the head has a matrix of its own now
  std::string method;               // "rtn" or "qoq"
  std::vector<std::string> passes;  // of "qoq"
};
// config.json of `dir` with its keys in their order and quantization_config at the end.
Status WriteQuantizedConfig(const std::string& dir, const FolderWriter& folder, const QuantizedConfig& what);

}  // namespace nibble
