// SPDX-License-Identifier: Apache-2.0
// Floor 2. The functions behind the registry, each codec compiled once.
#include "quant/kv/registry.h"

namespace nibble::kv {

template <class C>
int Functions<C>::SharedBytes(PageShape s) {
  if constexpr (requires { C::SharedBytes(s); })
    return C::SharedBytes(s);
  else
    return 0 * s.tokens;
}
template <class C>
void Functions<C>::EncodePage(PageShape s, const float* rows, std::byte* page) {
  C::EncodePage(s, rows, page);
}
template <class C>
void Functions<C>::Decode8(PageShape s, const std::byte* page, int token, int channel, float* out) {
  C::Decode8(s, page, token, channel, out);
}
template <class C>
void Functions<C>::DecodeRow(PageShape s, const std::byte* page, int token, float* out) {
  kv::DecodeRow<C>(s, page, token, out);
}
template <class C>
void Functions<C>::SealInt8(PageShape s, const std::byte* tail, std::byte* page) {
  if constexpr (HasInt8Codes<C>) Int8Tail::Seal<C>(s, tail, page);
}

// Needs every codec's functions, which is what makes the compiler write them here.
extern const std::array<CodecInfo, Codecs::kSize> kCompiledRegistry;
const std::array<CodecInfo, Codecs::kSize> kCompiledRegistry = MakeRegistry(Codecs{});

}  // namespace nibble::kv
