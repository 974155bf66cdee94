// SPDX-License-Identifier: Apache-2.0
// Placeholder of the float codecs; the codec work replaces it.
#pragma once
#include "quant/kv/codec.h"
namespace nibble::kv {
struct F32 {
  static constexpr CodecId kId = CodecId::kF32;
  static constexpr const char* kName = "f32";
  static constexpr DType kRaw = DType::kF32;
  NIBBLE_HD static int PageBytes(PageShape s) { return s.tokens * s.head_dim * 4; }
  NIBBLE_HD static void EncodePage(PageShape s, const float* x, std::byte* p) {
    __builtin_memcpy(p, x, size_t(PageBytes(s)));
  }
  NIBBLE_HD static void Decode8(PageShape s, const std::byte* p, int t, int d, float* o) {
    __builtin_memcpy(o, p + (t * s.head_dim + d) * 4, 32);
  }
};
struct F16 : F32 {
  static constexpr CodecId kId = CodecId::kF16;
  static constexpr const char* kName = "f16";
};
struct BF16 : F32 {
  static constexpr CodecId kId = CodecId::kBF16;
  static constexpr const char* kName = "bf16";
};
}  // namespace nibble::kv
