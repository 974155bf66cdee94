#pragma once
#include "quant/kv/float.h"
namespace nibble::kv {
struct Int4Token : F32 {
  static constexpr CodecId kId = CodecId::kInt4Token;
  static constexpr const char* kName = "int4-token";
};
}  // namespace nibble::kv
