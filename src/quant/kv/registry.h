// SPDX-License-Identifier: Apache-2.0
// Floor 2. The KV codecs seen at run time, for what is not a kernel: sizes, names, tests, tools.
#pragma once
#include <array>
#include <string_view>

#include "quant/kv/all.h"
#include "quant/kv/int8_codes.h"
#include "quant/kv/int8_tail.h"

namespace nibble::kv {

// Functions of one codec. Defined in registry.cc, so that a file that only wants names does not compile every
// encoder.
template <class C>
struct Functions {
  static int SharedBytes(PageShape s);
  static void EncodePage(PageShape s, const float* rows, std::byte* page);
  static void Decode8(PageShape s, const std::byte* page, int token, int channel, float* out);
  static void DecodeRow(PageShape s, const std::byte* page, int token, float* out);
  static void SealInt8(PageShape s, const std::byte* tail, std::byte* page);
};

struct CodecInfo {
  CodecId id;
  const char* name;
  DType raw;
  int (*page_bytes)(PageShape);
  // Of a page in the cache's pool: a multiple of 16, so that every page may be read by 16 bytes. Less than a
  // page for what requantizes.
  int (*pool_bytes)(PageShape);
  // Of page_bytes, what every token of the page needs; the rest is divided evenly among them. What a reader
  // of single tokens pays: SharedBytes once a page and (page_bytes - SharedBytes) / tokens for each.
  int (*shared_bytes)(PageShape);
  void (*encode_page)(PageShape, const float* rows, std::byte* page);
  void (*decode8)(PageShape, const std::byte* page, int token, int channel, float* out);
  void (*decode_row)(PageShape, const std::byte* page, int token, float* out);  // [head_dim]
  bool requantizes;  // rewrites pages while decoding; they are private to one sequence
  CodecId two_bit;   // of the pages of heads that get 2 bits (head_mix.h); `id`: all heads are alike
  void (*seal_int8)(PageShape, const std::byte* tail, std::byte* page);  // Int8Tail::Seal; null: cannot
};

template <class C>
constexpr bool Requantizes() {
  if constexpr (requires { C::kRequantizes; }) {
    return C::kRequantizes;
  } else {
    return false;
  }
}
template <class C>
constexpr CodecId TwoBitCodec() {
  if constexpr (requires { C::kTwoBit; }) {
    return C::kTwoBit;
  } else {
    return C::kId;
  }
}
template <class C>
constexpr int PoolBytes(PageShape s) {
  if constexpr (Requantizes<C>()) {
    return C::RecordBytes(s);
  } else {
    return (C::PageBytes(s) + 15) / 16 * 16;
  }
}

template <class... C>
constexpr std::array<CodecInfo, sizeof...(C)> MakeRegistry(TypeList<C...>) {
  static_assert((Codec<C> && ...));
  return {CodecInfo{C::kId, C::kName, C::kRaw, [](PageShape s) { return C::PageBytes(s); },
                    [](PageShape s) { return PoolBytes<C>(s); }, &Functions<C>::SharedBytes,
                    &Functions<C>::EncodePage, &Functions<C>::Decode8, &Functions<C>::DecodeRow,
                    Requantizes<C>(), TwoBitCodec<C>(),
                    HasInt8Codes<C> ? &Functions<C>::SealInt8 : nullptr}...};
}
inline constexpr auto kRegistry = MakeRegistry(Codecs{});

constexpr const CodecInfo* Find(std::string_view name) {
  for (const auto& c : kRegistry)
    if (name == c.name) return &c;
  return nullptr;
}
constexpr const CodecInfo& Get(CodecId id) {
  for (const auto& c : kRegistry)
    if (id == c.id) return c;
  return kRegistry[0];
}

}  // namespace nibble::kv
