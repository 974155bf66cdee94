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
  kInt2Group,
  kFlashQ4Search,
  kFlashQ2Search,
  kFlashQ2Literal,
  kFlashQ2Outlier,
  kTurboQuant4,
  kTurboQuant3,
  kTurboQuant2,
  kFp8,
  kGear4Channel,
  kGear4Group,
  kGear2Channel,
  kGear2Group,
  kGearL4Channel,
  kGearL4Group,
  kGearL2Channel,
  kGearL2Group,
  kFlashQ3,
  kQaq,
  kFlashQMixed,
  kMxfp4,
  kNvfp4
};

// How the open page keeps its rows: kFloat in the codec's raw type, kInt8 as int8_tail.h says.
enum class Tail : uint8_t { kFloat, kInt8 };

inline constexpr int kPageTokens = 64;
inline constexpr int kMaxHeadDim = 1024;

struct PageShape {
  int head_dim, tokens;  // a multiple of 8 up to kMaxHeadDim; 1 .. kPageTokens
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

// A codec may divide EncodePage into parts that write bytes of their own, so that many threads encode a page:
// Parts(s), what all parts need of the rows, Prepare(s, rows), and EncodePart(s, prepared, rows, part, page).
template <class C>
concept HasParts = requires(PageShape s, const float* rows, std::byte* page) {
  C::Parts(s);
  C::EncodePart(s, C::Prepare(s, rows), rows, /*part*/ 0, page);
};

template <HasParts C>
NIBBLE_HD void EncodeParts(PageShape s, const float* rows, std::byte* page) {
  const auto prepared = C::Prepare(s, rows);
  for (int part = 0; part < C::Parts(s); ++part) C::EncodePart(s, prepared, rows, part, page);
}

struct Nothing {};  // Prepare of a codec whose parts are independent

// A codec may also have DecodeRow(s, page, token, out): all channels of a token at once, to the bit what
// Decode8 says, for codecs that must decode a row whole anyway.
template <class C>
concept HasDecodeRow = requires(PageShape s, const std::byte* r, float* out) {
  C::DecodeRow(s, r, 0, out);
};

template <class C>
NIBBLE_HD void DecodeRow(PageShape s, const std::byte* page, int token, float* out) {
  if constexpr (HasDecodeRow<C>) {
    C::DecodeRow(s, page, token, out);
  } else {
    for (int d = 0; d < s.head_dim; d += 8) C::Decode8(s, page, token, d, out + d);
  }
}

}  // namespace nibble::kv
