// SPDX-License-Identifier: Apache-2.0
// Floor 2. Codec int4-token: QoQ's KV4, 4 bits a value, scale and minimum for each token of a KV head
// (token_affine.h). Page: codes [token][head_dim / 2] with the even channel in the low nibble, then f16 scale
// [token], then f16 min [token]. docs/formats/kv_pages.md.
#pragma once
#include "quant/kv/token_affine.h"

namespace nibble::kv {

struct Int4Token {
  static constexpr CodecId kId = CodecId::kInt4Token;
  static constexpr const char* kName = "int4-token";
  static constexpr DType kRaw = DType::kF16;
  static constexpr int kLevels = 15;
  NIBBLE_HD static int ScaleOffset(PageShape s) { return s.tokens * s.head_dim / 2; }
  NIBBLE_HD static int MinOffset(PageShape s) { return ScaleOffset(s) + 2 * s.tokens; }
  NIBBLE_HD static int PageBytes(PageShape s) { return MinOffset(s) + 2 * s.tokens; }

  NIBBLE_HD static int Parts(PageShape s) { return s.tokens; }
  NIBBLE_HD static Nothing Prepare(PageShape, const float*) { return {}; }
  NIBBLE_HD static void EncodePart(PageShape s, Nothing, const float* rows, int token, std::byte* page) {
    const float* x = rows + token * s.head_dim;
    const TokenParams p = FitToken(x, s.head_dim, kLevels);
    std::byte* codes = page + token * s.head_dim / 2;
    for (int i = 0; i < s.head_dim / 2; ++i) {
      const int even = TokenCode(x[2 * i], p, kLevels), odd = TokenCode(x[2 * i + 1], p, kLevels);
      codes[i] = std::byte(even | odd << 4);
    }
    StoreU16(page + ScaleOffset(s) + 2 * token, p.scale);
    StoreU16(page + MinOffset(s) + 2 * token, p.min);
  }
  NIBBLE_HD static void EncodePage(PageShape s, const float* rows, std::byte* page) {
    EncodeParts<Int4Token>(s, rows, page);
  }

  // code * scale is exact in f32 (4 + 11 bits), so a fused multiply-add gives the same value.
  NIBBLE_HD static void Decode8(PageShape s, const std::byte* page, int token, int channel, float* out8) {
    const std::byte* codes = page + (token * s.head_dim + channel) / 2;
    const float scale = HalfToFloat(LoadU16(page + ScaleOffset(s) + 2 * token));
    const float min = HalfToFloat(LoadU16(page + MinOffset(s) + 2 * token));
    for (int i = 0; i < 4; ++i) {
      out8[2 * i] = float(uint8_t(codes[i]) & 15) * scale + min;
      out8[2 * i + 1] = float(uint8_t(codes[i]) >> 4) * scale + min;
    }
  }
};

}  // namespace nibble::kv
