// SPDX-License-Identifier: Apache-2.0
// Floor 7. Named f32 tensors in memory that load like those of a folder: a model whose weights were just
// made.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "io/weights.h"
#include "model/qoq/matrix.h"

namespace nibble::qoq {

class MemoryWeights final : public io::Weights {
 public:
  void Add(const std::string& name, Matrix matrix);
  void Add(const std::string& name, std::vector<float> vector);

  std::span<const io::TensorInfo> tensors() const override { return tensors_; }
  const io::TensorInfo* Find(std::string_view name) const override;
  std::span<const std::string> files() const override { return {}; }
  std::span<const std::string> notes() const override { return {}; }
  uint64_t total_bytes() const override;
  Status CheckUnchanged() const override { return {}; }
  void Release(const io::TensorInfo&) const override {}

 private:
  void Insert(const std::string& name, std::vector<int64_t> shape, std::vector<float> values);
  std::map<std::string, std::vector<float>> values_;  // nodes do not move
  std::vector<io::TensorInfo> tensors_;               // in name order
};

}  // namespace nibble::qoq
