// SPDX-License-Identifier: Apache-2.0
// Floor 9. Llama shapes with random weights, made tensor by tensor as the loader asks for them: what `nibble
// bench --shape` measures.
#pragma once
#include <array>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "io/weights.h"
#include "model/config.h"
#include "quant/weight/storage.h"

namespace nibble::cli {

// Names that FindShape takes.
inline constexpr std::array<std::string_view, 4> kShapeNames{"1b", "3b", "8b", "8b-4"};

// A Llama of that size with a vocabulary of 32000, 8b with the 128256 of Llama 3; 8b-4 has four
// layers of 8b. Quantized storages also store the embedding and the head in 8 bits. REQUIRES a name of
// kShapeNames.
ModelConfig FindShape(std::string_view name, weight::Storage storage);

// The tensors of such a model in `storage`. Each is filled when it is first looked up and freed when the
// loader has packed it, so that little more than the packed weights is in memory. Same bytes every time.
class RandomWeights final : public io::Weights {
 public:
  RandomWeights(const ModelConfig& config, weight::Storage storage);

  std::span<const io::TensorInfo> tensors() const override { return tensors_; }
  const io::TensorInfo* Find(std::string_view name) const override;
  std::span<const std::string> files() const override { return {}; }
  std::span<const std::string> notes() const override { return {}; }
  uint64_t total_bytes() const override;
  Status CheckUnchanged() const override { return {}; }
  void Release(const io::TensorInfo& tensor) const override;

 private:
  // What the bytes of a tensor look like; `size` is of a float value or an f16 scale.
  enum class Fill : uint8_t { kOnes, kFloats, kNibbles, kBytes, kScale, kGroupScale, kGroupZero };
  struct Spec {
    Fill fill;
    float size;
  };
  void Add(std::string name, io::Element element, std::vector<int64_t> shape, Spec spec);
  void AddLinear(const std::string& name, int n, int k, weight::Storage storage);
  void FillTensor(const io::TensorInfo& tensor, std::byte* bytes) const;

  // Filling and freeing are not seen from outside.
  mutable std::vector<io::TensorInfo> tensors_;  // in name order
  std::map<std::string, Spec, std::less<>> specs_;
  mutable std::map<std::string, std::unique_ptr<std::byte[]>, std::less<>> bytes_;
};

}  // namespace nibble::cli
