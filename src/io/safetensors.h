// SPDX-License-Identifier: Apache-2.0
// Floor 5. One safetensors file: a strict reader of its header over the mapped bytes.
// Rules and limits: docs/formats/safetensors.md.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "io/weights.h"

namespace nibble::io {

inline constexpr uint64_t kMaxHeaderBytes = 100'000'000;
inline constexpr uint64_t kMaxTensors = 1'000'000;
inline constexpr size_t kMaxNameBytes = 512;
inline constexpr int kMaxRank = 8;
inline constexpr uint64_t kMaxDim = (uint64_t{1} << 48) - 1;

struct SafetensorsFile {
  std::vector<TensorInfo> tensors;  // in name order
  std::vector<std::string> notes;   // tensors that are legal but that nothing here reads
};

// `path` opens every message; `file` becomes TensorInfo::file. The tensors point into `bytes`.
Result<SafetensorsFile> ReadSafetensors(std::span<const std::byte> bytes, const std::string& path, int file);

struct ElementType {
  const char* name;  // as headers spell it
  int bits;
  Element element;
};
std::optional<ElementType> FindElementType(std::string_view name);

// What a file that is no safetensors file seems to be, as a sentence for the user; "" if nothing known.
std::string LooksLike(std::span<const std::byte> bytes);

}  // namespace nibble::io
