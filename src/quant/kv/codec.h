// SPDX-License-Identifier: Apache-2.0
// Floor 2. What a KV codec is: the meaning of the bytes of a cache page. A page holds K or V of one KV head
// for `tokens` consecutive positions and is written once, when it is full; the open page of a sequence (its
// tail) stays in the codec's raw format. So a codec may look along tokens as well as along channels.
// EncodePage and Decode8 are the specification: every faster kernel is tested against them.
#pragma once
#include <concepts>
#include <cstddef>
#include <cstdint>

#include "base/dtype.h"
#include "base/half.h"
#include "base/macros.h"

namespace nibble::kv {

// Stored in saved caches: append only.
enum class CodecId : uint8_t {
  kF32,
  kF16,
  kBF16,
  kInt8Token,
  kInt4Token,
  kFlashQ4,
  kFlashQ2,
  kInt4Channel,
  kInt2Channel,
  kInt4Group,
  kInt2Group
};

inline constexpr int kPageTokens = 64;

struct PageShape {
  int head_dim, tokens;
};

// Fields of a page, little-endian. By memcpy: a page is bytes, whatever was there before.
NIBBLE_HD void StoreU16(std::byte* p, uint16_t x) { memcpy(p, &x, 2); }
NIBBLE_HD uint16_t LoadU16(const std::byte* p) {
  uint16_t x;
  memcpy(&x, p, 2);
  return x;
}

template <class C>
concept Codec = requires(PageShape s, const float* rows, std::byte* w, const std::byte* r, float* out8) {
  { C::kId } -> std::convertible_to<CodecId>;
  { C::kName } -> std::convertible_to<const char*>;
  { C::kRaw } -> std::convertible_to<DType>;  // element type of the tail: kF32, kF16 or kBF16
  { C::PageBytes(s) } -> std::same_as<int>;   // multiple of 4; every byte of it is written by EncodePage
  C::EncodePage(s, rows, w);                  // rows [tokens, head_dim], already rounded to kRaw
  C::Decode8(s, r, /*token*/ 0, /*channel*/ 0, out8);  // channels d .. d+7 of token t; d % 8 == 0
};

}  // namespace nibble::kv
