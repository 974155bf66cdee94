// SPDX-License-Identifier: Apache-2.0
// Floor 2. Codecs f32, f16, bf16: a page is the raw tail itself, [token][channel] elements, little-endian.
// Exact for rows that are already rounded to the raw type; other rows are rounded here (base/half.h).
#pragma once
#include "quant/kv/codec.h"

namespace nibble::kv {

struct F32 {
  static constexpr CodecId kId = CodecId::kF32;
  static constexpr const char* kName = "f32";
  static constexpr DType kRaw = DType::kF32;
  NIBBLE_HD static int PageBytes(PageShape s) { return s.tokens * s.head_dim * 4; }
  NIBBLE_HD static int Parts(PageShape s) { return s.tokens; }
  NIBBLE_HD static Nothing Prepare(PageShape, const float*) { return {}; }
  NIBBLE_HD static void EncodePart(PageShape s, Nothing, const float* rows, int token, std::byte* page) {
    const int first = token * s.head_dim;
    memcpy(page + 4 * first, rows + first, size_t(4 * s.head_dim));
  }
  NIBBLE_HD static void EncodePage(PageShape s, const float* rows, std::byte* page) {
    EncodeParts<F32>(s, rows, page);
  }
  NIBBLE_HD static void Decode8(PageShape s, const std::byte* page, int token, int channel, float* out8) {
    memcpy(out8, page + (token * s.head_dim + channel) * 4, 32);
  }
};

struct F16 {
  static constexpr CodecId kId = CodecId::kF16;
  static constexpr const char* kName = "f16";
  static constexpr DType kRaw = DType::kF16;
  NIBBLE_HD static int PageBytes(PageShape s) { return s.tokens * s.head_dim * 2; }
  NIBBLE_HD static int Parts(PageShape s) { return s.tokens; }
  NIBBLE_HD static Nothing Prepare(PageShape, const float*) { return {}; }
  NIBBLE_HD static void EncodePart(PageShape s, Nothing, const float* rows, int token, std::byte* page) {
    for (int i = token * s.head_dim; i < (token + 1) * s.head_dim; ++i)
      StoreU16(page + 2 * i, FloatToHalf(rows[i]));
  }
  NIBBLE_HD static void EncodePage(PageShape s, const float* rows, std::byte* page) {
    EncodeParts<F16>(s, rows, page);
  }
  NIBBLE_HD static void Decode8(PageShape s, const std::byte* page, int token, int channel, float* out8) {
    const std::byte* p = page + (token * s.head_dim + channel) * 2;
    for (int i = 0; i < 8; ++i) out8[i] = HalfToFloat(LoadU16(p + 2 * i));
  }
};

struct BF16 {
  static constexpr CodecId kId = CodecId::kBF16;
  static constexpr const char* kName = "bf16";
  static constexpr DType kRaw = DType::kBF16;
  NIBBLE_HD static int PageBytes(PageShape s) { return s.tokens * s.head_dim * 2; }
  NIBBLE_HD static int Parts(PageShape s) { return s.tokens; }
  NIBBLE_HD static Nothing Prepare(PageShape, const float*) { return {}; }
  NIBBLE_HD static void EncodePart(PageShape s, Nothing, const float* rows, int token, std::byte* page) {
    for (int i = token * s.head_dim; i < (token + 1) * s.head_dim; ++i)
      StoreU16(page + 2 * i, FloatToBf16(rows[i]));
  }
  NIBBLE_HD static void EncodePage(PageShape s, const float* rows, std::byte* page) {
    EncodeParts<BF16>(s, rows, page);
  }
  NIBBLE_HD static void Decode8(PageShape s, const std::byte* page, int token, int channel, float* out8) {
    const std::byte* p = page + (token * s.head_dim + channel) * 2;
    for (int i = 0; i < 8; ++i) out8[i] = Bf16ToFloat(LoadU16(p + 2 * i));
  }
};

}  // namespace nibble::kv
