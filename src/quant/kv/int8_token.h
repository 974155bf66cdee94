#pragma once
#include "quant/kv/float.h"
namespace nibble::kv {
struct Int8Token : F32 {
  static constexpr CodecId kId = CodecId::kInt8Token;
  static constexpr const char* kName = "int8-token";
};
}  // namespace nibble::kv
