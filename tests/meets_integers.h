// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <initializer_list>

#include "quant/kv/codec.h"

namespace nibble::test {

// Codecs whose pages attention reads as integers, for which it rounds queries and weights to 16 bits
// (docs/decisions/0017-codes-meet-integers.md).
inline bool MeetsIntegers(kv::CodecId codec) {
  using kv::CodecId;
  for (const CodecId id :
       {CodecId::kInt8Token, CodecId::kInt4Token, CodecId::kFlashQ4, CodecId::kFlashQ2,
        CodecId::kFlashQ4Search, CodecId::kFlashQ2Search, CodecId::kFlashQ2Literal, CodecId::kFlashQMixed})
    if (codec == id) return true;
  return false;
}

}  // namespace nibble::test
