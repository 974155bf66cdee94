// SPDX-License-Identifier: Apache-2.0
// Floor 5. Named tensors of a model folder: one model.safetensors, or shards with
// model.safetensors.index.json. Files are opened once and memory-mapped; tensors are views into the mapping,
// valid while the object lives.
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace nibble::io {

// Element types of safetensors; kOther for legal ones that no reader uses (C64, F8_E8M0, ...).
enum class Element : uint8_t { kF64, kF32, kF16, kBF16, kI64, kI32, kI16, kI8, kU8, kBool, kOther };

struct TensorInfo {
  std::string name;
  std::string dtype;  // as the file spells it
  Element element = Element::kOther;
  std::vector<int64_t> shape;
  const std::byte* data = nullptr;  // may be unaligned
  uint64_t bytes = 0;
  int file = 0;  // index into files()
};

class Weights {
 public:
  // DIR, or one .safetensors file. Every rule of docs/formats/safetensors.md is checked here.
  static Result<std::unique_ptr<Weights>> Open(const std::string& path);
  virtual ~Weights() = default;
  virtual std::span<const TensorInfo> tensors() const = 0;  // in name order
  virtual const TensorInfo* Find(std::string_view name) const = 0;
  virtual std::span<const std::string> files() const = 0;
  virtual std::span<const std::string> notes() const = 0;  // warnings, one line each
  virtual uint64_t total_bytes() const = 0;                // of the files
  // kIo when a file became shorter after it was opened (reading its mapping would raise SIGBUS).
  virtual Status CheckUnchanged() const = 0;
  // Drops the mapped pages of a tensor from memory after it was packed.
  virtual void Release(const TensorInfo&) const = 0;
};

}  // namespace nibble::io
