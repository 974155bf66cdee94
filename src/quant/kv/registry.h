// SPDX-License-Identifier: Apache-2.0
// Floor 2. The KV codecs seen at run time, for what is not a kernel: sizes, names, tests, tools.
#pragma once
#include <array>
#include <string_view>

#include "quant/kv/all.h"

namespace nibble::kv {

struct CodecInfo {
  CodecId id;
  const char* name;
  DType raw;
  int (*page_bytes)(PageShape);
  void (*encode_page)(PageShape, const float* rows, std::byte* page);
  void (*decode8)(PageShape, const std::byte* page, int token, int channel, float* out);
};

template <class... C>
constexpr std::array<CodecInfo, sizeof...(C)> MakeRegistry(TypeList<C...>) {
  static_assert((Codec<C> && ...));
  return {CodecInfo{
      C::kId, C::kName, C::kRaw, [](PageShape s) { return C::PageBytes(s); },
      [](PageShape s, const float* x, std::byte* p) { C::EncodePage(s, x, p); },
      [](PageShape s, const std::byte* p, int t, int d, float* o) { C::Decode8(s, p, t, d, o); }}...};
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
