// SPDX-License-Identifier: Apache-2.0
// Floor 5. "Metaspace" (SentencePiece's visible space): a pre-tokenizer and a decoder, with the same fields.
#pragma once
#include <cstdint>
#include <string>

#include "base/json.h"
#include "base/result.h"

namespace nibble {

enum class PrependScheme : uint8_t { kAlways, kFirst, kNever };

struct Metaspace {
  std::string mark;  // one character, usually U+2581
  PrependScheme scheme = PrependScheme::kAlways;
  bool split = true;
};

Result<Metaspace> LoadMetaspace(JsonRef section);

}  // namespace nibble
