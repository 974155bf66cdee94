// SPDX-License-Identifier: Apache-2.0
// Floor 5. Writes one safetensors file. All tensors are declared first (the header comes before the data),
// then their bytes arrive in any order.
#pragma once
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "base/result.h"

namespace nibble::io {

struct TensorSpec {
  std::string name;
  std::string dtype;  // as in FindElementType
  std::vector<int64_t> shape;
};

class SafetensorsWriter {
 public:
  // Lays the tensors out by element size, then name, so that each lies at a multiple of its element size from
  // a data start at a multiple of 64 bytes. kInvalidArgument for two tensors of one name.
  static Result<SafetensorsWriter> Create(FileWriter file, std::vector<TensorSpec> specs);

  // All bytes of one declared tensor, once.
  Status Put(std::string_view name, std::span<const std::byte> bytes);
  // REQUIRES every tensor to have been put.
  Status Commit();

 private:
  struct Place {
    uint64_t offset = 0, bytes = 0;
    bool put = false;
  };
  SafetensorsWriter(FileWriter file, std::map<std::string, Place, std::less<>> places)
      : file_(std::move(file)), places_(std::move(places)), left_(places_.size()) {}
  FileWriter file_;
  std::map<std::string, Place, std::less<>> places_;
  size_t left_;
};

}  // namespace nibble::io
