// SPDX-License-Identifier: Apache-2.0
// Floor 2. Codec int8-token: 8 bits a value, scale and minimum for each token of a KV head (token_affine.h).
// Page: codes u8 [token][head_dim], then f16 scale [token], then f16 min [token]. docs/formats/kv_pages.md.
#pragma once
#include "quant/kv/token_affine.h"

namespace nibble::kv {

struct Int8Token {
  static constexpr CodecId kId = CodecId::kInt8Token;
  static constexpr const char* kName = "int8-token";
  static constexpr DType kRaw = DType::kF16;
  static constexpr int kLevels = 255;
  NIBBLE_HD static int ScaleOffset(PageShape s) { return s.tokens * s.head_dim; }
  NIBBLE_HD static int MinOffset(PageShape s) { return ScaleOffset(s) + 2 * s.tokens; }
  NIBBLE_HD static int PageBytes(PageShape s) { return MinOffset(s) + 2 * s.tokens; }

  NIBBLE_HD static int Parts(PageShape s) { return s.tokens; }
  NIBBLE_HD static Nothing Prepare(PageShape, const float*) { return {}; }
  NIBBLE_HD static void EncodePart(PageShape s, Nothing, const float* rows, int token, std::byte* page) {
    const float* x = rows + token * s.head_dim;
    const TokenParams p = FitToken(x, s.head_dim, kLevels);
    std::byte* codes = page + token * s.head_dim;
    for (int i = 0; i < s.head_dim; ++i) codes[i] = std::byte(TokenCode(x[i], p, kLevels));
    StoreU16(page + ScaleOffset(s) + 2 * token, p.scale);
    StoreU16(page + MinOffset(s) + 2 * token, p.min);
  }
  NIBBLE_HD static void EncodePage(PageShape s, const float* rows, std::byte* page) {
    EncodeParts<Int8Token>(s, rows, page);
  }

  // code * scale is exact in f32 (8 + 11 bits), so a fused multiply-add gives the same value.
  NIBBLE_HD static void Decode8(PageShape s, const std::byte* page, int token, int channel, float* out8) {
    const std::byte* codes = page + token * s.head_dim + channel;
    const float scale = HalfToFloat(LoadU16(page + ScaleOffset(s) + 2 * token));
    const float min = HalfToFloat(LoadU16(page + MinOffset(s) + 2 * token));
    for (int i = 0; i < 8; ++i) out8[i] = float(uint8_t(codes[i])) * scale + min;
  }
};

}  // namespace nibble::kv
