// SPDX-License-Identifier: Apache-2.0
#include "model/qoq/memory_weights.h"

#include <algorithm>

#include "base/check.h"

namespace nibble::qoq {
namespace {

bool Before(const io::TensorInfo& t, std::string_view name) { return t.name < name; }

}  // namespace

void MemoryWeights::Insert(const std::string& name, std::vector<int64_t> shape, std::vector<float> values) {
  const auto [place, added] = values_.emplace(name, std::move(values));
  NIBBLE_CHECK(added, "two tensors of one name");
  io::TensorInfo t;
  t.name = name;
  t.dtype = "F32";
  t.element = io::Element::kF32;
  t.shape = std::move(shape);
  t.data = reinterpret_cast<const std::byte*>(place->second.data());
  t.bytes = place->second.size() * sizeof(float);
  tensors_.insert(std::lower_bound(tensors_.begin(), tensors_.end(), name, Before), std::move(t));
}

void MemoryWeights::Add(const std::string& name, Matrix matrix) {
  Insert(name, {matrix.rows, matrix.cols}, std::move(matrix.v));
}

void MemoryWeights::Add(const std::string& name, std::vector<float> vector) {
  const auto n = static_cast<int64_t>(vector.size());
  Insert(name, {n}, std::move(vector));
}

const io::TensorInfo* MemoryWeights::Find(std::string_view name) const {
  const auto at = std::lower_bound(tensors_.begin(), tensors_.end(), name, Before);
  return at != tensors_.end() && at->name == name ? &*at : nullptr;
}

uint64_t MemoryWeights::total_bytes() const {
  uint64_t sum = 0;
  for (const io::TensorInfo& t : tensors_) sum += t.bytes;
  return sum;
}

}  // namespace nibble::qoq
