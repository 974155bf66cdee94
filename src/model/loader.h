// SPDX-License-Identifier: Apache-2.0
// Floor 7. From named tensors to what kernels read: every tensor is compared with the shape that the config
// says, checked, packed on the backend and dropped from the mapping. Both names and numbers are in each
// message.
#pragma once
#include <set>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "io/weights.h"
#include "model/config.h"
#include "model/packed_weights.h"

namespace nibble {

// y = x w^T + bias.
struct LinearWeight {
  weight::PackedWeight w;
  const float* bias = nullptr;  // [n] on the device, or null
};

enum class Bias : uint8_t { kNone, kYes };

class Loader {
 public:
  // `packed`, or null: matrices come from its file, or go into it. Must outlive the Loader.
  Loader(const io::Weights& weights, const ModelConfig& config, Backend& backend, MatmulArith arith,
         PackedWeights* packed = nullptr)
      : weights_(weights), config_(config), backend_(backend), arith_(arith), packed_(packed) {}

  // `name`.weight [n, k] in the folder's weight format, and `name`.bias [n] if asked for.
  Result<LinearWeight> Linear(const std::string& name, int n, int k, Bias bias);
  // The same for several that always get the same input: Backend::PackTogether.
  struct Part {
    std::string name;
    int n;
  };
  Result<std::vector<LinearWeight>> Linears(std::span<const Part> parts, int k, Bias bias);
  // `name`.weight [n, k] in floats, or s8 rows when the folder was quantized with an int8 embedding.
  Result<weight::PackedWeight> Embedding(const std::string& name, int n, int k);
  // A float vector [n] as f32 on the device; the backend's memory is listed in buffers().
  Result<const float*> Vector(const std::string& name, int n);

  // Tensors of the folder that no call has asked for, in name order.
  std::vector<std::string> Unused() const;
  size_t bytes() const { return bytes_; }
  std::vector<Buffer> TakeBuffers() { return std::move(buffers_); }

 private:
  Result<const io::TensorInfo*> Tensor(const std::string& name, std::initializer_list<int64_t> shape);
  Result<const std::byte*> Codes(const std::string& name, io::Element element,
                                 std::initializer_list<int64_t> shape);
  Result<weight::WeightView> FloatView(const std::string& name, int n, int k);
  Result<weight::WeightView> Int8View(const std::string& name, int n, int k);
  Result<weight::WeightView> Int4View(const std::string& name, int n, int k, weight::Storage storage);
  Result<weight::WeightView> View(const std::string& name, int n, int k);
  Result<weight::PackedWeight> Pack(const std::string& name, const weight::WeightView& view);
  Result<std::vector<weight::PackedWeight>> PackTogether(std::span<const std::string> names,
                                                         std::span<const weight::WeightView> views);
  Result<std::vector<weight::PackedWeight>> FromFile(std::span<const std::string> names,
                                                     std::span<const weight::WeightView> views);
  Status Packed(const std::string& name, const weight::PackedWeight& w);
  bool reads_file() const { return packed_ != nullptr && packed_->reader != nullptr; }
  const std::byte* Aligned(const io::TensorInfo& tensor);

  const io::Weights& weights_;
  const ModelConfig& config_;
  Backend& backend_;
  MatmulArith arith_;
  PackedWeights* packed_;
  size_t bytes_ = 0;
  std::set<std::string, std::less<>> used_;
  std::vector<const io::TensorInfo*> current_;          // tensors of the weight being packed
  std::vector<std::vector<std::byte>> aligned_copies_;  // of tensors that lie at odd addresses
  std::vector<Buffer> buffers_;
};

}  // namespace nibble
