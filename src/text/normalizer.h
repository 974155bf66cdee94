// SPDX-License-Identifier: Apache-2.0
// Floor 5. The normalizer section of tokenizer.json: rewrites text before it is split.
#pragma once
#include <memory>
#include <string>

#include "base/json.h"
#include "base/result.h"

namespace nibble {

// Text on its way through normalizers.
struct NormalText {
  std::string text;
  // Whether the first character stems from the first one of the input: Metaspace "first" asks.
  bool at_start = true;
};

class Normalizer {
 public:
  virtual ~Normalizer() = default;
  // kInvalidArgument when the text grows beyond kMaxNormalizedBytes.
  virtual Status Apply(NormalText* text) const = 0;
};

inline constexpr size_t kMaxNormalizedBytes = size_t{1} << 30;

Result<std::unique_ptr<Normalizer>> LoadNormalizer(JsonRef section);

}  // namespace nibble
